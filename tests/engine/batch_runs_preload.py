"""What `batch_runs.processes` imports once."""

import rlaif.clients.anthropic_batch
import rlaif.clients.openai_batch
import rlaif.engine.batch
import rlaif.generate  # noqa: F401
import tests.engine.batch_runs  # noqa: F401
