"""What a recipe says of the suites. Read while planning: nothing heavy is imported here."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from stages.stage import StageConfig, Switch

Form = Literal["choice", "generation"]
"""How a question is put: by comparing what is offered, or by letting the model write the answer."""

CuteTask = Literal[
    *("spell", "spell_inverse", "contains_char", "contains_word", "orth"),
    *("ins_char", "ins_word", "del_char", "del_word", "sub_char", "sub_word", "swap_char", "swap_word"),
]
Grouping = Literal["none", "left", "right"]
"""Whether the digits of a number are cut into groups of three, and from which end."""

MOST_DIGITS = 15


class SuiteOptions(StageConfig):
    """What every suite is made from.

    ``VERSION`` is part of the cache key of whatever uses the suite (``pipeline.keys``): raise it when the same options
    give other questions.
    """

    VERSION: ClassVar[int] = 1

    items: int = Field(500, ge=1)
    """How many questions, spread evenly over the suite's kinds of question. The first 200 of 500 are those of 200."""
    seed: int = Field(0, ge=0)
    """Seeds the questions. Not the recipe's seed: without a seed of its own a suite asks the same in every recipe."""


class LangGameOptions(SuiteOptions):
    """Which of four words has a letter most often, contains, starts with or ends with letters, is longest or
    shortest."""


class CuteOptions(SuiteOptions):
    """Spelling, comparing and editing words by their letters, and sentences by their words."""

    tasks: tuple[CuteTask, ...] = Field(get_args(CuteTask), min_length=1)
    """Which tasks; all by default."""
    shots: int = Field(4, ge=0, le=8)
    """Solved examples before each question."""
    forms: tuple[Form, ...] = Field(("choice", "generation"), min_length=1)
    """How the questions are put. Models that do not write answers yet can still choose among them."""

    _distinct = field_validator("tasks", "forms")(lambda value: _without_repeats(value))


class AdditionOptions(SuiteOptions):
    """Sums of two numbers of several digits."""

    digits: tuple[int, ...] = Field((1, 2, 3, 4), min_length=1)
    """Lengths of the addends; every pair of lengths is asked, but for one digit and one digit: those sums are too few
    to keep some from training. Training items have these lengths alone."""
    unseen_digits: tuple[int, ...] = (5, 6)
    """More lengths, of both addends, that are asked but never trained on: the stratum ``unseen_lengths``."""
    grouping: tuple[Grouping, ...] = Field(("none",), min_length=1)
    """``none`` writes 1234567; ``right`` cuts groups of three from the right, 1,234,567; ``left`` from the left,
    123,456,7. The separator forces these chunks on a tokenizer whatever its own are."""
    separator: str = Field(",", min_length=1, max_length=1)
    """What stands between groups."""
    answers: tuple[Literal["forward", "reversed"], ...] = Field(("forward",), min_length=1)
    """Whether the sum is written from its first digit or from its last."""
    zero_pad: Switch = None
    """Write addends and sum with leading zeros, all with as many digits as the longest sum can have."""
    shots: int = Field(4, ge=0, le=16)
    """Solved sums of the same lengths and form before each question."""
    forms: tuple[Form, ...] = Field(("choice", "generation"), min_length=1)
    """How the questions are put."""

    _distinct = field_validator("digits", "unseen_digits", "grouping", "answers", "forms")(
        lambda value: _without_repeats(value)
    )

    @field_validator("digits", "unseen_digits")
    @classmethod
    def _lengths_of_numbers(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(1 <= length <= MOST_DIGITS for length in value):
            raise ValueError(f"numbers have 1 to {MOST_DIGITS} digits")
        return value

    @field_validator("digits")
    @classmethod
    def _some_pair(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value == (1,):
            raise ValueError("sums of one digit and one digit are too few to keep some from training; add a length")
        return value

    @field_validator("unseen_digits")
    @classmethod
    def _several_digits(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if 1 in value:
            raise ValueError("sums of one digit and one digit are too few to tell anything; give 2 or more digits")
        return value

    @field_validator("separator")
    @classmethod
    def _tells_groups_apart(cls, value: str) -> str:
        if value.isdigit() or value in "+=\n\r":
            raise ValueError(f"{value!r} is a part of the question itself; use a comma, a space, a dot, '#' or '$'")
        return value

    @model_validator(mode="after")
    def _unseen_lengths_are_unseen(self) -> AdditionOptions:
        both = sorted(set(self.digits) & set(self.unseen_digits))
        if both:
            raise ValueError(
                f"unseen_digits: {', '.join(map(str, both))} is also in 'digits', which are trained on; "
                f"write unseen_digits: [] or other lengths"
            )
        return self


class TrapsOptions(SuiteOptions):
    """Two words without the space between them, where a token of the tokenizer lies across the border: an option of
    its own beside ``suites``, because what is asked depends on the tokenizers."""

    items: int = Field(400, ge=8)
    """How many questions, spread evenly over the tokenizers; half of them are traps, half their controls."""
    pairs: int = Field(20_000, ge=1000, le=1_000_000)
    """Glued pairs of words that are tried, to count traps and to find them."""
    shots: int = Field(2, ge=0, le=8)
    """Solved examples before each question."""


class SuitesOptions(StageConfig):
    """Which suites, each with its options: ``{langgame: {items: 200}, cute: {}}``, or their names alone in a list."""

    langgame: LangGameOptions | None = None
    """Which of four words …: letters, beginnings, ends and lengths of words (StochasTok, arXiv 2506.01687)."""
    cute: CuteOptions | None = None
    """Spelling and editing letters and words, after CUTE (Edman et al., EMNLP 2024)."""
    addition: AdditionOptions | None = None
    """Sums, by carries, lengths and chunks of digits (StochasTok; Singh & Strouse, arXiv 2402.14903)."""

    @model_validator(mode="before")
    @classmethod
    def _names_alone_take_the_defaults(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
            return {name: {} for name in value}
        return value

    @model_validator(mode="after")
    def _some_suite(self) -> SuitesOptions:
        if not self.chosen():
            raise ValueError(f"no suite is named; there are {', '.join(type(self).model_fields)}")
        return self

    def chosen(self) -> dict[str, SuiteOptions]:
        """Name -> options of the suites that are wanted."""
        options = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in options.items() if value is not None}


def _without_repeats(value: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = sorted({str(item) for item in value if value.count(item) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is there more than once")
    return value
