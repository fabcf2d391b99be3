"""What a fresh process finds in a model: its losses on a probe, and the rows that stand out there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from alignment.byte_view import ByteView
from stages.initialisation.probe import (
    PASSAGE_CHARACTERS,
    PASSAGES,
    logit_outliers,
    norm_outliers,
    read_passages,
    report,
    score_passages,
)
from stages.reload_check import differences, inspect, inspect_in_fresh_process, warnings

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture
def untied(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir(tiny_tokenizer_dirs[0], tied=False)


def load(directory: Path) -> Loaded:
    """A model whose logits differ enough to matter, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    model.lm_head.weight.data *= 20
    return model, AutoTokenizer.from_pretrained(directory)


def every_third(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    return torch.arange(len(tokenizer)) % 3 == 0


def nats_of(model: PreTrainedModel, prefix: list[int], ids: list[int]) -> Tensor:
    """float64 [N]: minus the log-probability of each of ``ids`` after all before, one position at a time."""
    sequence = [*prefix, *ids]
    losses = []
    for position in range(max(1, len(prefix)), len(sequence)):
        with torch.no_grad():
            logits = model(torch.tensor([sequence[:position]])).logits[0, -1].double()
        losses.append(logits.exp().sum().log() - logits[sequence[position]])
    return torch.stack(losses)


def test_losses_are_those_of_each_passage_after_what_begins_a_text(untied: Path) -> None:
    model, tokenizer = load(untied)
    passages = ["The quick brown fox, naïve.", "東京 12,345\n"]
    ids = [tokenizer(passage).input_ids for passage in passages]
    expected = torch.cat([nats_of(model, [tokenizer.bos_token_id], each) for each in ids])
    new = every_third(tokenizer)
    scores = score_passages(model, tokenizer, passages, ~new)
    assert scores.ids.tolist() == [*ids[0], *ids[1]]
    torch.testing.assert_close(scores.nats.double(), expected, rtol=1e-4, atol=1e-4)

    found = report(scores, new)
    size = sum(len(passage.encode()) for passage in passages)
    assert (found["bytes"], found["tokens"]) == (size, len(expected))
    assert found["bits_per_byte"] == pytest.approx(float(expected.sum()) / math.log(2) / size, rel=1e-5)
    is_new = torch.tensor([token % 3 == 0 for each in ids for token in each])
    assert found["new"] == {
        "tokens": int(is_new.sum()),
        "nats_per_token": pytest.approx(float(expected[is_new].mean()), rel=1e-5),
    }
    assert found["copied"]["nats_per_token"] == pytest.approx(float(expected[~is_new].mean()), rel=1e-5)


def test_a_text_longer_than_the_models_positions_is_scored_in_windows(untied: Path) -> None:
    model, tokenizer = load(untied)
    model.config.max_position_embeddings = 16
    text = "Tokens are byte strings; " * 3
    ids = tokenizer(text).input_ids
    assert len(ids) > 32
    expected = [nats_of(model, [tokenizer.bos_token_id], ids[start : start + 15]) for start in range(0, len(ids), 15)]
    scores = score_passages(model, tokenizer, [text], every_third(tokenizer))
    torch.testing.assert_close(scores.nats.double(), torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert scores.bytes == len(text)


def test_without_anything_that_begins_a_text_its_first_token_is_context_only(untied: Path) -> None:
    model, tokenizer = load(untied)
    tokenizer.bos_token = tokenizer.eos_token = None
    text = "The dog sleeps"
    ids = tokenizer(text).input_ids
    scores = score_passages(model, tokenizer, [text], every_third(tokenizer))
    torch.testing.assert_close(scores.nats.double(), nats_of(model, [], ids), rtol=1e-4, atol=1e-4)
    assert scores.bytes == len(text) - len(tokenizer.decode(ids[:1]))


def test_a_text_of_one_token_has_nothing_to_predict_without_a_beginning(untied: Path) -> None:
    model, tokenizer = load(untied)
    tokenizer.bos_token = tokenizer.eos_token = None
    reference = every_third(tokenizer)
    alone = score_passages(model, tokenizer, ["The dog sleeps"], reference)
    scores = score_passages(model, tokenizer, ["T", "The dog sleeps"], reference)
    assert (scores.bytes, scores.ids.tolist()) == (alone.bytes, alone.ids.tolist())


def test_no_target_of_a_kind_has_no_mean(untied: Path) -> None:
    model, tokenizer = load(untied)
    new = torch.zeros(len(tokenizer), dtype=torch.bool)
    assert report(score_passages(model, tokenizer, ["text"], ~new), new)["new"] == {"tokens": 0, "nats_per_token": None}


def test_a_hostile_row_is_found_by_its_logits(untied: Path) -> None:
    model, tokenizer = load(untied)
    new = every_third(tokenizer)
    clean = logit_outliers(score_passages(model, tokenizer, PASSAGES, ~new), new, ByteView.from_tokenizer(tokenizer))
    # The direction that the final hidden state has where the last passage ends: only there is it so probable.
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(PASSAGES[-1]).input_ids][:-1]])
    state = model.model(ids).last_hidden_state[0, -1].detach()
    hostile = int(new.nonzero()[5])
    model.lm_head.weight.data[hostile] = state * 20 * model.lm_head.weight[1].norm() / state.norm()
    found = logit_outliers(score_passages(model, tokenizer, PASSAGES, ~new), new, ByteView.from_tokenizer(tokenizer))
    assert found["limit"] == pytest.approx(clean["limit"])
    assert hostile not in [row["id"] for row in clean["rows"]]
    assert found["rows"][0]["id"] == hostile
    assert found["rows"][0]["token"] == tokenizer.decode(hostile)
    assert found["rows"][0]["value"] > found["limit"]
    assert found["count"] == clean["count"] + 1


def test_peaks_are_the_largest_logits_above_the_mean_of_the_reference(untied: Path) -> None:
    model, tokenizer = load(untied)
    reference = every_third(tokenizer)
    text = "def add(left, right):\n" * 20
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text).input_ids]])
    assert ids.shape[1] > 130
    logits = model(ids[:, :-1]).logits[0].detach().double()
    expected = (logits - logits[:, reference].mean(dim=1, keepdim=True)).amax(dim=0)
    scores = score_passages(model, tokenizer, [text], reference)
    torch.testing.assert_close(scores.peaks.double(), expected, rtol=1e-4, atol=1e-4)


def test_norms_beyond_those_of_copied_rows_are_found(untied: Path) -> None:
    _, tokenizer = load(untied)
    new = every_third(tokenizer)
    matrix = torch.zeros(len(tokenizer) + 7, 4)
    matrix[:, 0] = torch.linspace(2, 3, len(matrix))
    matrix[0], matrix[3, 0], matrix[6, 0], matrix[9, 1] = 0, -4, 5, math.nan
    matrix[-7:] = 100  # padding
    found = norm_outliers(matrix.to(torch.bfloat16), new, ByteView.from_tokenizer(tokenizer))
    # The first row is new; the shortest copied one stands behind it.
    assert found["smallest"] == pytest.approx(2, abs=0.02)
    assert found["largest"] == pytest.approx(3, abs=0.05)
    assert found["shorter"] == {
        "count": 1,
        "rows": [{"id": 0, "token": tokenizer.decode(0), "value": 0}],
    }
    assert found["longer"]["count"] == 3
    assert [(row["id"], row["value"]) for row in found["longer"]["rows"]] == [(9, None), (6, 5.0), (3, 4.0)]


def test_at_most_twenty_rows_are_listed_the_largest_first(untied: Path) -> None:
    _, tokenizer = load(untied)
    matrix = torch.ones(len(tokenizer), 1)
    new = torch.arange(len(tokenizer)) >= 50
    matrix[50:, 0] += torch.arange(len(tokenizer) - 50) + 1
    found = norm_outliers(matrix, new, ByteView.from_tokenizer(tokenizer))["longer"]
    assert found["count"] == len(tokenizer) - 50
    assert [row["id"] for row in found["rows"]] == list(range(len(tokenizer) - 1, len(tokenizer) - 21, -1))


def test_a_fresh_process_reports_losses_and_outliers(tmp_path: Path, untied: Path) -> None:
    model, tokenizer = load(untied)
    new = every_third(tokenizer)
    hostile = int(new.nonzero()[3])
    model.lm_head.weight.data[hostile] *= 100
    directory, mask, documents = tmp_path / "model", tmp_path / "new.npy", tmp_path / "documents.jsonl"
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    np.save(mask, new.numpy())
    records = [{"text": "The dog sleeps on. " * 90}, {"messages": []}, {"text": ""}, {"text": "print(add(12, 345))"}]
    documents.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_passages(documents) == [records[0]["text"][:PASSAGE_CHARACTERS], records[3]["text"]]

    found = inspect_in_fresh_process(directory, new_rows=mask, documents=documents)
    assert differences(found, {"dtype": "bfloat16", "tied": False, "matrix_rows": len(tokenizer)}) == []
    assert found["generated"]
    sizes = [len(passage.encode()) for passage in read_passages(documents)]
    assert found["probe"]["bytes"] == sum(sizes)
    assert found["probe"]["copied"]["tokens"] + found["probe"]["new"]["tokens"] == found["probe"]["tokens"]
    assert hostile in [row["id"] for row in found["outliers"]["output_norms"]["longer"]["rows"]]
    sentence = next(line for line in warnings(found) if "output matrix" in line)
    assert f"{tokenizer.convert_ids_to_tokens(hostile)!r} ({hostile})" in sentence
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_without_copied_rows_there_is_nothing_to_stand_out_from(tmp_path: Path, untied: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(untied)
    np.save(tmp_path / "new.npy", np.arange(len(tokenizer)) != 7)
    found = inspect(untied, new_rows=tmp_path / "new.npy")
    assert found["outliers"] is None
    assert found["probe"]["new"]["tokens"] > 0.9 * found["probe"]["tokens"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_model_without_finite_logits_is_not_probed(tmp_path: Path, untied: Path) -> None:
    model, tokenizer = load(untied)
    model.model.norm.weight.data[0] = math.nan
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert differences(found, {}) == ["logits_finite is False, not True"]
    assert found["probe"] is found["outliers"] is found["generated"] is None
    assert warnings(found) == []


def test_the_same_model_with_another_tokenizer_predicts_the_same_bytes(
    untied: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    sizes = [inspect(directory)["probe"]["bytes"] for directory in (untied, tiny_model_dir(tiny_tokenizer_dirs[1]))]
    assert sizes == [sum(len(passage.encode()) for passage in PASSAGES)] * 2
