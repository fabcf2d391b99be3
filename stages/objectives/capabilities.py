"""What every objective needs and promises: the table behind ``pipeline validate`` and docs/objectives.md.

Light: read while a recipe is validated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TeacherSignal = Literal["full", "top_k", "scores"]
"""What a teacher gives for every token: its whole distribution and hidden states; its most probable tokens and the
scores; or the scores alone, the log-probabilities of the token and of a boundary after it."""

NEED_IN_WORDS = {
    "nothing": "no teacher",
    "scores": "the log-probabilities of the text",
    "boundary": "the probability of a boundary after every token",
    "top_k": "the teacher's most probable tokens",
    "distribution": "the teacher's whole distribution",
    "hidden_states": "the teacher's hidden states",
    "weights": "the teacher's own weights",
}
Need = Literal["nothing", "scores", "boundary", "top_k", "distribution", "hidden_states", "weights"]

GIVES: dict[TeacherSignal, frozenset[Need]] = {
    "full": frozenset(NEED_IN_WORDS),
    "top_k": frozenset({"nothing", "scores", "boundary", "top_k"}),
    "scores": frozenset({"nothing", "scores", "boundary"}),
}


@dataclass(frozen=True)
class Capability:
    """One objective.

    Attributes:
        objective: its name in a recipe.
        needs: the least that the teacher must give.
        vocabularies: what the two vocabularies must be to each other.
        exact: where the teacher's distribution is transferred without approximation.
        served: whether a teacher behind an API is enough, and what that must return.
        divergence: whether the loss is zero, with zero gradient, when student and teacher are one model.
        source: the paper.
        on_policy: whether it means anything only on text that the student writes while it learns.
    """

    objective: str
    needs: Need
    vocabularies: Literal["any", "identical", "subset", "overlapping"]
    exact: str
    served: str
    divergence: bool
    source: str
    on_policy: bool = False

    @property
    def cached(self) -> bool:
        """Whether what was computed once is enough."""
        return self.needs in GIVES["top_k"] | {"hidden_states"} and not self.on_policy


CAPABILITIES: tuple[Capability, ...] = (
    Capability(
        "cross_entropy", "nothing", "any", "no teacher", "no teacher", divergence=False, source="maximum likelihood"
    ),
    Capability(
        "alm",
        "scores",
        "any",
        "the probability of every chunk",
        "yes: log-probabilities of the text's tokens; of a boundary too, for gamma and debias",
        divergence=True,
        source="arXiv 2503.20083",
    ),
    Capability(
        "hidden_states", "hidden_states", "any", "never", "no", divergence=True, source="arXiv 2503.20083, latents"
    ),
    Capability(
        "simct",
        "distribution",
        "overlapping",
        "never: it compares preferences among candidates, not probabilities",
        "no: it would have to return every shared token at every position",
        divergence=True,
        source="arXiv 2605.07711",
    ),
    Capability(
        "dpca",
        "scores",
        "any",
        "the probability of every chunk that is short enough",
        "yes: log-probabilities of the text's tokens",
        divergence=True,
        source="arXiv 2606.09456",
    ),
    Capability(
        "policy_gradient",
        "scores",
        "any",
        "the reverse KL of every chunk, in expectation over what the student writes",
        "yes: log-probabilities of the text's tokens",
        divergence=True,
        source="arXiv 2306.08543, 2606.09456",
        on_policy=True,
    ),
    Capability(
        "same_vocabulary",
        "top_k",
        "identical",
        "everywhere; of a truncated teacher the known tokens and the mass of all others",
        "yes: the most probable tokens of every position",
        divergence=True,
        source="arXiv 1503.02531, 2306.13649, 2402.03898, 2404.02657",
    ),
    Capability(
        "strict",
        "distribution",
        "overlapping",
        "chunks of one token on either side, renormalised on the shared tokens",
        "no: it would have to return the tokens that the student chooses",
        divergence=True,
        source="arXiv 2610.08448",
    ),
    Capability(
        "dskd",
        "weights",
        "overlapping",
        "never: through projected hidden states, at positions that predict the same token (eta)",
        "no",
        # Its cross-entropy trains the projector and is never 0; the parts that reach the student are, with one
        # vocabulary, alignment: eta and projectors: pseudo_inverse.
        divergence=False,
        source="arXiv 2406.17328, 2504.11426",
    ),
    Capability(
        "uld",
        "distribution",
        "any",
        "never: which token has which probability is lost",
        "only if it returns whole distributions",
        divergence=True,
        source="arXiv 2402.12030",
    ),
    Capability(
        "gold",
        "distribution",
        "overlapping",
        "shared tokens, at chunks of one token on either side",
        "no: it would have to return whole distributions",
        divergence=True,
        source="TRL's GOLD trainer (Patiño et al. 2025)",
    ),
    Capability(
        "multilevel_ot",
        "distribution",
        "any",
        "never: which token has which probability is lost",
        "only if it returns whole distributions",
        # The transport plan is blurred, so its cost is above 0 at equality.
        divergence=False,
        source="arXiv 2412.14528",
    ),
    Capability(
        "xtoken",
        "top_k",
        "any",
        "tokens with equal bytes, where a chunk is one token on either side; every chunk's own probability",
        "yes, for p_kl: as many of the most probable tokens as it can",
        divergence=True,
        source="arXiv 2605.21699",
    ),
    Capability(
        "mined",
        "top_k",
        "any",
        "nowhere but between equal vocabularies",
        "yes: the most probable tokens of every position",
        divergence=True,
        source="arXiv 2401.10491",
    ),
    Capability(
        "cdm",
        "top_k",
        "any",
        "top tokens with equal bytes, as shares of each other",
        "yes: the most probable tokens of every position",
        divergence=True,
        source="arXiv 2502.11104",
    ),
    Capability(
        "bpm",
        "top_k",
        "any",
        "wherever a student token begins, but for those that run past the end of a teacher token: a lower bound",
        "yes: the most probable tokens of every position",
        divergence=True,
        source="arXiv 2607.22334",
    ),
    Capability(
        "escd",
        "top_k",
        "any",
        "where both tokenizers have a boundary, and one student token further",
        "yes: the most probable tokens of every position",
        divergence=False,
        source="arXiv 2609.34738",
    ),
    Capability(
        "byte_level",
        "distribution",
        "any",
        "the next byte, where all valid coverings of the text keep to the teacher's tokens but for their last",
        "no",
        divergence=False,
        source="arXiv 2604.07466",
    ),
    Capability(
        "likelihood_scoring",
        "distribution",
        "subset",
        "rows where no covering of the student's tokens ends but the teacher's own; a lower bound elsewhere",
        "no",
        divergence=True,
        source="arXiv 2512.14954",
    ),
    Capability(
        "selected_cross_entropy",
        "scores",
        "any",
        "no distribution: the teacher's log-probabilities choose what of the text is learned",
        "yes: log-probabilities of the text's tokens",
        divergence=False,
        source="arXiv 2510.18250",
    ),
)

_BY_NAME = {capability.objective: capability for capability in CAPABILITIES}


def capability(objective: str) -> Capability:
    """The table's row of an objective."""
    return _BY_NAME[objective]


def least_signal(need: Need) -> TeacherSignal:
    """The least that a teacher must give to satisfy ``need``."""
    return next(signal for signal in ("scores", "top_k", "full") if need in GIVES[signal])


def usable_with(given: frozenset[Need]) -> list[str]:
    """The objectives for which it is enough, on any text, that a teacher gives this."""
    return [each.objective for each in CAPABILITIES if each.needs in given and not each.on_policy]
