"""The configuration of a model with another vocabulary: every token id that it names means what it meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_architectures import config as tiny_config
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from alignment.byte_view import ByteView
from alignment.chat.roles import special_roles_and_turns
from alignment.vocab import VocabAlignment, align_vocabularies
from stages.initialisation.configuration import write_configuration

TEMPLATE = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}{{ turn }}\n{% endfor %}"


def with_turns(directory: Path, turn: str, *, eos: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template whose turns end with ``turn``."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", turn]})
    if eos is not None:
        tokenizer.eos_token = eos
    tokenizer.chat_template = TEMPLATE.replace("{{ turn }}", turn)
    return tokenizer


def align(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> VocabAlignment:
    return align_vocabularies(
        ByteView.from_tokenizer(source),
        ByteView.from_tokenizer(target),
        source_roles=special_roles_and_turns(source),
        target_roles=special_roles_and_turns(target),
    )


def convert(
    tmp_path: Path,
    source: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    *,
    generation: dict[str, Any] | None = None,
    config: PretrainedConfig | None = None,
    tie: bool = True,
    **values: Any,
) -> tuple[dict[str, Any], tuple[str, ...], Path]:
    """Write a student's configuration for ``target``: config.json, what was said, and the directory."""
    student, out = tmp_path / "student", tmp_path / "out"
    out.mkdir()
    (config or tiny_config("llama-tied")).save_pretrained(student)
    source.save_pretrained(student)
    file = student / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    if generation is not None:
        (student / "generation_config.json").write_text(json.dumps(generation))
    sizes = {"vocab_size": 512}
    said = write_configuration(student, out, tokenizer=target, alignment=align(source, target), sizes=sizes, tie=tie)
    return json.loads((out / "config.json").read_text()), said, out


@pytest.fixture
def tokenizers(tiny_tokenizer_dirs: tuple[Path, Path]) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    small, large = tiny_tokenizer_dirs
    return AutoTokenizer.from_pretrained(small), AutoTokenizer.from_pretrained(large)


def test_each_stop_id_of_a_list_goes_to_the_token_that_ends_the_same(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path]
) -> None:
    source, target = with_turns(tiny_tokenizer_dirs[0], "<|turn|>"), with_turns(tiny_tokenizer_dirs[1], "<end_of_turn>")
    stops = [source.convert_tokens_to_ids("<|turn|>"), source.eos_token_id]
    expected = [target.convert_tokens_to_ids("<end_of_turn>"), target.eos_token_id]
    values, said, out = convert(
        tmp_path, source, target, generation={"eos_token_id": stops, "temperature": 0.6}, eos_token_id=stops
    )
    assert said == ()
    assert GenerationConfig.from_pretrained(out).eos_token_id == expected
    assert GenerationConfig.from_pretrained(out).temperature == 0.6
    assert values["eos_token_id"] == expected
    assert AutoTokenizer.from_pretrained(out).chat_template == target.chat_template


def test_a_stop_id_without_counterpart_is_taken_out_and_said(
    tmp_path: Path, tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase], tiny_tokenizer_dirs: tuple
) -> None:
    source, target = with_turns(tiny_tokenizer_dirs[0], "<|turn|>"), tokenizers[1]
    stops = [source.eos_token_id, source.convert_tokens_to_ids("<|turn|>")]
    _, said, out = convert(tmp_path, source, target, generation={"eos_token_id": stops})
    assert GenerationConfig.from_pretrained(out).eos_token_id == target.eos_token_id
    (sentence,) = said
    assert "generation_config.json: eos_token_id loses '<|turn|>'" in sentence


def test_one_stop_id_for_text_and_turn_becomes_two_where_the_target_has_two(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path]
) -> None:
    source = with_turns(tiny_tokenizer_dirs[0], "<|turn|>", eos="<|turn|>")
    target = with_turns(tiny_tokenizer_dirs[1], "<end_of_turn>")
    values, said, out = convert(tmp_path, source, target, generation={"eos_token_id": source.eos_token_id})
    ends = {target.eos_token_id, target.convert_tokens_to_ids("<end_of_turn>")}
    assert set(GenerationConfig.from_pretrained(out).eos_token_id) == ends
    assert values["eos_token_id"] == target.eos_token_id
    assert said == ()


def test_a_stop_id_that_also_begins_or_pads_a_text_does_not_stop_there(
    tmp_path: Path, tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]
) -> None:
    source, target = tokenizers
    assert source.bos_token_id == source.eos_token_id == source.pad_token_id
    target.add_special_tokens({"bos_token": "<begin>", "pad_token": "<pad>"})
    values, _, out = convert(tmp_path, source, target, generation={"eos_token_id": [source.eos_token_id]})
    assert GenerationConfig.from_pretrained(out).eos_token_id == target.eos_token_id
    assert (values["bos_token_id"], values["pad_token_id"]) == (target.bos_token_id, target.pad_token_id)


def test_suppressed_and_forbidden_tokens_are_carried_by_what_they_spell(
    tmp_path: Path, tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]
) -> None:
    source, target = tokenizers
    theirs = target.get_vocab()
    ours = {token: theirs.get(token) for token in sorted(source.get_vocab()) if token not in source.all_special_tokens}
    shared = [token for token, found in ours.items() if found is not None][40:44]
    lacking = "<|lacking|>"
    source.add_tokens([lacking])
    source_id = source.get_vocab().__getitem__
    generation = {
        "suppress_tokens": [source_id(token) for token in (*shared, lacking)],
        "begin_suppress_tokens": [source_id(lacking)],
        "bad_words_ids": [[source_id(shared[0]), source_id(shared[1])], [source_id(shared[2]), source_id(lacking)]],
        "sequence_bias": [[[source_id(shared[3])], -2.5], [[source_id(lacking)], 1.0]],
        "decoder_start_token_id": source_id(shared[1]),
    }
    _, said, out = convert(tmp_path, source, target, generation=generation)
    found = json.loads((out / "generation_config.json").read_text())
    assert found["suppress_tokens"] == sorted(theirs[token] for token in shared)
    assert found["begin_suppress_tokens"] is None
    assert found["bad_words_ids"] == [[theirs[shared[0]], theirs[shared[1]]]]
    assert found["sequence_bias"] == [[[theirs[shared[3]]], -2.5]]
    assert found["decoder_start_token_id"] == theirs[shared[1]]
    assert len(said) == 4
    assert all(f"loses '{lacking}'" in sentence for sentence in said)


def test_nothing_else_changes(
    tmp_path: Path, tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]
) -> None:
    source, target = tokenizers
    special = {f"{role}_token_id": target.eos_token_id for role in ("bos", "eos", "pad")}
    values, said, out = convert(
        tmp_path, source, target, tie=False, tokenizer_class="LlamaTokenizer", rope_theta=5e5, own_key=[1, "ü"]
    )
    before = json.loads((tmp_path / "student" / "config.json").read_text())
    assert before.pop("tokenizer_class") == "LlamaTokenizer"
    assert values == before | {"vocab_size": 512, "tie_word_embeddings": False} | special
    assert said == ()
    assert not (out / "generation_config.json").exists()
    assert AutoTokenizer.from_pretrained(out).get_vocab() == target.get_vocab()


def test_ids_that_the_file_leaves_to_the_class_are_written(
    tmp_path: Path, tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]
) -> None:
    source, target = tokenizers
    target.add_special_tokens({"bos_token": "<begin>"})
    student = tmp_path / "student"
    student.mkdir()
    (student / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(source)}))
    source.save_pretrained(student)
    assert AutoConfig.from_pretrained(student).bos_token_id == 1
    out = tmp_path / "out"
    out.mkdir()
    write_configuration(
        student, out, tokenizer=target, alignment=align(source, target), sizes={"vocab_size": 512}, tie=True
    )
    assert AutoConfig.from_pretrained(out).bos_token_id == target.bos_token_id
    assert AutoConfig.from_pretrained(out).eos_token_id == target.eos_token_id


def test_the_text_part_of_a_multimodal_configuration_is_what_changes(
    tmp_path: Path, tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]
) -> None:
    source, target = tokenizers
    source.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image = source.convert_tokens_to_ids("<image>")
    values, said, out = convert(
        tmp_path, source, target, config=tiny_config("gemma3"), image_token_index=image, tie=False
    )
    reloaded = AutoConfig.from_pretrained(out)
    assert reloaded.get_text_config().vocab_size == 512
    assert "vocab_size" not in values
    assert reloaded.tie_word_embeddings is reloaded.text_config.tie_word_embeddings is False
    assert reloaded.text_config.eos_token_id == target.eos_token_id
    assert values["image_token_index"] is None
    assert any("image_token_index loses '<image>'" in sentence for sentence in said)


def test_a_target_that_has_no_end_of_text_is_said(
    tmp_path: Path, tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]
) -> None:
    source, target = tokenizers
    target.eos_token = target.pad_token = None
    values, said, _ = convert(tmp_path, source, target, eos_token_id=source.eos_token_id)
    assert values["eos_token_id"] is None
    assert any("names no end of text" in sentence for sentence in said)
    assert any("eos_token_id was '<|endoftext|>', the target tokenizer names no eos" in sentence for sentence in said)
