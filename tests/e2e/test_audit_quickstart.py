"""The audit of the shipped quickstart, through the command line: what it makes, what it leaves alone, and again."""

from __future__ import annotations

from e2e_helpers import stages_that_ran


def test_the_quickstart_is_audited_before_anything_is_trained(workplace):
    code, output = workplace.run("audit")
    assert code == 0, output
    assert stages_that_ran(output) == {"sources/teacher_config", "sources/tokenizer", "sources/train", "audit"}
    for words in ("Recommended objective", "domain: speeches", "domain: novel", "domain: source", "report.html"):
        assert words in output, words
    made = {path.parent.name for path in (workplace.directory / "runs" / "store").glob("*/*")}
    assert made == {"source-model-config", "source-tokenizer", "source-documents", "audit"}

    code, again = workplace.run("audit")
    assert code == 0, again
    assert stages_that_ran(again) == set()
    assert again in output
