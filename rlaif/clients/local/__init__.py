"""``local:PATH_OR_ID``: a model that transformers runs in this process.

``chat`` turns messages into tokens, ``decode`` is the arithmetic, ``packed`` the part of it that reads many prompts at
once (these two alone import torch), ``client`` collects concurrent requests and feeds them to ``decode`` in batches.
`embedded_model_dir` and its neighbours live in `rlaif.embedded`, because training uses them too.
"""

from rlaif.clients.local.client import LocalClient, LocalOptions
from rlaif.embedded import embedded_model_dir, keep_buffers, resolve_model

__all__ = ["LocalClient", "LocalOptions", "embedded_model_dir", "keep_buffers", "resolve_model"]
