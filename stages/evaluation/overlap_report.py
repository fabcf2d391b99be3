"""What of the held-out documents the training text has: the report, and which of them are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from stages.evaluation.overlap_options import OverlapOptions
from stages.evaluation.sections import Column, Item, Measure, SectionReport, Skipped, Table
from stages.evaluation.windows import Conversation, Document
from stages.stage import StageError

Held = TypeVar("Held", Document, Conversation)

NAME = "overlap"
KINDS = ("bytes", "words")
ABOUT = (
    "Passages of the held-out documents that the training text has as well: runs of {bytes} bytes, character for "
    "character, and runs of {words} words, whatever their case and what stands between them. Found in training: the "
    "share of a domain's bytes that lie in such a passage. A document counts as overlapping if at least {share:g} of "
    "its bytes do, in one way or the other. {action} The training text of this recipe alone is compared: what models "
    "were trained on before is not known here."
)
ACTIONS = {
    "report": "Overlapping documents are evaluated all the same.",
    "exclude": "Overlapping documents are left out of the evaluation, and listed.",
    "refuse": "An overlapping document would have failed the evaluation.",
}


@dataclass(frozen=True)
class Finding:
    """What of one held-out document the training text has.

    Attributes:
        bytes: of the document.
        found: ``bytes`` or ``words``, the kind of passage -> bytes of the document that lie in one.
    """

    id: str
    domain: str
    bytes: int
    found: dict[str, int]

    @property
    def share(self) -> float:
        """The larger of both kinds' shares of the document's bytes."""
        return max(self.found.values()) / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Overlap:
    """What of all held-out documents the training text has."""

    options: OverlapOptions
    findings: Sequence[Finding]
    training_documents: int
    training_bytes: int

    @property
    def overlapping(self) -> list[Finding]:
        """The documents whose share reaches the threshold."""
        return [finding for finding in self.findings if finding.share >= self.options.share]

    def kept(self, documents: Sequence[Held]) -> list[Held]:
        """The documents that are to be evaluated.

        Raises:
            StageError: there are overlapping ones and the options refuse them.
        """
        overlapping = {finding.id: finding for finding in self.overlapping}
        if self.options.action == "refuse" and overlapping:
            raise StageError(
                f"overlap: {len(overlapping)} of {len(self.findings)} held-out documents have {self.options.share:g} "
                f"or more of their bytes in the training text: {_listed(list(overlapping.values()))}. Remove them from "
                "data.eval or data.train, or write overlap: exclude to evaluate without them"
            )
        if self.options.action != "exclude":
            return list(documents)
        return [document for document in documents if document.id not in overlapping]

    def report(self) -> SectionReport:
        """Shares by domain, and every document with something found."""
        domains = list(dict.fromkeys(finding.domain for finding in self.findings))
        groups = {
            "all": self.findings,
            **{domain: [finding for finding in self.findings if finding.domain == domain] for domain in domains},
        }
        options, overlapping = self.options, self.overlapping
        excluded = overlapping if options.action == "exclude" else []
        warning = (
            f"{len(overlapping)} of {len(self.findings)} held-out documents are training text to {options.share:.0%} "
            f"or more: {_listed(overlapping)}; " + ("left out" if excluded else "evaluated all the same")
        )
        return SectionReport(
            name=NAME,
            title="Overlap with the training text",
            about=ABOUT.format(
                bytes=options.bytes, words=options.words, share=options.share, action=ACTIONS[options.action]
            ),
            tables=(self._shares(groups), _counts(groups, options.share)),
            items=tuple(_item(finding, options.share) for finding in self.findings if finding.share),
            skipped=tuple(
                Skipped(f"document {finding.id}", f"{finding.share:.0%} of its bytes are in the training text")
                for finding in excluded
            ),
            warnings=(warning,) if overlapping else (),
            facts={
                "training documents": self.training_documents,
                "training bytes": self.training_bytes,
                **options.model_dump(mode="json"),
            },
            metrics={
                f"{domain}.{kind}": _share(findings, kind) for domain, findings in groups.items() for kind in KINDS
            }
            | {f"{domain}.documents": float(_overlapping(of, options.share)) for domain, of in groups.items()},
            data={"documents": [vars(finding) for finding in self.findings]},
        )

    def _shares(self, groups: dict[str, Sequence[Finding]]) -> Table:
        sizes = {"bytes": self.options.bytes, "words": self.options.words}
        return Table(
            "Found in training",
            tuple(
                Column(domain, "%", "lower", 1, note=f"{len(findings)} documents")
                for domain, findings in groups.items()
            ),
            {
                f"{sizes[kind]} {kind}": {
                    domain: Measure(100 * _share(findings, kind)) for domain, findings in groups.items()
                }
                for kind in KINDS
            },
        )


def _share(findings: Sequence[Finding], kind: str) -> float:
    total = sum(finding.bytes for finding in findings)
    return sum(finding.found[kind] for finding in findings) / total if total else 0.0


def _overlapping(findings: Sequence[Finding], share: float) -> int:
    return sum(finding.share >= share for finding in findings)


def _counts(groups: dict[str, Sequence[Finding]], share: float) -> Table:
    rows = {
        "with any passage": {domain: sum(finding.share > 0 for finding in of) for domain, of in groups.items()},
        f"{share:.0%} or more": {domain: _overlapping(of, share) for domain, of in groups.items()},
    }
    return Table(
        "Documents that are found in training",
        tuple(Column(domain, "documents", "lower", 0, note=f"of {len(of)}") for domain, of in groups.items()),
        {name: {domain: Measure(float(count)) for domain, count in of.items()} for name, of in rows.items()},
    )


def _item(finding: Finding, share: float) -> Item:
    shares = {kind: f"{count / finding.bytes:.1%}" for kind, count in finding.found.items()}
    return Item(
        id=finding.id,
        groups={"domain": finding.domain, "overlapping": "yes" if finding.share >= share else "no"},
        prompt=f"{finding.bytes:,} bytes, found in training: {shares['bytes']} by bytes, {shares['words']} by words",
        gold="",
    )


def _listed(findings: Sequence[Finding]) -> str:
    most = sorted(findings, key=lambda finding: -finding.share)
    shown = ", ".join(f"{finding.id} ({finding.share:.0%})" for finding in most[:5])
    return shown + (f" and {len(most) - 5} more" if len(most) > 5 else "")
