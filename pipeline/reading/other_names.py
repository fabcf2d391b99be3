"""What other programs call the keys of a recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping

OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "steps": ("epochs", "max_steps", "num_epochs", "num_steps", "num_train_epochs", "total_steps", "train_steps"),
    "batch_windows": ("batch", "batch_size", "effective_batch_size", "global_batch_size", "train_batch_size"),
    "micro_batch_windows": (
        *("device_batch_size", "micro_batch_size", "per_device_batch_size", "per_device_train_batch_size"),
        *("grad_accum", "grad_accumulation", "gradient_accumulation", "gradient_accumulation_steps"),
    ),
    "window_tokens": (
        *("block_size", "context_length", "cutoff_len", "max_length", "max_seq_len", "max_seq_length"),
        *("seq_len", "seq_length", "sequence_length", "sequence_len"),
    ),
    "learning_rate": ("lr", "max_lr", "peak_lr"),
    "warmup_steps": ("num_warmup_steps", "warmup", "warmup_ratio"),
    "schedule": ("lr_schedule", "lr_scheduler", "lr_scheduler_type", "scheduler"),
    "weight_decay": ("wd",),
    "betas": ("adam_beta1", "adam_beta2", "adam_betas", "beta1", "beta2"),
    "clip_norm": ("clip_grad", "clip_grad_norm", "grad_clip", "gradient_clipping", "max_grad_norm"),
    "activation_checkpointing": ("gradient_checkpointing",),
    "adapter": ("lora", "lora_config", "peft", "peft_config", "qlora"),
    "attention": ("attn_implementation", "flash_attention"),
    "dtype": ("bf16", "fp16", "fp32", "mixed_precision", "precision", "torch_dtype"),
    "data_workers": ("dataloader_num_workers", "num_workers"),
    "checkpoint_every": ("save_every", "save_interval", "save_steps"),
    "keep_checkpoints": ("save_total_limit",),
    "log_every": ("log_interval", "logging_steps"),
    "losses": ("loss", "loss_fn", "loss_type", "objective", "objectives"),
    "seed": ("data_seed", "manual_seed", "random_seed", "random_state"),
    "model": ("base_model", "hf_model", "model_id", "model_name", "model_name_or_path", "pretrained", "repo_id"),
    "tokenizer": ("tokenizer_id", "tokenizer_name", "tokenizer_name_or_path", "tokenizer_path"),
    "path": ("data_files", "data_path", "dataset", "dataset_name", "dataset_path", "file", "filename"),
    "text": ("column", "dataset_text_field", "text_column", "text_field"),
    "max_documents": ("limit", "max_examples", "max_samples", "max_train_samples"),
    "uses": ("kind", "stage", "type"),
    "needs": ("after", "dependencies", "depends_on", "deps", "requires"),
    "gpus": ("gpus_per_node", "n_gpus", "num_gpus"),
    "processes": ("nproc", "nproc_per_node", "num_processes", "world_size"),
    "nodes": ("nnodes", "num_machines", "num_nodes"),
}
"""A key of a recipe -> what users of other trainers and launchers may write instead."""

_UNITS = {
    "steps": "optimiser steps, not passes over the text",
    "batch_windows": "windows of window_tokens tokens a step, on all processes together",
    "micro_batch_windows": "windows a forward pass; batch_windows is what a step takes",
    "warmup_steps": "optimiser steps",
    "checkpoint_every": "optimiser steps",
}
"""Where the number that is given elsewhere may count something else."""


def called_here(name: str, known: Collection[str]) -> str:
    """`` (called 'learning_rate' here)`` for ``lr``; nothing unless the key is among ``known``."""
    for key, others in OTHER_NAMES.items():
        if key in known and name.lower().replace("-", "_") in others:
            return f" (called {key!r} here{f': {_UNITS[key]}' if key in _UNITS else ''})"
    return ""
