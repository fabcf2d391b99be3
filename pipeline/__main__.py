"""``python -m pipeline`` is the command ``pipeline``."""

import sys

from pipeline.cli import main

sys.exit(main())
