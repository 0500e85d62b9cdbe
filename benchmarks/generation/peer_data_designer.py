"""data-designer: a seed data set of the prompts and one text column."""

import os

from benchmarks.generation.load import MAX_TOKENS, MODEL, TEMPERATURE, Meter, arguments, make_prompts


def main() -> None:
    args = arguments()
    os.environ |= {"NEMO_TELEMETRY_ENABLED": "false", "DATA_DESIGNER_HOME": str(args.folder / "home")}
    import data_designer.config as dd
    import pandas as pd
    from data_designer.interface import DataDesigner

    prompts = pd.DataFrame({"instruction": make_prompts(args.calls)})
    model = dd.ModelConfig(
        alias="bench",
        model=MODEL,
        provider="bench",
        skip_health_check=True,
        inference_parameters=dd.ChatCompletionInferenceParams(
            max_tokens=MAX_TOKENS, temperature=TEMPERATURE, max_parallel_requests=args.concurrency or 64
        ),
    )
    config = dd.DataDesignerConfigBuilder(model_configs=[model])
    config.with_seed_dataset(dd.DataFrameSeedSource(df=prompts))
    config.add_column(dd.LLMTextColumnConfig(name="answer", prompt="{{ instruction }}", model_alias="bench"))
    provider = dd.ModelProvider(name="bench", endpoint=f"{args.url}/v1", api_key="none")
    designer = DataDesigner(artifact_path=args.folder / "artifacts", model_providers=[provider])
    designer.set_run_config(dd.RunConfig(otel_metrics_port=None))
    meter = Meter()
    made = designer.create(config, num_records=args.calls).load_dataset()
    assert len(made) == args.calls, made
    assert made["answer"].str.len().min() > 0
    meter.report(args.calls, "data-designer")


if __name__ == "__main__":
    main()
