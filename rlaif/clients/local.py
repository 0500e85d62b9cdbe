"""``local:``: a model of this machine through transformers."""

from rlaif.embedded import embedded_model_dir, keep_buffers, resolve_model

__all__ = ["embedded_model_dir", "keep_buffers", "resolve_model"]
