"""What a recipe says of ensembles. Read while planning: nothing heavy is imported here."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from typing import Literal

from pydantic import Field, model_validator

from stages.stage import StageConfig

Mean = Literal["arithmetic", "geometric", "logit", "mixture"]
"""How members' next-symbol distributions become one; see ``EnsembleOptions.mean``."""
Level = Literal["token", "byte"]

Place = tuple[str | int, ...]


class ProxyOptions(StageConfig):
    """Proxy tuning: what training made of a small model, added to another one: log p(base) + alpha (log p(expert) -
    log p(anti)), normalised."""

    base: str = Field(min_length=1)
    """The model that is moved."""
    expert: str = Field(min_length=1)
    """The trained small model."""
    anti: str = Field(min_length=1)
    """The same model before that training."""
    alpha: float = Field(1.0, ge=0)
    """How far to move; 0 leaves the base as it is."""

    @model_validator(mode="after")
    def _expert_is_not_its_own_anti(self) -> ProxyOptions:
        if self.expert == self.anti:
            raise ValueError(f"expert and anti are both {self.expert!r}, which would change nothing")
        return self


class EnsembleOptions(StageConfig):
    """Several models of the evaluation as one more row of it."""

    members: tuple[str, ...] | None = None
    """Stages under ``needs``, or ``teacher``: two or more of them."""
    weights: tuple[float, ...] | None = None
    """One positive weight a member; only their ratios matter. Without them all count alike."""
    mean: Mean | None = None
    """``arithmetic``, the default: mean of probabilities, at every byte or token. ``geometric``: their product to the
    power of the weights, normalised. ``logit``: softmax of the mean logits, which is the geometric mean by another
    name. ``mixture``: the probability of a text is the mean of its probabilities under the members, so that a member
    counts for more the better it predicted what came before."""
    proxy: ProxyOptions | None = None
    """Proxy tuning in place of ``members``."""
    level: Level = "token"
    """``token``: members share a tokenizer and go token by token. ``byte``: members of any tokenizers, through exact
    next-byte distributions; slow, as every byte takes what a token takes otherwise."""

    @model_validator(mode="after")
    def _fits_together(self) -> EnsembleOptions:
        if (self.members is None) == (self.proxy is None):
            raise ValueError("give either members, or proxy with base, expert and anti")
        if self.proxy is not None:
            unused = [name for name in ("mean", "weights") if getattr(self, name) is not None]
            if unused:
                raise ValueError(f"{' and '.join(unused)} would have no effect with proxy, which has alpha")
            return self
        if len(set(self.members)) < len(self.members):
            raise ValueError("a member is named twice; give it a greater weight")
        if len(self.members) < 2:
            raise ValueError(f"an ensemble needs two members or more, not {len(self.members)}")
        if self.weights is not None and len(self.weights) != len(self.members):
            raise ValueError(f"{len(self.weights)} weights for {len(self.members)} members; give one each")
        if self.weights is not None and not all(weight > 0 for weight in self.weights):
            raise ValueError("weights must be positive; leave out a member that is not to count")
        return self

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows that take part; of proxy tuning the base, the expert and the anti-expert."""
        if self.proxy is not None:
            return self.proxy.base, self.proxy.expert, self.proxy.anti
        return self.members

    def unknown(self, known: Collection[str]) -> Iterator[tuple[Place, str]]:
        """Members that are not among the rows ``known``: their places in these options, and what to say of each."""
        if self.proxy is not None:
            places: list[tuple[Place, str]] = [
                (("proxy", role), getattr(self.proxy, role)) for role in ("base", "expert", "anti")
            ]
        else:
            places = [(("members", index), name) for index, name in enumerate(self.members)]
        for place, name in places:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                yield place, f"{name!r} is neither a model under needs nor the teacher ({hint})"
