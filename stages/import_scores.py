"""``import-scores``: a teacher's scores of the training text as a server returned them, for ``distill``."""

from __future__ import annotations

from stages.artifacts import DocumentsArtifact, ScoresArtifact
from stages.scoring.config import ImportScoresConfig
from stages.stage import Input, StageContext


class ImportScores:
    """Bring log-probabilities that a server returned into the form in which ``score`` keeps them."""

    VERSION = 1
    Config = ImportScoresConfig
    inputs = {"documents": Input(DocumentsArtifact, source="train", replaceable=True)}
    output = ScoresArtifact

    def run(self, ctx: StageContext) -> None:
        """Write the scores into ``ctx.out``.

        Raises:
            StageError: a record cannot be understood or is about another text, or a document has none.
            StageInterrupted: asked to stop.
        """
        from stages.scoring.importing import import_scores

        import_scores(ctx)
