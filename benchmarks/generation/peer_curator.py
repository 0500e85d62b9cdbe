"""curator: one LLM over the prompts; limits a minute are set out of reach, which it would otherwise guess."""

import os
from pathlib import Path

from benchmarks.generation.load import MAX_TOKENS, MODEL, TEMPERATURE, Meter, arguments, make_prompts


def main() -> None:
    args = arguments()
    os.environ |= {"TELEMETRY_ENABLED": "false", "CURATOR_CACHE_DIR": str(args.folder), "OPENAI_API_KEY": "none"}
    import litellm

    # The tokenizer that curator counts with is downloaded unless it is found here: litellm brings it along.
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(litellm.__file__).parent / "litellm_core_utils" / "tokenizers")
    from bespokelabs import curator

    llm = curator.LLM(
        model_name=MODEL,
        backend="openai",
        generation_params={"max_tokens": MAX_TOKENS, "temperature": TEMPERATURE},
        backend_params={
            "base_url": f"{args.url}/v1",
            "max_concurrent_requests": args.concurrency,
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 100_000_000_000,
        },
    )
    prompts = make_prompts(args.calls)
    meter = Meter()
    made = llm(prompts, working_dir=str(args.folder)).dataset
    assert len(made) == args.calls, made
    meter.report(args.calls, "bespokelabs-curator", "litellm")


if __name__ == "__main__":
    main()
