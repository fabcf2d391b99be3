"""``pipeline card`` and ``pipeline mixture`` as users type them."""

from __future__ import annotations

import json

import pytest

from pipeline.cards import find_texts, find_tokenizers, short_names
from pipeline.cli import main
from pipeline.errors import RecipeError


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "deutsch.txt"
    path.write_text("Ein Häuschen steht im Wald.", encoding="utf-8")
    return path


def test_a_card_as_text_page_and_numbers(tiny_tokenizer_dirs, text, tmp_path, capsys):
    small, large = map(str, tiny_tokenizer_dirs)
    page = tmp_path / "card.html"
    assert main(["card", large, "--against", f"old={small}", "--text", f"de={text}", "--html", str(page)]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"Tokenizers: old, {tiny_tokenizer_dirs[1].name}, on 28 B in 1 text")
    assert "reading old" in output.err
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert main(["card", large, "--text", str(text), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["schema_version"] == 1
    assert values["cards"][0]["texts"]["deutsch"]["counts"]["words"] == 5


def test_a_mixture(tiny_tokenizer_dirs, text, tmp_path, capsys):
    other = tmp_path / "code.txt"
    other.write_text("def add(left, right):\n    return left + right\n", encoding="utf-8")
    words = ["mixture", str(tiny_tokenizer_dirs[0]), "--category", f"de={text}", "--category", str(other)]
    assert main([*words, "--merges", "20", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert set(values["bytes"]) == {"de", "code"}
    assert values["merges"] + values["left_out"] == 20
    assert main([*words, "--merges", "20"]) == 0
    assert "Inferred mixture" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["card", "./missing/tokenizer.json"], "missing/tokenizer.json"),
        (["card", "ranks.tiktoken"], "rank file lacks the pattern"),
        (["card", "{small}", "--text", "./missing.txt"], "missing.txt: no such file"),
        (["card", "{small}", "--text", "a={text}", "--text", "a={text}"], "two texts are called 'a'"),
        (["card", "{small}", "--text", "={text}"], "the name is empty"),
        (["card", "{small}", "--against", "{small}"], "several tokenizers are called"),
        (["card", "{small}", "--lexicon", "./missing.txt"], "missing.txt: cannot be read"),
        (["mixture", "{small}", "--category", "a={text}"], "at least two kinds"),
        (["mixture", "{small}", "--category", "a={text}", "--category", "b={text}", "--merges", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_done_is_said(words, message, tiny_tokenizer_dirs, text, capsys):
    words = [word.format(small=tiny_tokenizer_dirs[0], text=text) for word in words]
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_names():
    assert short_names(["org/a/model", "b", "org/c/model"]) == ["a/model", "b", "c/model"]
    assert short_names(["x/", "y/x"]) == ["x", "y/x"]
    assert short_names(["same", "same"]) == ["same", "same"]


def test_a_version_is_no_name(tiny_tokenizer_dirs):
    found = find_tokenizers([f"new={tiny_tokenizer_dirs[0]}", str(tiny_tokenizer_dirs[1])])
    assert list(found) == ["new", tiny_tokenizer_dirs[1].name]
    with pytest.raises(RecipeError, match="package nothing-at-all is not installed"):
        find_tokenizers(["package:nothing-at-all==1.0/tokenizer.json"])
    assert find_texts([]) == {}
