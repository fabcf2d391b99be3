"""The audit as one HTML page: no script, no other file, nothing fetched."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from string import Template

from alignment.audit.report import AuditReport
from stages.auditing.formats import number, percent
from stages.auditing.plots import suppression_plot, text_plot
from stages.auditing.section import Section
from stages.auditing.sections import AuditResult, headline, sections

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; --line: #d9dde3; --quiet: #5c6672; --warning: #9a3412; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem; font: 16px/1.5 system-ui, sans-serif; color: #1d2430; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; }
p { margin: .35rem 0; max-width: 60rem; } .quiet { color: var(--quiet); }
nav { font-size: .9rem; } nav a { margin-right: .9rem; white-space: nowrap; }
dl.figures { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }
dl.figures div { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .9rem; }
dl.figures dt { font-size: .8rem; color: var(--quiet); } dl.figures dd { margin: 0; font-size: 1.35rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .75rem 0; font-size: .88rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .7rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; } tbody tr:nth-child(even) { background: #f6f8fa; }
.n { text-align: right; font-variant-numeric: tabular-nums; } td.n { white-space: nowrap; }
td { white-space: pre-wrap; overflow-wrap: break-word; } td:first-child { white-space: nowrap; }
.WARNING { border-left: 4px solid var(--warning); padding-left: .7rem; }
svg { width: 100%; height: auto; max-width: 62rem; }
dl.columns { font-size: .85rem; color: var(--quiet); } dl.columns dd { margin: 0; }
dl.columns dt { float: left; margin-right: .5rem; font-weight: 600; }
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="quiet">$headline</p>
<dl class="figures">$figures</dl>
<nav aria-label="Sections">$links</nav>
</header>
<main>
$body
</main>
</body>
</html>
""")


def render(result: AuditResult) -> str:
    """The whole page, with every row of every table."""
    report = result.report
    plots = {"text": text_plot(report)}
    if report.suppression.kinds:
        plots["suppression"] = suppression_plot(report.suppression.kinds)
    title = f"Audit: {report.teacher.name} → {report.student.name}"
    return render_page(title, headline(report), _figures(report), sections(result), plots)


def render_page(
    title: str,
    subtitle: str,
    figures: Iterable[tuple[str, str]],
    parts: Sequence[Section],
    plots: Mapping[str, str] | None = None,
) -> str:
    """A page of sections; those that say nothing are left out.

    Args:
        figures: name and value of the numbers that a user looks for first.
        plots: identity of a section -> an SVG element.
    """
    parts = [section for section in parts if section.sentences or section.details or section.rows]
    return _PAGE.substitute(
        title=_escape(title),
        headline=_escape(subtitle),
        figures="".join(f"<div><dt>{_escape(name)}</dt><dd>{_escape(value)}</dd></div>" for name, value in figures),
        links="".join(f'<a href="#{part.identity}">{part.identity}</a>' for part in parts),
        body="\n".join(_section(part, (plots or {}).get(part.identity, "")) for part in parts),
    )


def _figures(report: AuditReport) -> Iterable[tuple[str, str]]:
    """The numbers that a user looks for first."""
    return (
        ("recommended objective", report.recommendation.objective),
        ("text inside chunks", percent(report.overall.coverage)),
        ("teacher tokens per student token", number(report.overall.length_ratio, 2)),
        ("student tokens that the teacher has", percent(report.vocabulary.student_by_text)),
        ("chunks fused by the γ rule", percent(report.boundaries.fused)),
        ("digit schemes", report.digits.verdict),
    )


def _section(section: Section, plot: str) -> str:
    parts = [f'<section id="{section.identity}">', f"<h2>{_escape(section.title)}</h2>"]
    parts += [_sentence(sentence) for sentence in (*section.sentences, *section.details)]
    if plot:
        parts.append(f"<figure>{plot}</figure>")
    if section.rows:
        parts.append(_table(section))
    return "\n".join([*parts, "</section>"])


def _sentence(sentence: str) -> str:
    mark = ' class="WARNING"' if sentence.startswith("WARNING") else ""
    return f"<p{mark}>{_escape(sentence)}</p>"


def _table(section: Section) -> str:
    kinds = [' class="n"' if column.numeric else "" for column in section.columns]
    head = "".join(
        f'<th scope="col"{kind}>{_escape(column.heading)}</th>'
        for kind, column in zip(kinds, section.columns, strict=True)
    )
    rows = "\n".join(
        f"<tr>{''.join(f'<td{kind}>{_escape(cell)}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>"
        for row in section.rows
    )
    meanings = "".join(
        f"<dt>{_escape(column.heading)}</dt><dd>{_escape(column.meaning)}</dd>"
        for column in section.columns
        if column.meaning
    )
    explained = f'<dl class="columns">{meanings}</dl>' if meanings else ""
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>{explained}'
    )


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
