"""Label-probability judging on the local transport against scoring each prompt alone, on the embedded model.

    python -m benchmarks.local_judge [--repeats 5] [--prompts 2] [--case NAME] [--count] [--json] [--model MODEL]

The requests are those of the shipped judges on made-up responses of 30 to 130 words. Both sides run in this process, on
the same weights in float32, with the same allocator setting, in alternating repeats. "alone" is a loop over them: one
forward pass each, logits where they are needed and nowhere else. "client" asks for all of them at once, as a run does.
Compared are the seconds and the CPU seconds of the process (which other load on the machine blurs less), medians and
ranges over the repeats; and every probability of a label, or log-prob of a response, of the two sides.

Cases, each with both orders where pairs are shown: "pairs" (2 responses a prompt, one principle drawn), "groups" (4
responses: 6 comparisons; this is the default of a run), "groups, all" (principles: all, 4 of them), "principles" (2
responses, principles: each), "principles last" (the same with the template pairwise_principle_last), "score" and
"likelihood" (4 responses).

Also printed: how many tokens the rows have, how many of them the packed passes read, and the share of the client's time
that went into the passes: the quotient of the tokens is the speed-up that sharing alone can give. --count prints only
these token counts, which depend on no machine; with more prompts a little more is shared.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.local_generate import MANNERS, TOPICS
from rlaif.clients.base import Capabilities
from rlaif.clients.local import LocalClient, embedded_model_dir, keep_buffers, packed
from rlaif.clients.scripted import ScriptedClient
from rlaif.config.generate import JudgeConfig
from rlaif.config.models import ModelConfig
from rlaif.constitution import load_constitution
from rlaif.hashing import uniform
from rlaif.judges import judge_comparisons, make_judge
from rlaif.pairing import plan_comparisons
from rlaif.sampling import given
from rlaif.types import ChatReply, ChatRequest, Message, Prompt

WORDS = (
    "the", "a", "of", "to", "and", "in", "that", "is", "it", "for", "as", "with", "on", "by", "this", "from", "are",
    "or", "can", "at", "which", "one", "into", "when", "than", "first", "water", "light", "people", "small", "large",
)  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "pairs": {"n": 2},
    "groups": {"n": 4},
    "groups, all": {"n": 4, "principles": "all"},
    "principles": {"n": 2, "principles": "each"},
    "principles last": {"n": 2, "principles": "each", "template": "pairwise_principle_last"},
    "score": {"n": 4, "type": "score"},
    "likelihood": {"n": 4, "type": "likelihood"},
}


def response(seed: str) -> str:
    """Sentences of no sense, 30 to 130 words in all."""
    draw = random.Random(seed)
    words = [draw.choice(WORDS) for _ in range(30 + int(100 * uniform("length", seed)))]
    sentences = [" ".join(words[i : i + 12]).capitalize() + "." for i in range(0, len(words), 12)]
    return " ".join(sentences)


async def requests_of(case: str, prompts: int) -> list[ChatRequest]:
    """What a judge asks about that many prompts."""
    settings = dict(CASES[case])
    n = settings.pop("n")
    config = JudgeConfig.model_validate({"models": ["scripted:m:o"], **settings})
    client = ScriptedClient(
        lambda request: ChatReply(text="", finish_reason="unknown"),
        capabilities=Capabilities(logprobs=True, scores_text=True),
    )
    judge = make_judge(client, config, "logprob")
    whole = load_constitution("helpful-harmless")
    constitution = whole.model_copy(update={"principles": whole.principles[:4]})
    for i in range(prompts):
        text = MANNERS[i % len(MANNERS)].format(TOPICS[i % len(TOPICS)])
        prompt = Prompt(id=f"p{i}", messages=(Message(role="user", content=text),))
        completions, _ = given(prompt, [response(f"{i}-{k}") for k in range(n)], "made up")
        comparisons, _ = plan_comparisons(prompt, completions)
        await judge_comparisons(comparisons, constitution, [judge], 0)
    return list(dict.fromkeys(client.requests))


class Alone:
    """One forward pass a request, written out."""

    def __init__(self, path: str, client: LocalClient) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._chat = client._worker._chat
        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def __call__(self, requests: Sequence[ChatRequest]) -> list[Any]:
        """The log-probs of the next token, or of each token of the given text."""
        return [self._one(request) for request in requests]

    def _one(self, request: ChatRequest) -> Any:
        prompt = self._chat.encode(request.messages)
        text = self._chat.encode_text(request.continuation) if request.continuation else []
        ids = self._torch.tensor([prompt + text[:-1]])
        with self._torch.inference_mode():
            out = self._model(input_ids=ids, logits_to_keep=max(1, len(text)), use_cache=False)
            logprobs = out.logits[0].log_softmax(-1)
        return logprobs[range(len(text)), text] if text else logprobs[-1]


def largest_difference(requests: Sequence[ChatRequest], replies: Sequence[ChatReply], alone: Sequence[Any]) -> float:
    """Between the two sides' log-probs of given texts, and of every label and likely token."""
    found = 0.0
    for request, reply, expected in zip(requests, replies, alone, strict=True):
        assert reply.logprobs is not None
        if request.continuation:
            pairs = [(t.logprob, float(e)) for t, e in zip(reply.logprobs, expected, strict=True)]
        else:
            ranked = expected.sort(descending=True).values.tolist()
            pairs = [(logprob, ranked[i]) for i, (_, logprob) in enumerate(reply.logprobs[0].top[:20])]
        found = max(found, *(abs(a - b) for a, b in pairs))
    return found


class Meter:
    """Counts what the decoder of a client reads, and how long that takes."""

    def __init__(self, client: LocalClient) -> None:
        self.rows = self.read = self.passes = 0
        self.seconds = 0.0
        self._client = client

    def __enter__(self) -> "Meter":
        self._usual: Callable[..., Any] = packed.read_packed

        def counted(model: Any, together: Any, keep: Sequence[int]) -> Any:
            begun = time.perf_counter()
            logits = self._usual(model, together, keep)
            self.seconds += time.perf_counter() - begun
            self.rows += sum(map(len, together.paths))
            self.read += together.ids.shape[1]
            self.passes += 1
            return logits

        packed.read_packed = counted  # type: ignore[assignment]
        return self

    def __exit__(self, *error: object) -> None:
        packed.read_packed = self._usual


async def compare(case: str, client: LocalClient, alone: Alone, prompts: int, repeats: int) -> dict[str, Any]:
    requests = await requests_of(case, prompts)
    await client.complete(requests[0])
    alone(requests[:1])
    taken: dict[str, list[tuple[float, float]]] = {"alone": [], "client": []}
    largest = 0.0
    for repeat in range(repeats):
        results: dict[str, Any] = {}
        for side in sorted(taken, reverse=repeat % 2 == 0):
            begun, cpu = time.perf_counter(), time.process_time()
            if side == "client":
                with Meter(client) as meter:
                    results[side] = await asyncio.gather(*map(client.complete, requests))
            else:
                results[side] = alone(requests)
            taken[side].append((time.perf_counter() - begun, time.process_time() - cpu))
        largest = max(largest, largest_difference(requests, results["client"], results["alone"]))
    median = {s: [statistics.median(v[k] for v in taken[s]) for k in (0, 1)] for s in taken}
    ratios = [a[1] / c[1] for a, c in zip(taken["alone"], taken["client"], strict=True)]
    return {
        "case": case,
        "requests": len(requests),
        "ratio": round(median["alone"][0] / median["client"][0], 2),
        "cpu_ratio": round(median["alone"][1] / median["client"][1], 2),
        "cpu_ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        **{f"{s}_seconds": round(median[s][0], 2) for s in taken},
        **{f"{s}_range": [round(min(v)[0], 2), round(max(v)[0], 2)] for s, v in taken.items()},
        "tokens": meter.rows,
        "tokens_read": meter.read,
        "token_ratio": round(meter.rows / meter.read, 2),
        "passes": meter.passes,
        "share_in_passes": round(meter.seconds / taken["client"][-1][0], 3),
        "largest_difference": largest,
        "repeats": repeats,
    }


async def count(cases: Sequence[str], prompts: int, model: str) -> None:
    """What the decoder would read, in as many passes as it would make."""
    client = LocalClient(ModelConfig(model=model, options={"device": "cpu"}))
    chat = client._worker._chat
    for case in cases:
        requests = await requests_of(case, prompts)
        texts = [chat.encode_text(r.continuation)[:-1] if r.continuation else [] for r in requests]
        rows = sorted(chat.encode(r.messages) + text for r, text in zip(requests, texts, strict=True))
        read = sum(len(row) - packed.shared_tokens(before, row) for before, row in zip([[], *rows], rows, strict=False))
        total = sum(map(len, rows))
        print(f"{case}: {len(rows)} requests, {total} tokens, read {read}, ratio {total / read:.2f}")
    await client.aclose()


async def run(args: argparse.Namespace) -> None:
    if args.count:
        return await count(args.case or list(CASES), args.prompts, args.model)
    model = ModelConfig(model=args.model, options={"dtype": "float32", "device": "cpu"})
    client = LocalClient(model)
    alone = Alone(str(embedded_model_dir()) if model.name == "smollm2" else model.name, client)
    for case in args.case or CASES:
        result = await compare(case, client, alone, args.prompts, args.repeats)
        if args.json:
            print(json.dumps(result), flush=True)
            continue
        r = result
        print(
            f"{case}: {r['requests']} requests, alone {r['alone_seconds']} s ({r['alone_range'][0]}-"
            f"{r['alone_range'][1]}), client {r['client_seconds']} s ({r['client_range'][0]}-{r['client_range'][1]}),"
            f" ratio {r['ratio']}; CPU seconds {r['cpu_ratio']} ({r['cpu_ratio_range'][0]}-{r['cpu_ratio_range'][1]});"
            f" tokens {r['tokens']} / read {r['tokens_read']} = {r['token_ratio']} in {r['passes']} passes"
            f" ({r['share_in_passes']:.0%} of the time); largest difference {r['largest_difference']:.1e} nats",
            flush=True,
        )
    await client.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--model", default="local:smollm2")
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--json", action="store_true")
    keep_buffers()
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
