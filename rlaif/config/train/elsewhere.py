"""Names of settings in TRL, transformers and other trainers, and what to write here instead."""

# Keys of TRL, transformers and other trainers that users still write -> what to write here.
_ELSEWHERE = {
    "max_prompt_length": "gone from TRL; max_length bounds prompt + completion together.",
    "max_completion_length": "max_length bounds prompt + completion together.",
    "rpo_alpha": "gone from TRL; there is no NLL term here.",
    "reference_free": "gone from TRL; the reference is always the model before training.",
    "ref_model": "the reference is always the model before training.",
    "generate_during_eval": "gone from TRL; compare before and after with `rlaif eval`.",
    "evaluation_strategy": "gone from transformers; set eval_fraction, and it is measured at the end of each epoch.",
    "eval_strategy": "set eval_fraction, and it is measured at the end of each epoch.",
    "overwrite_output_dir": "gone from transformers; name another folder with out, or continue with --resume.",
    "output_dir": "write 'out'.",
    "model_name_or_path": "write 'model'.",
    "dataset_name": "write 'data'.",
    "torch_dtype": "gone from transformers; the dtype follows the device and is reported by --check.",
    "dtype": "the dtype follows the device and is reported by --check.",
    "bf16": "the dtype follows the device and is reported by --check.",
    "fp16": "the dtype follows the device and is reported by --check.",
    "use_cpu": "write 'device: cpu'.",
    "no_cuda": "gone from transformers; write 'device: cpu'.",
    "warmup_ratio": "gone from transformers; write 'warmup' (below 1 it is a share of all steps).",
    "warmup_steps": "write 'warmup' (1 or more is a number of steps).",
    "per_device_train_batch_size": "write 'batch_size' (pairs in a step) and, if needed, 'micro_batch_size'.",
    "train_batch_size": "write 'batch_size' (pairs in a step) and, if needed, 'micro_batch_size'.",
    "gradient_accumulation_steps": "write 'batch_size' (pairs in an optimizer step); the rest follows from it.",
    "num_train_epochs": "write 'epochs'.",
    "num_epochs": "write 'epochs'.",
    "max_steps": "write 'epochs', or take fewer pairs with 'limit'.",
    "max_samples": "write 'limit'.",
    "lr": "write 'learning_rate'.",
    "group_by_length": "gone from transformers; pairs of like length are always computed together here.",
    "train_sampling_strategy": "pairs of like length are always computed together here.",
    "activation_checkpointing": "write 'gradient_checkpointing'.",
    "precompute_ref_log_probs": "the reference log-probs are always computed once, before training.",
    "padding_free": "ignored by TRL 1.16; prompts are shared within a pair here and little is padded.",
    "use_liger_kernel": "deprecated in TRL; logits are computed for completion tokens only, always.",
    "truncation_mode": "deprecated in TRL; what exceeds max_length is cut off at the end.",
    "use_peft": "write 'lora: {r: 16}', or 'lora: null' to train all weights.",
    "peft_config": "write 'lora: {r: 16}'.",
    "lora_r": "write 'lora: {r: ...}'.",
    "lora_rank": "write 'lora: {r: ...}'.",
    "lora_alpha": "write 'lora: {alpha: ...}'.",
    "lora_dropout": "write 'lora: {dropout: ...}'.",
    "lora_target_modules": "write 'lora: {target_modules: ...}'.",
    "lora_target": "write 'lora: {target_modules: ...}'.",
    "rank": "write 'r'.",
}


def replaced_key(key: str) -> str | None:
    """What to write instead of a key of another trainer, for `rlaif.config.base.validate`."""
    return _ELSEWHERE.get(key)
