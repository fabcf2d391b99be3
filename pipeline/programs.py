"""How to spell a command that a person is to paste."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def program(name: str) -> str:
    """``name`` if the shell finds it, else its path beside the running interpreter (an environment not activated)."""
    if shutil.which(name):
        return name
    path = Path(sys.executable).with_name(name)
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
