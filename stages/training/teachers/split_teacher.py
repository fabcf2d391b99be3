"""A teacher that DeepSpeed ZeRO-3 splits over the processes, each layer gathered while it runs."""

from __future__ import annotations

from torch import nn

from stages.training.backends.deepspeed_config import Settings
from stages.training.data.batch import Batch, SideBatch
from stages.training.models import ScoringModel, Signals


class _Scorer(nn.Module):
    """Makes scoring a forward pass, around which DeepSpeed gathers."""

    def __init__(self, model: ScoringModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: SideBatch) -> Signals:
        return self.model.score(batch)


class SplitTeacher:
    """A frozen model that scores every micro-batch as it comes; all processes must score at the same time.

    Every process keeps a whole copy of the output matrix, which is read long after the layers have run.

    Args:
        model: loaded in parts (``zero.split_while_loading``).
        settings: DeepSpeed's configuration (``deepspeed_config.teacher_settings``).

    Raises:
        StageError: the model does something between hidden states and logits that we do not know.
    """

    def __init__(self, model: ScoringModel, settings: Settings) -> None:
        import deepspeed

        self._network = model.model
        model.keep_output_matrix()
        self._engine, *_ = deepspeed.initialize(model=_Scorer(model), config=settings)
        self._engine.eval()
        model.check()

    @property
    def network(self) -> nn.Module:
        return self._network

    def score(self, batch: Batch) -> Signals:
        return self._engine(batch.teacher)
