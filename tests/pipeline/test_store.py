"""The artifact store: what counts as done, before, during and after a crash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import publish as publishing
from pipeline.durable import DiskFull
from pipeline.store import Entry, Store, StoreError
from stages.artifacts import Artifact, ArtifactError, ModelArtifact

KEY = hashlib.sha256(b"key").hexdigest()


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    return Store(tmp_path).entry("say", KEY)


def make(entry: Entry, text: str, artifact: type[Artifact] = Artifact) -> None:
    """One whole attempt that publishes two files."""
    attempt = publishing.begin_attempt(entry, {"uses": "say"})
    partial = entry.partial_directory(attempt.number)
    (partial / "text.txt").write_text(text)
    (partial / "deep").mkdir()
    (partial / "deep" / "more.json").write_text(json.dumps({"text": text}))
    (partial / "metrics.json").write_text(json.dumps({"length": len(text)}))
    publishing.publish(
        entry, attempt.number, artifact, ingredients={"uses": "say"}, upstream={"up": "1"}, run="toy", seconds=2.5
    )


def assert_whole(entry: Entry) -> str:
    """The result's bytes are those of its manifest, hashed here again; returns its text."""
    done = entry.done()
    assert done is not None
    files = {path.relative_to(entry.out).as_posix(): path for path in entry.out.rglob("*") if path.is_file()}
    assert {file.path for file in done.manifest} == set(files)
    for file in done.manifest:
        assert hashlib.sha256(files[file.path].read_bytes()).hexdigest() == file.sha256
    return files["text.txt"].read_text()


def test_nothing_is_there_before_the_first_attempt(entry: Entry) -> None:
    assert entry.done() is None
    assert entry.problem() is None
    assert entry.attempts() == []
    assert entry.last_attempt() is None
    assert entry.resume_point() is None
    assert not entry.is_locked()


def test_a_published_result_is_described_by_done(entry: Entry) -> None:
    make(entry, "hello")
    done = entry.done()
    assert assert_whole(entry) == "hello"
    assert (entry.path / "out" / "text.txt").read_text() == "hello"
    assert done.key == KEY
    assert done.upstream == {"up": "1"}
    assert done.metrics == {"length": 5}
    assert (done.run, done.seconds, done.attempt) == ("toy", 2.5, 1)
    assert done.size == sum(path.stat().st_size for path in entry.out.rglob("*") if path.is_file())
    assert [attempt.number for attempt in entry.attempts()] == [1]
    assert entry.ingredients() == {"uses": "say"}


def test_result_id_is_a_function_of_the_bytes_only(tmp_path: Path) -> None:
    ids = []
    for root, text in (("a", "same"), ("b", "same"), ("c", "other")):
        entry = Store(tmp_path / root).entry("say", KEY)
        make(entry, text)
        ids.append(entry.done().result_id)
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("damage", ["remove file", "truncate", "remove directory", "garble"])
def test_a_damaged_result_does_not_count_and_does_not_wedge(entry: Entry, damage: str) -> None:
    make(entry, "hello")
    if damage == "remove file":
        (entry.out / "text.txt").unlink()
    elif damage == "truncate":
        (entry.out / "text.txt").write_text("hell")
    elif damage == "remove directory":
        entry.output_directory(1).rename(entry.path / "elsewhere")
    else:
        entry.done_path.write_text('{"key": ')
    assert entry.done() is None
    assert str(entry.path) in entry.problem()
    make(entry, "again")
    assert assert_whole(entry) == "again"


def test_two_keys_with_one_prefix_are_refused(entry: Entry, tmp_path: Path) -> None:
    make(entry, "hello")
    other = Store(tmp_path).entry("say", KEY[:12] + "0" * 52)
    with pytest.raises(StoreError, match=KEY):
        other.done()
    with pytest.raises(StoreError, match="--runs"):
        publishing.begin_attempt(other, {})


def test_an_output_that_does_not_verify_is_not_published(entry: Entry) -> None:
    with pytest.raises(ArtifactError, match=r"config\.json"):
        make(entry, "hello", ModelArtifact)
    assert entry.done() is None


@pytest.mark.parametrize("content", ['{"loss": "low"}', '{"loss": NaN}', '{"loss": true}', "[1]"])
def test_final_metrics_must_be_finite_numbers(entry: Entry, content: str) -> None:
    attempt = publishing.begin_attempt(entry, {})
    (entry.partial_directory(attempt.number) / "metrics.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"metrics\.json"):
        publishing.publish(entry, 1, Artifact, ingredients={}, upstream={}, run="toy", seconds=0)


def test_a_symbolic_link_is_no_content(entry: Entry) -> None:
    attempt = publishing.begin_attempt(entry, {})
    (entry.partial_directory(attempt.number) / "weights").symlink_to("/dev/null")
    with pytest.raises(ArtifactError, match="symbolic link"):
        publishing.publish(entry, 1, Artifact, ingredients={}, upstream={}, run="toy", seconds=0)


def test_a_new_attempt_keeps_work_and_the_result_and_removes_what_dead_ones_left(entry: Entry) -> None:
    make(entry, "hello")
    dead = publishing.begin_attempt(entry, {})
    (entry.work / "ckpt").mkdir()
    (entry.partial_directory(dead.number) / "half").write_text("half")
    attempt = publishing.begin_attempt(entry, {})
    assert attempt.number == 3
    assert not entry.partial_directory(dead.number).exists()
    assert list(entry.partial_directory(3).iterdir()) == []
    assert (entry.work / "ckpt").is_dir()
    assert assert_whole(entry) == "hello"


def test_a_published_result_needs_no_checkpoints_and_a_forced_attempt_starts_anew(entry: Entry) -> None:
    attempt = publishing.begin_attempt(entry, {})
    (entry.work / "ckpt").mkdir()
    (entry.partial_directory(attempt.number) / "said.txt").write_text("hello")
    publishing.publish(entry, attempt.number, Artifact, ingredients={}, upstream={}, run="toy", seconds=0)
    publishing.begin_attempt(entry, {})
    assert not (entry.work / "ckpt").exists()


def test_whoever_may_enter_the_store_may_read_a_result(entry: Entry) -> None:
    attempt = publishing.begin_attempt(entry, {})
    private = entry.partial_directory(attempt.number) / "weights"
    private.write_text("weights")
    private.chmod(0o600)
    entry.partial_directory(attempt.number).chmod(0o755)
    publishing.publish(entry, attempt.number, Artifact, ingredients={}, upstream={}, run="toy", seconds=0)
    assert (entry.out / "weights").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("upstream", "kept"), [({"init": "one"}, True), ({"init": "two"}, False), ({}, False)])
def test_work_that_was_begun_with_other_inputs_is_not_continued(
    entry: Entry, upstream: dict[str, str], kept: bool
) -> None:
    publishing.begin_attempt(entry, {}, {"init": "one"})
    (entry.work / "ckpt").mkdir()
    publishing.begin_attempt(entry, {}, upstream)
    assert (entry.work / "ckpt").exists() == kept


def test_resume_point_is_the_highest_complete_checkpoint(entry: Entry) -> None:
    for step, marker in ((900, "{}"), (1200, "{}"), (1300, '{"step": 13'), (1400, None)):
        directory = entry.work / "ckpt" / f"step-{step}"
        directory.mkdir(parents=True)
        if marker is not None:
            (directory / "COMPLETE.json").write_text(marker)
    (entry.work / "ckpt" / "step-9999-tmp").mkdir()
    (entry.work / "ckpt" / "step-9999-tmp" / "COMPLETE.json").write_text("{}")
    assert entry.resume_point() == "step 1,200"


@pytest.mark.parametrize(
    ("kind", "files", "point"),
    [
        ("evaluate", ["preflight-teacher.json"], None),
        ("evaluate", ["preflight-a.json", "lm_eval-a.json", "card-a.json", "card-b.partial"], "2 finished sections"),
        ("generate", ["documents.jsonl"], "1 written document"),
        ("score", ["shards/f00/000000/shard.json", "shards/f00/000001.partial/shard.json"], "1 finished shard"),
        ("init", ["token_distill/d1/step-1000/COMPLETE.json"], "step 1,000 of token_distill"),
        ("distill", ["ckpt/step-20/COMPLETE.json"], "step 20"),
        ("align", ["anything.json"], None),
    ],
)
def test_every_kind_of_stage_says_what_it_keeps(tmp_path: Path, kind: str, files: list[str], point: str | None) -> None:
    entry = Store(tmp_path).entry(kind, KEY)
    for name in files:
        file = entry.work / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}\n")
    assert entry.resume_point() == point


CRASH_POINTS = ("rename", "replace", "fsync")


def run_until_killed(action: Callable[[], None], at: int, *, after: bool) -> bool:
    """Run ``action`` in a child that kills itself at its ``at``-th durable system call; True if it was killed."""
    pid = os.fork()
    if pid == 0:
        calls = 0

        def dying(original: Callable[..., None]) -> Callable[..., None]:
            def call(*arguments: object) -> None:
                nonlocal calls
                calls += 1
                if calls == at and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                original(*arguments)
                if calls == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            return call

        try:
            for name in CRASH_POINTS:
                setattr(os, name, dying(getattr(os, name)))
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("previous", [None, "old"], ids=["first", "forced"])
def test_a_kill_at_any_point_leaves_the_old_result_or_the_new_one(
    tmp_path: Path, previous: str | None, after: bool
) -> None:
    seen = set()
    at = 0
    killed = True
    while killed:
        at += 1
        entry = Store(tmp_path / str(at)).entry("say", KEY)
        if previous:
            make(entry, previous)
        killed = run_until_killed(lambda entry=entry: make(entry, "new"), at, after=after)
        assert entry.problem() is None
        seen.add(None if entry.done() is None else assert_whole(entry))
        link = entry.path / "out" / "text.txt"
        assert not link.parent.is_symlink() or link.read_text() in (previous, "new")
        make(entry, "newest")
        assert assert_whole(entry) == link.read_text() == "newest"
        assert not list(entry.path.glob("out.partial-*"))
    assert at > 10
    assert seen == {previous, "new"}


def test_a_link_left_behind_by_a_kill_is_repaired(entry: Entry) -> None:
    make(entry, "old")
    make(entry, "new")
    (entry.path / "out").unlink()
    (entry.path / "out").symlink_to("out.1")
    assert (entry.out / "text.txt").read_text() == "new"
    publishing.link_output(entry, entry.done().attempt)
    assert (entry.path / "out" / "text.txt").read_text() == "new"


def test_a_full_disk_is_reported_and_the_old_result_stays(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    make(entry, "old")
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "DONE.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    message = r"publishing the 31 bytes of .*: No space left on device .*DONE\.json(.|\n)*[\d,]+ bytes are free"
    with pytest.raises(DiskFull, match=message):
        make(entry, "new")
    assert assert_whole(entry) == "old"
    monkeypatch.undo()
    make(entry, "new")
    assert assert_whole(entry) == "new"
