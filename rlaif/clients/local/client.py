"""The local transport as a Client: concurrent requests become batches on one thread.

Callers wait on futures; the event loop stays free. A batch holds requests of one kind (sampling, or the probabilities
of the next token) and of similar prompt length; the oldest request is always in the next batch, so none starves.
Clients of the same model in one process share its weights and its thread: two threads would only fight for the cores.
"""

import asyncio
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

from pydantic import Field, ValidationError

from rlaif.clients.base import Capabilities, Identity, scores_no_text
from rlaif.clients.local.chat import Chat, Job
from rlaif.config.base import Config
from rlaif.config.models import ModelConfig
from rlaif.embedded import keep_buffers, resolve_model, weight_files, weights_digest
from rlaif.errors import InputError, ProviderError, RequestError, RlaifError
from rlaif.hashing import digest
from rlaif.types import ChatReply, ChatRequest, Usage

if TYPE_CHECKING:
    from rlaif.clients.local.decode import Decoder

# How long to wait for more requests before a batch starts: until none came for QUIET seconds, at most GATHER in all.
# A batch takes seconds, so a fuller one is worth the wait.
QUIET, GATHER = 0.01, 0.25


class LocalOptions(Config):
    """``options`` of a ``local:`` model. ``device``: as torch names it (default: CUDA if there is one, else the CPU).
    ``dtype``: of the weights (default: bfloat16 on CUDA, else float32). ``batch_size``: most rows sampled at once."""

    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    batch_size: int = Field(64, gt=0)


class LocalClient:
    """A Client of a model that transformers runs in this process.

    Raises InputError at once for a model that cannot be opened; the weights load with the first request. A request with
    ``max_tokens=1``, ``top_logprobs`` and temperature 0 is answered by one forward pass: its reply holds the exact
    log-probs of the next token's best alternatives and of every one-token spelling of its ``labels``, and its
    ``finish_reason`` is "stop", since nothing more was asked for; so is one with a ``continuation``, with the exact
    log-prob of each of its tokens (the end of the turn is not one of them). ``seed`` and ``sample_index`` fix a sample
    whatever else runs at the same time, up to the rounding of batched arithmetic.
    """

    def __init__(self, model: ModelConfig) -> None:
        try:
            options = LocalOptions.model_validate(model.options)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            known = ", ".join(LocalOptions.model_fields)
            raise InputError(f"{model.model}: options.{first['loc'][0]}: {first['msg']} (known: {known}).") from None
        self._worker = _worker_of(model, options)
        self._worker.users += 1
        self._closed = False
        gives = model.logprobs is not False
        self.capabilities = Capabilities(logprobs=gives, json_schema=False, scores_text=gives)

    @property
    def identity(self) -> Identity:
        return self._worker.identity

    async def complete(self, request: ChatRequest) -> ChatReply:
        if self._closed:
            raise RuntimeError("this client is closed")
        if request.continuation is not None and not self.capabilities.scores_text:
            raise scores_no_text(str(self.identity))
        if request.json_schema is not None:
            raise RequestError(
                f"{self.identity}: local models have no JSON-schema output.",
                kind="unsupported",
                parameter="json_schema",
            )
        job = Job(request)
        self._worker.submit(job)
        try:
            return await asyncio.wrap_future(job.reply)
        except asyncio.CancelledError:
            job.wanted = False  # a running batch drops it at its next step
            raise

    async def aclose(self) -> None:
        """Give up what is still asked for and free the model, if no other client uses it."""
        if not self._closed:
            self._closed = True
            self._worker.users -= 1
            if not self._worker.users:
                await asyncio.to_thread(self._worker.stop)


class _Worker:
    """The thread that owns one model."""

    def __init__(self, identity: Identity, chat: Chat, context: int, load: Callable[[], "Decoder"], rows: int) -> None:
        self.identity, self.users = identity, 0
        self._chat, self._context, self._load, self._rows = chat, context, load, rows
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._running: Sequence[Job] = ()

    def submit(self, job: Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"rlaif {self.identity}", daemon=True)
            self._thread.start()
        self._inbox.put(job)

    def stop(self) -> None:
        """End the thread at its next step and free the model; what was still asked for is cancelled."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(None)
            for job in self._running:
                job.wanted = False
            thread.join()

    def _run(self) -> None:
        try:
            decoder = self._load()
        except Exception as error:  # noqa: BLE001  (transformers, safetensors and torch raise of everything)
            said = f"{self.identity}: the model cannot be loaded: {_first_line(error)}"
            while (job := self._inbox.get()) is not None:
                job.reply.set_exception(ProviderError(said))
            return
        waiting: list[Job] = []
        while self._gather(waiting):
            batch = self._next_batch(waiting, decoder)
            waiting = [job for job in waiting if job not in batch]
            self._running = [job for job in batch if job.reply.running() or job.reply.set_running_or_notify_cancel()]
            if self._running:
                waiting = [*self._answer(self._running, decoder), *waiting]
            self._running = ()
        for job in waiting:
            job.reply.cancel()

    def _gather(self, waiting: list[Job]) -> bool:
        """Take in what was asked, waiting for it when there is nothing to do. False: the client was closed."""
        until = float("inf")
        while True:
            try:
                job = self._inbox.get(timeout=QUIET if waiting else None)
            except queue.Empty:
                return True
            if job is None:
                return False
            try:
                self._encode(job)
            except RlaifError as error:
                job.reply.set_exception(error)
                continue
            waiting.append(job)
            until = min(until, time.monotonic() + GATHER)
            if time.monotonic() > until:
                return True

    def _encode(self, job: Job) -> None:
        request = job.request
        job.prompt = self._chat.encode(request.messages)
        if request.continuation is not None:
            job.given = self._chat.encode_text(request.continuation)
        if len(job.prompt) + (len(job.given) or request.max_tokens) > self._context:
            more = f"a given text of {len(job.given)}" if job.given else f"max_tokens {request.max_tokens}"
            raise RequestError(
                f"{self.identity}: a prompt of {len(job.prompt)} tokens and {more} exceed the model's context of"
                f" {self._context}.",
                kind="context_length",
            )

    def _next_batch(self, waiting: Sequence[Job], decoder: "Decoder") -> list[Job]:
        """The batch that holds the oldest request, among all that can be made of those of its kind."""
        oldest = waiting[0]
        alike = decoder.in_order([j for j in waiting if j.scoring == oldest.scoring])
        batch: list[Job] = []
        for job in alike:
            if batch and not (len(batch) < self._rows and decoder.fits([*batch, job])):
                if oldest in batch:
                    break
                batch = []
            batch.append(job)
        return batch

    def _answer(self, batch: Sequence[Job], decoder: "Decoder") -> Sequence[Job]:
        """Run a batch; returns the requests to try again in smaller batches."""
        from rlaif.clients.local.decode import out_of_memory

        failure: RlaifError
        try:
            if batch[0].scoring:
                decoder.score(batch)
            else:
                decoder.sample(batch)
        except RlaifError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  (a model's code may raise anything; its callers must hear of it)
            if not out_of_memory(error):
                failure = ProviderError(f"{self.identity}: the model failed: {_first_line(error)}")
            elif len(batch) > 1:
                self._rows = len(batch) // 2
                for job in batch:
                    job.reset()
                return batch
            else:
                size = f"{len(batch[0].prompt)} + {batch[0].request.max_tokens}"
                failure = RequestError(
                    f"{self.identity}: one request of {size} tokens does not fit in memory.", kind="context_length"
                )
        else:
            for job in batch:
                if job.failure is not None:
                    job.reply.set_exception(job.failure)
                elif job.wanted:
                    job.reply.set_result(self._reply(job))
                else:  # it was cut short
                    job.reply.set_exception(CancelledError())
            return ()
        for job in batch:
            job.reply.set_exception(failure)
        return ()

    def _reply(self, job: Job) -> ChatReply:
        text = self._chat.decode(job.tokens)
        stops = [at for stop in job.request.stop if (at := text.find(stop)) >= 0]
        return ChatReply(
            text=text[: min(stops)] if stops else text,
            finish_reason=job.finish,
            usage=Usage(input_tokens=len(job.prompt) + len(job.given), output_tokens=len(job.tokens)),
            model=str(self.identity.model),
            logprobs=tuple(job.logprobs) if job.request.top_logprobs is not None or job.given else None,
            raw={"token_ids": job.given or job.tokens},
        )


# One worker for a model in this process, however many clients name it.
_workers: WeakValueDictionary[tuple[str, ...], _Worker] = WeakValueDictionary()


def _worker_of(model: ModelConfig, options: LocalOptions) -> _Worker:
    path = resolve_model(model.name)
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise InputError(f"{model.model}: {error}; run `pip install 'rlaif[local]'`.") from None
    device = torch.device(_device(model, options))
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    config, tokenizer = _open(model.model, path)
    identity = _identity(model.name, path, dtype, config)
    key = (path, str(device), str(options.batch_size), digest(identity.model_dump()))
    worker = _workers.get(key)
    if worker is None:
        chat = Chat(tokenizer, model.model)

        def load() -> "Decoder":
            from rlaif.clients.local.decode import load_decoder

            if device.type == "cpu":
                keep_buffers()
            return load_decoder(path, chat, str(device), dtype)

        worker = _workers[key] = _Worker(identity, chat, _context(config, tokenizer), load, options.batch_size)
    return worker


def _device(model: ModelConfig, options: LocalOptions) -> str:
    import torch

    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or no such device here
        raise InputError(f"{model.model}: options.device {name!r}: {_first_line(error)}") from None
    return name


def _open(name: str, path: str) -> tuple[Any, Any]:
    """Config and tokenizer of a model. Raises InputError when there is no such model."""
    from transformers import AutoConfig, AutoTokenizer

    folder = Path(path)
    if folder.is_dir() and not weight_files(folder):
        raise InputError(f"{name}: {folder} holds no weights (*.safetensors); name the folder a model was saved in.")
    adapter = folder / "adapter_config.json"
    try:
        base = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else path
        return AutoConfig.from_pretrained(base), AutoTokenizer.from_pretrained(path)
    except Exception as error:
        raise InputError(f"{name}: transformers cannot open this model: {_first_line(error)}") from error


def _identity(name: str, path: str, dtype: str, config: Any) -> Identity:
    """A folder is named with a digest of its weights, so that a model retrained in the same folder is another model."""
    extra = {"dtype": dtype}
    if not Path(path).is_dir():
        extra["revision"] = str(getattr(config, "_commit_hash", None))
        return Identity(backend="local", model=name, extra=extra)
    extra["weights"] = weights_digest(Path(path))
    shown = name if name == "smollm2" else f"{Path(path).resolve().name}@{extra['weights'][:8]}"
    return Identity(backend="local", model=shown, extra=extra)


def _context(config: Any, tokenizer: Any) -> int:
    """Positions the model has, by its config and by its tokenizer (which says 10**30 when it does not know)."""
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(min(positions or tokenizer.model_max_length, tokenizer.model_max_length))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
