"""Room for the checkpoints is asked for before the first step: for all that is written, and hardly more."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from stages.distill import Distill, DistillConfig
from stages.stage import StageContext, StageError

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away."
KEPT = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    documents = tmp_path_factory.mktemp("documents")
    records = [{"id": f"d/{n}", "domain": "d", "weight": 1.0, "text": TEXT} for n in range(8)]
    (documents / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (documents / "manifest.json").write_text("{}")
    return {"student": tiny_model_dir(tiny_tokenizer_dirs[1], seed=2), "documents": documents}


def _distill(world, root: Path, **options) -> None:
    for name in ("work", "out"):
        (root / name).mkdir(parents=True)
    sizes = {"steps": 2, "window_tokens": 24, "checkpoint_every": 1, "keep_checkpoints": KEPT, "data_workers": 0}
    ctx = StageContext(
        config=DistillConfig(losses=["alm"], dtype="fp32", **sizes, **options),
        inputs={name: {name: path} for name, path in world.items()},
        work=root / "work",
        out=root / "out",
    )
    Distill().run(ctx)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"teacher": "ema"}, id="moving average"),
        pytest.param({"teacher": "self", "adapter": {"rank": 4}}, id="adapter"),
    ],
)
def test_the_plan_is_what_the_checkpoints_take(world, tmp_path, monkeypatch, options):
    _distill(world, tmp_path / "measured", **options)
    checkpoints = list((tmp_path / "measured" / "work" / "ckpt").iterdir())
    assert len(checkpoints) == KEPT
    one = max(sum(file.stat().st_size for file in each.iterdir()) for each in checkpoints)

    def with_room_for(size: float, root: Path) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(int(size)))
        _distill(world, root, **options)

    with pytest.raises(StageError, match=rf"not enough disk for the planned checkpoints: {KEPT + 1} of "):
        with_room_for((KEPT + 1) * one - 1, tmp_path / "too little")
    assert not list((tmp_path / "too little" / "work" / "ckpt").iterdir())
    # A checkpoint of these few parameters is to a tenth their names.
    with_room_for((KEPT + 1) * 1.2 * one, tmp_path / "enough")
