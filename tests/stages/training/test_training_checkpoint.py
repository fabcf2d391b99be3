"""A checkpoint is whole or it does not exist; damage falls back to the one before and is said."""

from __future__ import annotations

import json

import pytest

from stages.distill import DistillConfig
from stages.stage import StageError
from stages.training.saving import checkpoint


def _save(root, step, content=b"weights"):
    directory = checkpoint.begin(root, step)
    (directory / "training.pt").write_bytes(content)
    checkpoint.complete(directory, {"step": step})
    return directory


def test_the_newest_complete_checkpoint_is_found_by_number_not_by_name(tmp_path):
    for step in (5, 100, 20):
        _save(tmp_path, step)
    directory, state = checkpoint.latest(tmp_path, pytest.fail)
    assert directory.name == "step-100"
    assert state["step"] == 100


def test_no_checkpoint_is_no_error(tmp_path):
    assert checkpoint.latest(tmp_path / "absent", pytest.fail) is None


def _cut_short(directory):
    (directory / "training.pt").write_bytes(b"weigh")


def _flip_a_bit(directory):
    (directory / "training.pt").write_bytes(b"weighus")


def _remove_file(directory):
    (directory / "training.pt").unlink()


def _remove_marker(directory):
    (directory / checkpoint.MARKER).unlink()


def _garble_marker(directory):
    (directory / checkpoint.MARKER).write_text('{"step": 20, "fi')


def _change_a_digit_of_the_marker(directory):
    marker = directory / checkpoint.MARKER
    marker.write_text(marker.read_text().replace('"step": 20', '"step": 21'))


def _put_a_list_in_place_of_the_marker(directory):
    (directory / checkpoint.MARKER).write_text("[]")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_cut_short, "size or checksum"),
        (_flip_a_bit, "size or checksum"),
        (_remove_file, "is missing"),
        (_remove_marker, "never completed"),
        (_garble_marker, "damaged"),
        (_change_a_digit_of_the_marker, "damaged"),
        (_put_a_list_in_place_of_the_marker, "damaged"),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_is_named(tmp_path, harm, said):
    _save(tmp_path, 10)
    harm(_save(tmp_path, 20))
    lines: list[str] = []
    directory, state = checkpoint.latest(tmp_path, lines.append)
    assert directory.name == "step-10"
    assert state["step"] == 10
    assert len(lines) == 1
    assert "step-20" in lines[0]
    assert said in lines[0]


def test_a_marker_of_before_it_had_a_checksum_counts(tmp_path):
    marker = _save(tmp_path, 20) / checkpoint.MARKER
    record = json.loads(marker.read_text())
    assert record.pop("crc32") > 0
    marker.write_text(json.dumps(record))
    assert checkpoint.latest(tmp_path, pytest.fail)[1] == record


def test_pruning_keeps_the_newest_complete_ones(tmp_path):
    for step in (10, 20, 30):
        _save(tmp_path, step)
    checkpoint.begin(tmp_path, 40)  # being written: not complete
    checkpoint.prune(tmp_path, 30, keep=2)
    assert checkpoint.latest(tmp_path, lambda line: None)[0].name == "step-30"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-20", "step-30"]


def test_a_damaged_checkpoint_takes_no_place_of_one_that_is_whole(tmp_path):
    _flip_a_bit(_save(tmp_path, 20))
    _save(tmp_path, 15)  # after the damaged one was passed over
    checkpoint.prune(tmp_path, 15, keep=1)
    assert checkpoint.latest(tmp_path, pytest.fail)[0].name == "step-15"


def test_only_options_that_decide_what_is_computed_must_agree(tmp_path):
    def config(steps=30, **on_policy):
        return DistillConfig(steps=steps, window_tokens=256, losses=["policy_gradient"], on_policy=on_policy)

    saved = checkpoint.options(config())
    checkpoint.check_origin(tmp_path, saved, config(guards={"on_breach": "warn", "length_growth": 9.0}, batch=1))
    with pytest.raises(StageError, match=r"on_policy was .* and is "):
        checkpoint.check_origin(tmp_path, saved, config(temperature=0.5))
    with pytest.raises(StageError, match="steps was 30 and is 31"):
        checkpoint.check_origin(tmp_path, saved, config(steps=31))


def test_beginning_again_clears_what_an_interrupted_save_left(tmp_path):
    (checkpoint.begin(tmp_path, 10) / "half").write_text("x")
    assert list(checkpoint.begin(tmp_path, 10).iterdir()) == []
