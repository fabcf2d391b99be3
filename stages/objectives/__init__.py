"""What a recipe may write under ``losses:``, validated. Light: the arithmetic is in ``losses/``."""

from __future__ import annotations

from pydantic import model_validator

from stages.objectives.base import ObjectiveOptions
from stages.objectives.byte_level import ByteLevelOptions
from stages.objectives.byte_targets import BpmOptions, EscdOptions
from stages.objectives.chunk_scores import AlmOptions, HiddenStateOptions
from stages.objectives.distributions import SameVocabularyOptions, StrictOptions
from stages.objectives.dpca import DpcaOptions
from stages.objectives.dual_space import DskdOptions
from stages.objectives.gold import GoldOptions
from stages.objectives.likelihood_scoring import LikelihoodScoringOptions
from stages.objectives.policy_gradient import PolicyGradientOptions
from stages.objectives.projected import CdmOptions, MinEdOptions, XTokenOptions
from stages.objectives.simct import SimCtOptions
from stages.objectives.sorted_distributions import MultiLevelOtOptions, UldOptions
from stages.objectives.token_selection import SelectedCrossEntropyOptions
from stages.objectives.tokens import CrossEntropyOptions
from stages.stage import StageConfig

__all__ = ["AlmOptions", "CrossEntropyOptions", "DskdOptions", "HiddenStateOptions", "LossEntry", "ObjectiveOptions"]


class LossEntry(StageConfig):
    """One term of the training loss: exactly one of the names below, with its options."""

    cross_entropy: CrossEntropyOptions | None = None
    """Next-token cross-entropy."""
    alm: AlmOptions | None = None
    """Approximate likelihood matching."""
    hidden_states: HiddenStateOptions | None = None
    """Hidden states at chunk ends."""
    simct: SimCtOptions | None = None
    """Preferences among the shared tokens and the text that follows."""
    dpca: DpcaOptions | None = None
    """Chunk log-probabilities, shared out over the student's tokens."""
    policy_gradient: PolicyGradientOptions | None = None
    """The reverse KL of chunks that the student wrote."""
    same_vocabulary: SameVocabularyOptions | None = None
    """Next-token distributions of models with one vocabulary."""
    strict: StrictOptions | None = None
    """Next-token distributions on shared tokens, where both tokenizers cut alike."""
    dskd: DskdOptions | None = None
    """Dual-space knowledge distillation."""
    uld: UldOptions | None = None
    """Universal logit distillation: sorted distributions."""
    gold: GoldOptions | None = None
    """Merged spans, on shared tokens and sorted."""
    multilevel_ot: MultiLevelOtOptions | None = None
    """Multi-level optimal transport between ranked distributions."""
    xtoken: XTokenOptions | None = None
    """The student's distribution projected onto the teacher's vocabulary."""
    mined: MinEdOptions | None = None
    """Teacher probabilities carried over to the tokens spelled most alike."""
    cdm: CdmOptions | None = None
    """Top tokens of both models, matched in context."""

    bpm: BpmOptions | None = None
    """Byte-prefix marginalisation."""
    escd: EscdOptions | None = None
    """Event-set completion."""
    byte_level: ByteLevelOptions | None = None
    """Byte heads, taught by the text and by the teacher's next bytes."""
    likelihood_scoring: LikelihoodScoringOptions | None = None
    """The teacher's next-token distribution, in a vocabulary inside its own."""
    selected_cross_entropy: SelectedCrossEntropyOptions | None = None
    """Cross-entropy of the chunks on which the student beats its teacher by most."""

    @model_validator(mode="before")
    @classmethod
    def _empty_options(cls, value: object) -> object:
        # `- cross_entropy` and `- cross_entropy:` mean "with the defaults".
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, dict) and list(value.values()) == [None]:
            return {name: {} for name in value}
        if isinstance(value, dict):
            _check_indentation(value, [name for name in value if name in cls.model_fields])
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> LossEntry:
        names = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(names) != 1:
            raise ValueError(f"an entry of losses names exactly one loss, found {', '.join(names) or 'none'}")
        return self

    @property
    def name(self) -> str:
        """The loss's name."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def options(self) -> ObjectiveOptions:
        """The loss's options."""
        return getattr(self, self.name)


def _check_indentation(entry: dict[str, object], losses: list[str]) -> None:
    """Refuse ``{alm: null, weight: 5}``, which is what ``- alm:`` and ``  weight: 5`` below it say.

    Raises:
        ValueError: nothing is said of the only loss, and other keys stand beside it.
    """
    if len(losses) == 1 and entry[losses[0]] is None:
        loss, beside = losses[0], [name for name in entry if name != losses[0]]
        raise ValueError(
            f"{', '.join(beside)} beside {loss} is not one of its options: indent them further than {loss}, or write "
            f"- {loss}: {{{beside[0]}: {entry[beside[0]]}}}"
        )
