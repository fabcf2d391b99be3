"""How every stage loads causal language models: with transformers' own classes, and one of ours.

Code that comes with a model is never run. A model of ours that has some (``stages.initialisation.suffix_expansion``) is
recognised by that file, byte for byte, and read by the same code where it is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.artifacts import read_json
from stages.stage import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_KEY = "suffix_expansion"
"""The key in ``config.json`` of a model whose input embedding is expanded."""

MODELING_FILE = Path(__file__).parent / "initialisation" / "suffix_expansion" / "modeling_suffix_expansion.py"
"""The code that reads such a model, saved with it under the same name."""

_AUTO_CLASS = "AutoModelForCausalLM"


def auto_map(architecture: str) -> dict[str, str]:
    """What ``config.json`` says for transformers to find the expanded class of an architecture."""
    return {_AUTO_CLASS: f"{MODELING_FILE.stem}.{architecture}"}


def load_causal_lm(directory: Path, **options: Any) -> PreTrainedModel:
    """Load a model directory as ``AutoModelForCausalLM.from_pretrained`` does, with the same options.

    Raises:
        StageError: it says that its input embedding is expanded, but its code is not ours.
    """
    return _model_class(directory).from_pretrained(directory, trust_remote_code=False, **options)


def empty_causal_lm(directory: Path) -> PreTrainedModel:
    """The same model without weights, on the meta device: its modules and the shapes of its parameters, tied or not.

    Raises:
        StageError: as ``load_causal_lm`` does.
    """
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    model_class = _model_class(directory)
    with torch.device("meta"):
        return getattr(model_class, "from_config", model_class)(config)


def _model_class(directory: Path) -> Any:
    """The class, with ``from_pretrained``, that reads a model directory."""
    from transformers import AutoModelForCausalLM

    if modeling_file(directory) is None:
        return AutoModelForCausalLM
    from stages.initialisation.suffix_expansion import modeling_suffix_expansion

    architecture = read_json(directory / "config.json")["auto_map"][_AUTO_CLASS].split(".")[-1]
    return getattr(modeling_suffix_expansion, architecture)


def modeling_file(directory: Path) -> Path | None:
    """The file with our code in a model directory; None for a model that needs none.

    Raises:
        StageError: the model needs our code, and what it has is another version, or none.
    """
    config = read_json(directory / "config.json")
    if CONFIG_KEY not in config:
        return None
    file = directory / MODELING_FILE.name
    declared = config.get("auto_map", {}).get(_AUTO_CLASS, "").split(".")[0] == MODELING_FILE.stem
    if not declared or not file.is_file() or file.read_bytes() != MODELING_FILE.read_bytes():
        raise StageError(
            f"{directory}: config.json has `{CONFIG_KEY}`, but {file.name} beside it is missing or not the one of this "
            "version, and other code is not run. Make the model again with an init stage, or load it with the version "
            "that made it"
        )
    return file


def refuse_expanded(directory: Path, role: str = "student") -> None:
    """Refuse a model whose input embedding is expanded, where its own rows alone would be looked at.

    Args:
        role: what the model is to the stage, for the message.

    Raises:
        StageError: it is.
    """
    if CONFIG_KEY in read_json(directory / "config.json"):
        raise StageError(
            f"the {role}'s input embedding is expanded by an older vocabulary (expand_input: longest_suffix): its rows "
            "alone say little of its tokens; start from the model that it was made of"
        )
