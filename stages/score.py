"""``score``: the teacher's scores of the training text, computed once and read by any number of ``distill`` stages."""

from __future__ import annotations

from pathlib import Path

from stages.artifacts import DocumentsArtifact, ModelArtifact, ScoresArtifact
from stages.resume_points import counted
from stages.scoring.config import ScoreConfig
from stages.stage import Input, StageContext


class Score:
    """Score the training documents with the teacher, in terms of bytes, for students with any tokenizer."""

    VERSION = 1
    Config = ScoreConfig
    inputs = {
        "teacher": Input(ModelArtifact, source="teacher", replaceable=True),
        "documents": Input(DocumentsArtifact, source="train", replaceable=True),
    }
    output = ScoresArtifact

    @staticmethod
    def resume_point(work: Path) -> str | None:
        """The shards that took their names."""
        shards = [file.parent for file in work.glob("shards/*/*/shard.json")]
        return counted(sum(not shard.name.endswith(".partial") for shard in shards), "finished shard")

    def run(self, ctx: StageContext) -> None:
        """Write the scores, and the teacher's tokenizer, into ``ctx.out``.

        Raises:
            StageError: the teacher cannot be scored with, a document cannot be read, or the disk is too small.
            StageInterrupted: asked to stop; finished shards are kept.
        """
        from stages.scoring.run import score_documents

        score_documents(ctx)
