"""The config of critique and revision."""

from pydantic import Field

from rlaif.config.base import Config
from rlaif.config.models import ModelRef


class RevisionConfig(Config):
    """Samples are criticised and rewritten, ``steps`` times, and the last version is compared with the first.

    ``model``: who criticises and rewrites (default: the policy). ``drafts``: how many samples of each prompt, the first
    ones. The principle of each step is drawn by hash among those with both `critique` and `revise`.
    """

    model: ModelRef | None = None
    steps: int = Field(1, ge=1, le=16)
    drafts: int = Field(1, ge=1, le=64)
    temperature: float = Field(0.7, ge=0)
    max_tokens: int = Field(1024, gt=0)  # of a critique, and of a revision
    critique_template: str = "critique"
    revise_template: str = "revise"
