"""The configuration of a model that was given another vocabulary: its sizes, its tie, and every token id it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from alignment.vocab import VocabAlignment
from stages.artifacts import read_json, write_json
from stages.initialisation.token_ids import TokenIds

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"

_TOKENIZER_ROLES = {f"{role}_token_id": role for role in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")}
"""Keys whose token the target tokenizer itself names."""

_ID_SUFFIXES = ("_token_id", "_token_ids", "_token_index")
_ID_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids", "sequence_bias")
_SHOWN = 5


def write_configuration(
    source_dir: Path,
    out_dir: Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    alignment: VocabAlignment,
    sizes: Mapping[str, int],
    tie: bool,
) -> tuple[str, ...]:
    """Write the student's ``config.json`` and ``generation_config.json`` for the target vocabulary, and the tokenizer.

    The tokens that the tokenizer names (bos, eos, pad, ...) become the tokenizer's, with its chat template. Stop ids
    keep their meaning: each goes to the target's token that ends the same, a text or a turn. Every other id
    (placeholders of images, suppressed tokens, forbidden phrases) goes to its exact matches. All else in the two files
    stays as it is. A model without a ``generation_config.json`` gets none.

    Args:
        source_dir: the student, with its tokenizer.
        tokenizer: the target's.
        alignment: from the student's tokenizer to the target's.
        sizes: key -> number of matrix rows, for ``vocab_size`` and its like.
        tie: whether input and output are one matrix.

    Returns:
        What has no counterpart in the target vocabulary and was taken out, one sentence each.
    """
    ids = TokenIds(AutoTokenizer.from_pretrained(source_dir), tokenizer, alignment)
    config = AutoConfig.from_pretrained(source_dir)
    text_config = config.get_text_config()
    values = text_values = read_json(source_dir / CONFIG)
    for key in _text_config_path(config):
        text_values = text_values.setdefault(key, {})

    text_values.update(sizes)
    values.update({key: size for key, size in sizes.items() if key in values})
    values["tie_word_embeddings"] = text_values["tie_word_embeddings"] = tie
    # It names the class of the student's tokenizer.
    values.pop("tokenizer_class", None)
    # A key that is not in the file has the default of the model's class, which may name a token of the student too.
    losses = _carry_ids(text_values, {**text_config.to_dict(), **text_values}, ids, CONFIG)
    if text_config is not config:
        losses += _carry_ids(values, {**config.to_dict(), **values}, ids, CONFIG)
    write_json(out_dir / CONFIG, values)

    if (source_dir / GENERATION_CONFIG).is_file():
        generation = read_json(source_dir / GENERATION_CONFIG)
        if isinstance(generation.get("eos_token_id"), int):
            # Also a single stop id may end more than one thing, text and turn, where the target has a token for each.
            generation["eos_token_id"] = [generation["eos_token_id"]]
        losses += _carry_ids(generation, dict(generation), ids, GENERATION_CONFIG)
        write_json(out_dir / GENERATION_CONFIG, generation)
    tokenizer.save_pretrained(out_dir)
    if tokenizer.eos_token_id is None:
        losses.append("the target tokenizer names no end of text: no model can learn from it where to stop")
    return tuple(dict.fromkeys(losses))


def _text_config_path(config: PretrainedConfig) -> tuple[str, ...]:
    """The keys that lead to the configuration of the language model; none if it is the whole configuration."""
    text_config = config.get_text_config()
    if text_config is config:
        return ()
    for key in type(config).sub_configs:
        part = getattr(config, key, None)
        if part is text_config:
            return (key,)
        if isinstance(part, PretrainedConfig) and part.get_text_config() is text_config:
            return (key, *_text_config_path(part))
    raise ValueError(f"{type(config).__name__} does not say under which key it keeps its text configuration")


def _carry_ids(section: dict[str, Any], values: Mapping[str, Any], ids: TokenIds, file: str) -> list[str]:
    """Put the target's ids into a ``section`` of ``file`` for all the student's ids in ``values``; say what is lost."""
    losses: list[str] = []
    for key, value in values.items():
        if value is None or not (key.endswith(_ID_SUFFIXES) or key in _ID_LISTS):
            continue
        if key == "eos_token_id" and isinstance(value, list):
            section[key], lost = _stop_ids(value, ids)
        elif key in _TOKENIZER_ROLES:
            section[key], lost = getattr(ids.target, key), []
            if section[key] is None and value in ids.student.all_special_ids:
                role = _TOKENIZER_ROLES[key]
                losses.append(f"{file}: {key} was {_listing([value], ids)}, the target tokenizer names no {role} token")
        else:
            section[key], lost = ids.carry(key, value)
        if lost:
            losses.append(f"{file}: {key} loses {_listing(lost, ids)}, for which the target vocabulary has no token")
    return losses


def _stop_ids(stops: Iterable[int], ids: TokenIds) -> tuple[int | list[int] | None, list[int]]:
    """The target's stop ids, a single one as a number, and the student's that have no counterpart.

    Where none has one, generation stops at the end of a text, if the target tokenizer names such a token.
    """
    ends = {stop: ids.ends(stop) for stop in stops}
    carried = list(dict.fromkeys(end for found in ends.values() for end in found))
    lost = [stop for stop, found in ends.items() if not found]
    if len(carried) > 1:
        return carried, lost
    return (carried[0] if carried else ids.target.eos_token_id), lost


def _listing(lost: list[int], ids: TokenIds) -> str:
    """The student's tokens by name, the first few of them."""
    known = len(ids.student)
    names = [repr(ids.student.convert_ids_to_tokens(token)) if token < known else str(token) for token in lost[:_SHOWN]]
    return ", ".join(names) + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")
