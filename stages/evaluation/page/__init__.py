"""The evaluation as one HTML page that needs no other file: made from ``report.json`` and nothing else."""

from stages.evaluation.page.document import render

__all__ = ["render"]
