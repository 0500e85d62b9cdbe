"""How a config names a model: ``backend:name``, or a mapping that says more."""

import difflib
import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rlaif.config.base import Config

MAX_BATCH_REQUESTS = {"openai": 50_000, "anthropic": 100_000}  # the providers' own limits
BACKENDS = ("openai", "anthropic", "vllm", "local", "scripted")


class PriceConfig(Config):
    """USD per million tokens. ``cached_input`` and ``cache_write``: default to ``input``. ``batch_discount``: share of
    the price that the batch API takes off (0.5 at OpenAI and Anthropic)."""

    input: Decimal = Field(ge=0)
    output: Decimal = Field(ge=0)
    cached_input: Decimal | None = Field(None, ge=0)
    cache_write: Decimal | None = Field(None, ge=0)
    batch_discount: Decimal = Field(Decimal(0), ge=0, le=1)


class BatchConfig(Config):
    """How requests are handed to a batch API (``transport: batch``).

    A batch is submitted when the run has had nothing else to do for ``quiet_seconds``, or when it is full:
    ``max_requests`` and ``max_bytes`` may be less than the provider's own limits (OpenAI: 50,000 and 200 MB; Anthropic:
    100,000 and 256 MB). ``poll_seconds``: how often its state is asked for, at first. ``max_attempts``: how many
    batches a request may be part of before it is dropped because each of them expired or failed on it.
    ``finish_online_after``: seconds from a batch's submission after which it is cancelled and what it left unanswered
    is asked online, at the online price.
    """

    max_requests: int | None = Field(None, gt=0)
    max_bytes: int | None = Field(None, gt=0)
    quiet_seconds: float = Field(2.0, gt=0)
    poll_seconds: float = Field(30.0, gt=0)
    max_attempts: int = Field(3, gt=0)
    finish_online_after: float | None = Field(None, ge=0)


class ModelConfig(Config):
    """A model and how to reach it.

    ``base_url``: any server that speaks the backend's protocol. ``api_key_env``: the environment variable that holds
    the key (default: OPENAI_API_KEY or ANTHROPIC_API_KEY); the key itself appears in no file. ``timeout``: seconds from
    the sending of a request. ``options``: passed to the backend as they are (see its module in rlaif/clients).
    ``price``: what it costs, where the price list does not know (a server of your own) or is wrong for you.
    ``transport``: "batch" hands the requests to OpenAI's or Anthropic's batch API, at half the price and with replies
    within a day; ``batch`` says how.
    """

    model: str
    base_url: str | None = None
    api_key_env: str | None = None
    rpm: float | None = Field(None, gt=0)
    tpm: float | None = Field(None, gt=0)
    max_concurrency: int | None = Field(None, gt=0)
    timeout: float = Field(600.0, gt=0)
    logprobs: bool | None = None  # False: never ask this model for log-probs
    options: dict[str, Any] = Field(default_factory=dict)
    price: PriceConfig | None = None
    transport: Literal["online", "batch"] = "online"
    batch: BatchConfig | None = None

    @field_validator("model")
    @classmethod
    def _known_backend(cls, value: str) -> str:
        backend, sep, name = value.partition(":")
        if not sep or not name or backend not in BACKENDS:
            near = difflib.get_close_matches(backend, BACKENDS, n=1)
            hint = f" Did you mean '{near[0]}:{name or 'NAME'}'?" if near else ""
            raise ValueError(
                f"'{value}' is not a model; write BACKEND:NAME with one of {', '.join(BACKENDS)}"
                f" (openai:gpt-4.1-mini, local:smollm2).{hint}"
            )
        if backend == "scripted" and not all(name.rpartition(":")[::2]):
            raise ValueError(f"'{value}': write scripted:MODULE:OBJECT, such as scripted:my_tests.fakes:judge.")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _name_and_no_key(cls, value: str | None) -> str | None:
        # Keys get pasted here. Many would do as a name, but for the custom that these are in capitals.
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
            raise ValueError(
                "give the name of an environment variable (A-Z, 0-9, _), such as OPENAI_API_KEY; a key itself belongs"
                " into that variable and into no file"
            )
        return value

    @model_validator(mode="after")
    def _url_only_for_servers(self) -> "ModelConfig":
        if self.base_url is not None:
            if self.backend not in ("openai", "anthropic"):
                raise ValueError(f"base_url is for openai: and anthropic: models, not for '{self.model}'.")
            if not self.base_url.startswith(("http://", "https://")):
                raise ValueError("base_url must begin with http:// or https://.")
        return self

    @model_validator(mode="after")
    def _batch_only_where_there_is_one(self) -> "ModelConfig":
        if self.transport == "batch" and self.backend not in ("openai", "anthropic"):
            raise ValueError(f"transport: batch is for openai: and anthropic: models, not for '{self.model}'.")
        if self.batch is not None and self.transport != "batch":
            raise ValueError("the settings under 'batch' need transport: batch.")
        return self

    @property
    def backend(self) -> Literal["openai", "anthropic", "vllm", "local", "scripted"]:
        return self.model.partition(":")[0]  # type: ignore[return-value]

    @property
    def requests_at_once(self) -> int:
        """How many requests wait together: for a model with ``transport: batch`` as many as fill one; else 1."""
        if self.transport != "batch":
            return 1
        most = MAX_BATCH_REQUESTS[self.backend]
        return min(most, (self.batch and self.batch.max_requests) or most)

    @property
    def name(self) -> str:
        return self.model.partition(":")[2]


def _from_string(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


ModelRef = Annotated[ModelConfig, BeforeValidator(_from_string)]
