"""rlaif: requests through `open_client` with a ledger on disk, or a whole generate run.

Variants: "openai", "anthropic", "generate". Without ``--concurrency`` and ``--rpm`` nothing is said about the server.
"""

import asyncio
import json
from importlib import import_module
from pathlib import Path

from benchmarks.generation.load import MAX_TOKENS, MODEL, TEMPERATURE, Arguments, Meter, arguments, make_prompts
from rlaif.clients.base import Client
from rlaif.config.generate import GenerateConfig
from rlaif.config.models import ModelConfig
from rlaif.engine import Ledger, open_client
from rlaif.engine.limits import LimitedClient, Limiter
from rlaif.generation import generate
from rlaif.types import ChatRequest, Message

CALLERS = 256  # requests that wait for an answer at any time: as in a run, 64 prompts with 4 samples each


def model(args: Arguments) -> ModelConfig:
    backend, url = ("anthropic", args.url) if args.variant == "anthropic" else ("openai", f"{args.url}/v1")
    return ModelConfig(model=f"{backend}:{MODEL}", base_url=url, max_concurrency=args.concurrency, rpm=args.rpm)


def limiter_of(client: Client) -> Limiter:
    """The limiter below whatever is stacked upon it."""
    while not isinstance(client, LimitedClient):
        client = client._client  # type: ignore[attr-defined]
    return client.limiter


async def calls(args: Arguments) -> None:
    with Ledger.open(args.folder / "ledger.sqlite") as ledger:
        client = open_client(model(args), ledger, "sample")
        limiter = limiter_of(client)
        callers = asyncio.Semaphore(CALLERS)

        async def one(prompt: str) -> str:
            async with callers:
                message = Message(role="user", content=prompt)
                request = ChatRequest(messages=(message,), max_tokens=MAX_TOKENS, temperature=TEMPERATURE)
                return (await client.complete(request)).text

        prompts = make_prompts(args.warm_up + args.calls)
        await asyncio.gather(*map(one, prompts[: args.warm_up]))
        meter = Meter()
        answers = await asyncio.gather(*map(one, prompts[args.warm_up :]))
        assert all(answers)
        await client.aclose()
    packages = ("rlaif", args.variant)
    meter.report(args.calls, *packages, limit=limiter.limit, sent=limiter.sent, throttled=limiter.throttled)


def run(args: Arguments) -> None:
    import_module("rlaif.clients.openai")  # what a run imports on its way
    import_module("pyarrow.parquet")
    prompts = make_prompts(args.calls // 8)
    source = args.folder / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    config = run_config(args, source)
    meter = Meter()
    manifest = generate(config).manifest
    made = manifest["counts"]
    assert made["comparisons"]["planned"] == 2 * len(prompts), made
    meter.report(made["samples"]["made"] + made["judgements"]["made"], "rlaif", "openai")


def run_config(args: Arguments, source: Path) -> GenerateConfig:
    """Four samples of each prompt, judged in two pairs and both orders: 8 calls a prompt."""
    constitution = args.folder / "constitution.yaml"
    constitution.write_text(
        'name: quality\nversion: "1"\nprinciples:\n  - id: better\n    compare: Which response is better?\n'
    )
    return GenerateConfig.model_validate(
        {
            "prompts": str(source),
            "constitution": str(constitution),
            "policy": {"model": model(args), "n": 4, "temperature": TEMPERATURE, "max_tokens": MAX_TOKENS},
            "judge": {"models": [model(args)], "labels": "text", "comparisons": "disjoint"},
            "pairing": {"strategy": "all"},
            "out": str(args.folder / "run"),
        }
    )


def main() -> None:
    args = arguments()
    if args.variant == "generate":
        run(args)
    else:
        asyncio.run(calls(args))


if __name__ == "__main__":
    main()
