"""The methods that say nothing of the token: what they give, and that draws go with the token and not with its id."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from init_world import SOURCE, TARGET, make_task, make_transplant
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from stages.initialisation.methods import build_method
from stages.initialisation.task import RowTask
from stages.initializers import Chain
from stages.stage import StageError

ALL = torch.arange(len(TARGET))


def rows_of(written: object, task: RowTask, ids: torch.Tensor = ALL) -> torch.Tensor:
    """The rows that a chain of one method gives, each of which it must have made."""
    (options,) = TypeAdapter(Chain).validate_python(written)
    method = build_method(options, task)
    method.fit()
    block = method.rows(ids)
    assert block.made.all()
    return block.values(task.rows)


def test_zero_mean_and_copy() -> None:
    task = make_task(dtype=torch.bfloat16)
    assert not rows_of("zero", task).any()
    torch.testing.assert_close(rows_of("mean", task), task.rows.float().mean(dim=0).expand(len(ALL), -1))
    ab = SOURCE.index(b"ab")
    for token in ("ab", ab):
        assert torch.equal(rows_of({"method": "copy", "token": token}, task), task.rows[[ab] * len(ALL)].float())


@pytest.mark.parametrize("roles", [{"unk_token": "<unk>", "eos_token": "</s>"}, {"eos_token": "</s>"}, {}])
def test_copy_takes_unknown_or_the_end_of_text_unless_a_token_is_named(tmp_path: Path, roles: dict[str, str]) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1, "</s>": 2, "b": 3}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    tokenizer.save_pretrained(tmp_path)
    source = ByteView.from_token_bytes([b"a", None, None, b"b"])
    task = make_task(make_transplant(views=(source, ByteView.from_token_bytes([b"c"])), directory=tmp_path))
    if not roles:
        with pytest.raises(StageError, match="no token for unknown text or the end of a text: name a token"):
            rows_of("copy", task, torch.tensor([0]))
        return
    expected = 1 if "unk_token" in roles else 2
    assert torch.equal(rows_of("copy", task, torch.tensor([0])), task.rows[[expected]])


@pytest.mark.parametrize("token", ["nowhere", 99])
def test_copy_of_a_token_that_the_student_does_not_have_is_refused(token: str | int) -> None:
    with pytest.raises(StageError, match=r"copy: .*has no token"):
        rows_of({"method": "copy", "token": token}, make_task())


@pytest.mark.parametrize("method", ["normal", "mvn"])
def test_draws_go_with_the_token_the_seed_and_the_tensor(method: str) -> None:
    order = torch.randperm(len(TARGET), generator=torch.Generator().manual_seed(1))
    task = make_task()
    drawn = rows_of(method, task)
    assert torch.equal(rows_of(method, task), drawn)
    permuted = make_task(make_transplant(target=[TARGET[token] for token in order.tolist()]))
    text = torch.tensor(
        [TARGET[token] is not None for token in order.tolist()]
    )  # a toy special token is named by its id
    torch.testing.assert_close(rows_of(method, permuted)[text], drawn[order][text], rtol=0, atol=1e-6)
    torch.testing.assert_close(rows_of(method, task, ALL[3:4]), drawn[3:4], rtol=0, atol=1e-6)
    assert not torch.isclose(rows_of(method, make_task(make_transplant(seed=18))), drawn, rtol=0, atol=1e-6).any()
    assert len(drawn.unique(dim=0)) == len(TARGET)


@pytest.mark.parametrize("written", ["zero", "mean", {"method": "copy", "token": 0}, "normal", "mvn"])
def test_no_ids_get_no_rows(written: object) -> None:
    assert rows_of(written, make_task(), ALL[:0]).shape == (0, 6)


def test_mvn_stays_near_the_mean_unless_it_is_told_to_spread() -> None:
    task = make_task(rows=5 + torch.randn(len(SOURCE), 6, generator=torch.Generator().manual_seed(2)))
    near, wide = rows_of("mvn", task), rows_of({"method": "mvn", "covariance_scale": 1.0}, task)
    assert (near - task.mean_row).norm(dim=1).max() < 0.05
    # The same draws, a factor sqrt(1e5) further out.
    torch.testing.assert_close((wide - task.mean_row) * 1e-5**0.5, near - task.mean_row, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("written", [{"method": "mvn", "covariance_scale": 0}, {"method": "mvn", "ridge": -1}])
def test_scales_that_are_not_positive_are_refused(written: object) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        TypeAdapter(Chain).validate_python(written)
