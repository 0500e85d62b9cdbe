"""``vllm:PATH_OR_ID``: a vLLM engine in this process (Linux; the extra ``rlaif[vllm]``).

``options`` are vLLM's engine arguments: ``{dtype: float32, max_model_len: 4096, gpu_memory_utilization: 0.8}``. The
engine starts with the first request, which takes a minute or more. Log-probs are those of the model itself, before
temperature; ``labels`` of a one-token request are among them whatever their rank, and those of a ``continuation`` are
vLLM's prompt log-probs (it then generates one token that nobody reads). ``seed`` fixes a sample up to the
rounding of batched arithmetic. A control token spelled out in a message is read as plain text.

Not covered: adapters per request, images, reasoning parsers. A vLLM *server* is an ``openai:`` model with ``base_url``.
"""

import asyncio
import difflib
import itertools
import math
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from rlaif.clients._chat import Chat
from rlaif.clients._refusals import Problem, classify, shorten
from rlaif.clients.base import Capabilities, Identity, scores_no_text
from rlaif.config.models import ModelConfig
from rlaif.embedded import resolve_model, weights_digest
from rlaif.errors import InputError, ProviderError, RequestError, TransientError
from rlaif.hashing import digest
from rlaif.types import ChatReply, ChatRequest, FinishReason, TokenLogprobs, Usage

# Engine arguments that say how much fits, not what is answered.
_SIZES = frozenset({"gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_batched_tokens", "max_num_seqs"})
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class VLLMClient:
    """A Client of a vLLM engine. Raises InputError when vLLM is not installed, the model is no folder, or an option is
    no engine argument. Clients of the same model and options in one process share its engine: two would not fit."""

    def __init__(self, model: ModelConfig) -> None:
        if find_spec("vllm") is None:
            raise InputError(f"{model.model}: vLLM is not installed; run `pip install 'rlaif[vllm]'`.")
        path = resolve_model(model.name)
        self._spec, self._timeout = model.model, model.timeout
        self._engine = _engine_of(model, path)
        self._engine.users += 1
        self._closed = False
        self.identity = _identity(model, Path(path))
        gives = model.logprobs is not False
        self.capabilities = Capabilities(logprobs=gives, json_schema=True, scores_text=gives)

    @property
    def _chat(self) -> Chat:
        return self._engine.chat

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Ask once. Raises TransientError, RequestError or ProviderError (the engine does not start, or died)."""
        if self._closed:
            raise RuntimeError("this client is closed")
        if request.top_logprobs is not None and not self.capabilities.logprobs:
            raise RequestError(
                f"{self._spec}: no log-probs, says its config.", kind="unsupported", parameter="logprobs"
            )
        if request.continuation is not None and not self.capabilities.scores_text:
            raise scores_no_text(self._spec)
        await self._engine.start()
        prompt = self._chat.encode(request.messages)
        given = [] if request.continuation is None else self._chat.encode_text(request.continuation)
        if len(prompt) + len(given) + request.max_tokens > self._engine.context:
            raise RequestError(
                f"{self._spec}: a prompt of {len(prompt)} tokens and {self._more(given, request)} exceed the model's"
                f" context of {self._engine.context}.",
                kind="context_length",
            )
        try:
            async with asyncio.timeout(self._timeout):
                if given:
                    return self._scored(given, await self._generate([*prompt, *given], _scoring_text()))
                result = await self._generate(prompt, _sampling(request))
                missing = self._missing_labels(request, result)
                extra = await self._generate(prompt, _scoring(missing)) if missing else None
        except TimeoutError:
            raise TransientError(f"{self._spec}: no reply within {self._timeout:g} s.", kind="timeout") from None
        return self._reply(result, extra)

    @staticmethod
    def _more(given: Sequence[int], request: ChatRequest) -> str:
        return f"a given text of {len(given)}" if given else f"max_tokens {request.max_tokens}"

    async def aclose(self) -> None:
        """End the engine, if no other client uses it."""
        if not self._closed:
            self._closed = True
            self._engine.users -= 1
            if not self._engine.users:
                await self._engine.stop()

    async def _generate(self, prompt: Sequence[int], params: Any) -> Any:
        """The engine's finished RequestOutput for ``prompt``."""
        from vllm.v1.engine.exceptions import EngineDeadError

        outputs = []
        try:
            async for output in self._engine.generate(prompt, params):
                outputs.append(output)  # one, since only the finished one is asked for
        except EngineDeadError as error:
            raise ProviderError(f"{self._spec}: the vLLM engine died: {shorten(str(error))}") from error
        except _refusals() as error:
            raise self._refused(error) from error
        except Exception as error:  # a full queue, a model's code
            raise TransientError(f"{self._spec}: vLLM failed: {shorten(str(error))}", kind="server") from error
        if not outputs or not outputs[-1].finished or not outputs[-1].outputs:
            raise TransientError(f"{self._spec}: vLLM ended without a reply.", kind="bad_reply")
        return outputs[-1]

    def _refused(self, error: Exception) -> RequestError:
        kind, parameter = classify(Problem(str(error), param=str(getattr(error, "parameter", None) or "")))
        return RequestError(
            f"{self._spec}: vLLM refused the request: {shorten(str(error))}", kind=kind, parameter=parameter
        )

    # -------------------------------------------------------------------------------------------------- the reply

    def _missing_labels(self, request: ChatRequest, result: Any) -> list[int]:
        """Tokens that spell a label of a one-token request and are not among its most likely ones."""
        if request.max_tokens != 1 or not result.outputs[0].logprobs:
            return []
        wanted = {token for label in request.labels for token in self._chat.label_tokens(label)}
        return sorted(wanted - set(result.outputs[0].logprobs[0]))

    def _reply(self, result: Any, extra: Any) -> ChatReply:
        output = result.outputs[0]
        text = output.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return ChatReply(
            text=text,
            finish_reason=_FINISH.get(output.finish_reason, "unknown"),
            usage=Usage(
                input_tokens=len(result.prompt_token_ids),
                output_tokens=len(output.token_ids),
                cached_input_tokens=result.num_cached_tokens or 0,
            ),
            model=self.identity.model,
            logprobs=self._logprobs(output, extra.outputs[0] if extra else None),
            raw={
                "text": text,
                "finish_reason": output.finish_reason,
                "stop_reason": output.stop_reason,
                "token_ids": list(output.token_ids),
            },
        )

    def _scored(self, given: Sequence[int], result: Any) -> ChatReply:
        """The reply with the log-probs of the ``given`` tokens, which end the engine's prompt."""
        rows = (result.prompt_logprobs or [])[-len(given) :]
        found = [row[token].logprob for token, row in zip(given, rows, strict=False) if row and token in row]
        if len(found) != len(given) or not all(map(math.isfinite, found)):
            raise RequestError(f"{self._spec}: vLLM gives this text no finite probability.", kind="invalid")
        return ChatReply(
            text="",
            finish_reason="stop",
            usage=Usage(input_tokens=len(result.prompt_token_ids), cached_input_tokens=result.num_cached_tokens or 0),
            model=self.identity.model,
            logprobs=tuple(
                TokenLogprobs(token=self._chat.token_text(token), logprob=min(0.0, logprob), top=())
                for token, logprob in zip(given, found, strict=True)
            ),
            raw={"token_ids": list(given)},
        )

    def _logprobs(self, output: Any, extra: Any) -> tuple[TokenLogprobs, ...] | None:
        if output.logprobs is None:
            return None
        rows = [{token: entry.logprob for token, entry in row.items()} for row in output.logprobs]
        if extra is not None:
            scored = extra.logprobs[0]
            rows[0] |= {token: entry.logprob for token, entry in scored.items() if token not in rows[0]}
        return tuple(self._token(token, row) for token, row in zip(output.token_ids, rows, strict=True))

    def _token(self, token: int, row: Mapping[int, float]) -> TokenLogprobs:
        ranked = sorted(row.items(), key=lambda entry: -entry[1])
        top = tuple((self._chat.token_text(other), logprob) for other, logprob in ranked)
        return TokenLogprobs(token=self._chat.token_text(token), logprob=row[token], top=top)


class _Engine:
    """One vLLM engine and the clients that use it. ``chat`` and ``context`` (tokens) are there once it has started."""

    chat: Chat
    context: int

    def __init__(self, spec: str, args: Any) -> None:
        self.users = 0
        self._spec, self._args = spec, args
        self._engine: Any = None
        self._failure = ""
        self._starting = asyncio.Lock()
        self._numbers = itertools.count()

    async def start(self) -> None:
        """Start the engine, unless it runs. Raises ProviderError, the same one every time."""
        async with self._starting:
            if self._failure:
                raise ProviderError(self._failure)
            if self._engine is not None:
                return
            from vllm.v1.engine.async_llm import AsyncLLM

            try:
                # In a thread: the event loop may serve other models meanwhile.
                engine = await asyncio.to_thread(AsyncLLM.from_engine_args, self._args)
                self.chat = Chat(engine.get_tokenizer(), self._spec)
            except Exception as error:  # a config, a model's code, CUDA: anything may be raised
                said = shorten(str(error) or type(error).__name__)
                self._failure = f"{self._spec}: the vLLM engine did not start: {said}"
                raise ProviderError(self._failure) from error
            self.context = int(engine.model_config.max_model_len)
            self._engine = engine

    def generate(self, prompt: Sequence[int], params: Any) -> AsyncIterator[Any]:
        from vllm import TokensPrompt

        tokens = TokensPrompt(prompt_token_ids=list(prompt))
        outputs: AsyncIterator[Any] = self._engine.generate(tokens, params, f"rlaif-{next(self._numbers)}")
        return outputs

    async def stop(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)


_engines: WeakValueDictionary[str, _Engine] = WeakValueDictionary()


def _engine_of(model: ModelConfig, path: str) -> _Engine:
    args = _engine_args(model, path)
    key = digest(path, model.options)
    engine = _engines.get(key)
    if engine is None or not engine.users:
        engine = _engines[key] = _Engine(model.model, args)
    return engine


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request it will never answer: a ValueError, or (0.31 and later) an error of its own."""
    try:
        from vllm.exceptions import VLLMClientError
    except ImportError:
        return (ValueError,)
    return (ValueError, VLLMClientError)


def _engine_args(model: ModelConfig, path: str) -> Any:
    # vLLM logs every detail of its start to the terminal; warnings are enough unless the user asked for more.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = sorted({field.name for field in fields(AsyncEngineArgs)} - {"model"})
    for name in model.options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{model.model}: options.{name} is no engine argument of vLLM.{hint}")
    try:
        return AsyncEngineArgs(**{"model": path, "disable_log_stats": True, **model.options})
    except (TypeError, ValueError) as error:
        raise InputError(f"{model.model}: options: {shorten(str(error))}") from None


def _identity(model: ModelConfig, path: Path) -> Identity:
    """A folder is named with a digest of its weights, so that a model retrained in the same folder is another model."""
    extra = {name: value for name, value in model.options.items() if name not in _SIZES}
    if not path.is_dir():
        return Identity(backend="vllm", model=model.name, extra=extra)
    extra["weights"] = weights_digest(path)
    shown = model.name if model.name == "smollm2" else f"{path.resolve().name}@{extra['weights'][:8]}"
    return Identity(backend="vllm", model=shown, extra=extra)


def _sampling(request: ChatRequest) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    schema = request.json_schema
    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stop=list(request.stop) or None,
        seed=request.seed,
        logprobs=request.top_logprobs,
        structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _scoring_text() -> Any:
    """Ask for the log-probs of the prompt's own tokens; one token must be generated with them."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY)


def _scoring(tokens: Sequence[int]) -> Any:
    """Ask for the log-probs of these tokens as the next one, and nothing else."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        max_tokens=1, temperature=0.0, logprob_token_ids=list(tokens), output_kind=RequestOutputKind.FINAL_ONLY
    )
