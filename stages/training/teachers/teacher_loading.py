"""How a teacher's weights are held: in a float type, or quantised by bitsandbytes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn

from stages.model_loading import empty_causal_lm, load_causal_lm
from stages.stage import StageError
from stages.training.models import DTYPES, load_model
from stages.training.teachers.teacher_options import QUANTISED, TeacherDtype


def check_teacher_dtype(dtype: TeacherDtype) -> None:
    """Refuse a quantised teacher where nothing can quantise it; before anything is loaded.

    Raises:
        StageError: bitsandbytes is not installed.
    """
    if dtype in QUANTISED and importlib.util.find_spec("bitsandbytes") is None:
        raise StageError(
            f"teacher_dtype: {dtype} needs bitsandbytes, which is not installed: `pip install 'tokenferry[gpu]'`, or "
            "use teacher_dtype: bf16"
        )


def load_teacher(directory: Path, dtype: TeacherDtype, device: torch.device) -> nn.Module:
    """Load a ModelArtifact that is only scored with.

    The linear layers are quantised as it is loaded: to int8 but for outliers (LLM.int8(), arXiv 2208.07339), or to
    4-bit NormalFloat with double quantisation, multiplied in bf16 (QLoRA, arXiv 2305.14314). Embeddings and the output
    head stay bf16: scores are read at the head's own matrix.

    Raises:
        StageError: bitsandbytes is not installed.
    """
    check_teacher_dtype(dtype)
    if dtype not in QUANTISED:
        return load_model(directory, DTYPES[dtype], device)
    from transformers import BitsAndBytesConfig

    empty = empty_causal_lm(directory)
    head = empty.get_output_embeddings()
    options = BitsAndBytesConfig(
        load_in_8bit=dtype == "int8",
        load_in_4bit=dtype == "nf4",
        llm_int8_skip_modules=[name for name, module in empty.named_modules() if module is head],
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return load_causal_lm(
        directory,
        dtype=torch.bfloat16,
        quantization_config=options,
        device_map={"": device},
    )
