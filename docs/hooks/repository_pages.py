"""Pages of the site that lie outside ``docs/``: README as its first, the recipes, the measurements.

They are read where they are, so nothing is written twice. Links in all pages are those of the repository, which work
wherever it is shown; here they are turned into those of the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

INDEX = "index.md"
TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/*.md", "recipes/data/README.md")
RECIPES = ("recipes/*.yaml", "benchmarks/tokenizers.yaml")
SITE_OF = {"README.md": INDEX}
"""Path in the repository -> path in the site, where that is not the same."""

LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to those of ``docs/``."""
    root = Path(config.config_file_path).parent
    for pattern in TEXTS:
        for path in sorted(root.glob(pattern)):
            files.append(_page(config, path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")))
    for pattern in RECIPES:
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            files.append(_page(config, name, _shown(name, path.read_text(encoding="utf-8"))))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of one page; what leads nowhere is left for the site's own check to find."""
    own = page.file.src_uri
    place = posixpath.dirname(_repository_path(page.file))

    def turned(link: re.Match[str]) -> str:
        target = _site_path(posixpath.normpath(posixpath.join(place, link[1])))
        return f"]({posixpath.relpath(target, posixpath.dirname(own) or '.')}{link[2] or ''})"

    return LINK.sub(turned, markdown)


def _page(config: MkDocsConfig, name: str, text: str) -> File:
    return File.generated(config, _site_path(name), content=text)


def _shown(name: str, text: str) -> str:
    """A recipe as a page; the one with every option would bury all others in what a search finds."""
    front = "---\nsearch:\n  exclude: true\n---\n\n" if name == "recipes/reference.yaml" else ""
    return f"{front}# {name}\n\n```yaml\n{text}```\n"


def _site_path(path: str) -> str:
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return SITE_OF.get(path, re.sub(r"\.yaml$", ".md", path))


def _repository_path(file: File) -> str:
    """Where a page's links start from."""
    if file.abs_src_path is not None:
        return f"docs/{file.src_uri}"
    return "README.md" if file.src_uri == INDEX else file.src_uri
