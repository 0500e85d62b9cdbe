"""distilabel: a pipeline of one text generation step, whose batches hold as many prompts as are asked at once."""

import multiprocessing
import os

from benchmarks.generation.load import MAX_TOKENS, MODEL, TEMPERATURE, Meter, arguments, make_prompts


def main() -> None:
    args = arguments()
    # Its own list of loggers to silence names httpx, not httpx2: without this it prints a line for each request.
    os.environ |= {"DISTILABEL_CACHE_DIR": str(args.folder / "cache"), "DISTILABEL_LOG_LEVEL": "WARNING"}
    from distilabel.models.llms import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    at_once = args.concurrency or 64
    with Pipeline(name="bench", cache_dir=args.folder / "cache") as pipeline:
        load = LoadDataFromDicts(
            data=[{"instruction": prompt} for prompt in make_prompts(args.calls)], batch_size=at_once
        )
        llm = OpenAILLM(
            model=MODEL,
            base_url=f"{args.url}/v1",
            api_key="none",
            generation_kwargs={"max_new_tokens": MAX_TOKENS, "temperature": TEMPERATURE},
        )
        task = TextGeneration(llm=llm, input_batch_size=at_once)
        load >> task
    meter = Meter()
    made = pipeline.run(use_cache=False)["default"]["train"]
    assert len(made) == args.calls, made
    assert all(made["generation"]), made
    for process in multiprocessing.active_children():
        process.join(10)  # their CPU time counts only once they have ended
    meter.report(args.calls, "distilabel", "openai")


if __name__ == "__main__":
    main()
