"""inspect_ai: an evaluation of one sample a prompt, without a scorer."""

import os

from benchmarks.generation.load import MAX_TOKENS, MODEL, TEMPERATURE, Meter, arguments, make_prompts


def main() -> None:
    args = arguments()
    os.environ |= {"BENCH_API_KEY": "none", "BENCH_BASE_URL": f"{args.url}/v1"}
    from inspect_ai import Task, eval
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.solver import generate

    dataset = MemoryDataset([Sample(input=prompt) for prompt in make_prompts(args.calls)])
    meter = Meter()
    (log,) = eval(
        Task(dataset=dataset, solver=generate()),
        model=f"openai-api/bench/{MODEL}",
        log_dir=str(args.folder),
        display="none",
        ctl_server=False,
        max_connections=args.concurrency,
        max_samples=args.concurrency,
        max_tokens=MAX_TOKENS,
        temperature=TEMPERATURE,
    )
    assert log.status == "success", log.error
    assert len(log.samples or ()) == args.calls
    meter.report(args.calls, "inspect_ai", "openai")


if __name__ == "__main__":
    main()
