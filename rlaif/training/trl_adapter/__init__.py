"""The only importers of trl, one file for each of its trainers. Importing this package switches off what TRL and
transformers would send or print."""

import os
import warnings

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when huggingface_hub is imported: TRL reports each trainer

import huggingface_hub.constants
import transformers

transformers.utils.logging.disable_progress_bar()  # one bar for loading, another for writing, below ours
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # TRL's own call
huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # where it was imported before this module
