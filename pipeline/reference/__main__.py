"""``python -m pipeline.reference``."""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    """Print the reference."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.reference", description="print every key of a recipe")
    parser.add_argument("--markdown", action="store_true", help="as docs/reference.md; default: recipes/reference.yaml")
    if parser.parse_args().markdown:
        from pipeline.reference.markdown_page import render
    else:
        from pipeline.reference.yaml_page import render
    sys.stdout.write(render())
    return 0


if __name__ == "__main__":
    sys.exit(main())
