"""Cards and inferred mixtures of real files: what is read, what is shown, and a mixture that is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from stages.cards import mixtures
from stages.cards.reading import OpenedTokenizer, open_tokenizer, read_lexicon, read_texts
from stages.cards.report import card_report
from stages.cards.samples import SAMPLES
from stages.stage import StageError

DATA = Path(__file__).parents[2] / "recipes" / "data"


def _halves(name: str) -> tuple[list[str], list[str]]:
    """Two disjoint samples of one kind of text, in pieces of 500 characters."""
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    pieces = [text[start : start + 500] for text in texts for start in range(0, len(text), 500)]
    return pieces[::2], pieces[1::2]


def _bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _first(texts: list[str], size: int) -> list[str]:
    taken: list[str] = []
    for text in texts:
        if _bytes(taken) >= size:
            break
        taken.append(text)
    return taken


@pytest.fixture(scope="module")
def known_mixture():
    """A tokenizer of 200 merges, the text that it was trained on, and other text of the same kinds."""
    (speeches, other_speeches), (source, other_source) = _halves("train-speeches.jsonl"), _halves("train-source.jsonl")
    trained_on = {"speeches": _first(speeches, 28_000), "source": _first(source, 12_000)}
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [*trained_on["speeches"], *trained_on["source"]],
        trainers.BpeTrainer(vocab_size=len(alphabet) + 200, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path="known")
    opened = OpenedTokenizer(tokenizer, ByteView.from_tokenizer(tokenizer))
    return opened, trained_on, {"speeches": other_speeches, "source": other_source}


def test_the_text_of_training_is_recovered_exactly(known_mixture):
    opened, trained_on, _ = known_mixture
    found = mixtures.infer(opened, trained_on)
    share = _bytes(trained_on["speeches"]) / sum(map(_bytes, trained_on.values()))
    assert found.slack == pytest.approx(0, abs=1e-9)
    assert (found.contradicted, found.left_out) == (0, 0)
    assert found.bytes["speeches"].low - 1e-6 <= share <= found.bytes["speeches"].high + 1e-6
    assert found.bytes["speeches"].estimate == pytest.approx(share, abs=0.005)


def test_other_text_of_the_same_kinds_gives_the_mixture_within_a_few_percent(known_mixture):
    opened, _, fresh = known_mixture
    found = mixtures.infer(opened, fresh)
    assert found.bytes["speeches"].estimate == pytest.approx(0.70, abs=0.03)
    assert sum(share.estimate for share in found.bytes.values()) == pytest.approx(1)
    assert 0 < found.slack <= found.slack_bound
    shown = mixtures.section(found)
    assert [row[0] for row in shown.rows] == ["speeches", "source"]
    values = mixtures.to_json("known", found, fresh)
    assert json.loads(json.dumps(values, allow_nan=False))["bytes"]["source"]["estimate"] < 0.35


def test_a_kind_of_text_that_was_not_trained_on_gets_little(known_mixture):
    opened, trained_on, _ = known_mixture
    french = read_texts({"french": DATA / "eval-french.jsonl"})
    found = mixtures.infer(opened, trained_on | french)
    assert found.bytes["french"].high < 0.01


def test_only_byte_pair_encoding_tells_of_a_mixture():
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", name_or_path="words")
    with pytest.raises(StageError, match="Only the merges of byte-pair encoding"):
        mixtures.infer(OpenedTokenizer(tokenizer, ByteView.from_tokenizer(tokenizer)), {"a": ["a"], "b": ["b"]})


def test_a_card_of_a_directory_against_another(tiny_tokenizer_dirs):
    small, large = tiny_tokenizer_dirs
    report = card_report(
        {"before": small, "after": large}, before="before", texts={}, lexicon=None, say=lambda line: None
    )
    values = json.loads(json.dumps(report.values, allow_nan=False))
    assert values["built_in_texts"]
    assert values["against"] == "before"
    assert set(values["cards"][0]["texts"]) == set(SAMPLES)
    before, after = (card["script_shares"]["latin"] for card in values["cards"])
    assert values["script_share_changes"]["after"]["latin"] == pytest.approx(after - before)
    assert "built-in samples" in report.text
    assert f"{100 * (after - before):+.2f}" in report.text
    for part in ("Vocabulary", "Special tokens", "latin", "inner_alpha"):
        assert part in report.page


def test_a_lexicon_file(tmp_path, tiny_tokenizer_dirs):
    path = tmp_path / "lexicon.txt"
    path.write_text("the\nfox\tpure\n\ndog\n", encoding="utf-8")
    lexicon = read_lexicon(path)
    assert lexicon.valid == {"the", "fox", "dog"}
    assert lexicon.pure == {"fox"}
    text = tmp_path / "text.txt"
    text.write_text("the fox", encoding="utf-8")
    report = card_report(
        {"small": tiny_tokenizer_dirs[0]}, before=None, texts={"t": text}, lexicon=path, say=lambda line: None
    )
    assert report.values["cards"][0]["lexicon"]["types"] > 0
    assert "roots and affixes" in report.text
    path.write_text("the\troot\n", encoding="utf-8")
    with pytest.raises(StageError, match="line 1: 'root' behind the tab"):
        read_lexicon(path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(StageError, match="holds no entries"):
        read_lexicon(path)
    with pytest.raises(StageError, match="cannot be read"):
        read_lexicon(tmp_path / "missing.txt")


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(StageError, match=str(tmp_path)):
        open_tokenizer(tmp_path, "nothing")


def test_a_file_without_text_is_refused(tmp_path):
    path = tmp_path / "empty.txt"
    path.write_text("", encoding="utf-8")
    with pytest.raises(StageError, match="empty"):
        read_texts({"t": path})
