"""A first recipe on somebody's own text: small enough for a laptop, and annotated so that it can grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from pipeline.reference.skeleton import GPT2, SMOLLM2

Use = Literal["transfer", "byteify", "distil", "stochastok"]

USES: Mapping[Use, str] = {
    "transfer": "give a model another tokenizer",
    "byteify": "make a byte-level model of a model",
    "distil": "teach a model what another one knows, whatever their tokenizers",
    "stochastok": "teach a model what its tokens are made of, by splitting them at random",
}
"""What a first recipe can be for."""


@dataclass(frozen=True)
class Starter:
    """What a first recipe needs to know.

    Attributes:
        name: of the run.
        use: what it is for.
        teacher: a reference; the model itself where there is but one.
        student: a reference; None for the teacher itself.
        target: the target tokenizer of ``transfer``, a reference or all that a recipe may say of it.
        train, evaluation: the document sets, as a recipe has them.
    """

    name: str
    use: Use
    teacher: str
    student: str | None
    target: str | Mapping[str, Any]
    train: tuple[Mapping[str, Any], ...]
    evaluation: tuple[Mapping[str, Any], ...]


def default_target() -> Mapping[str, Any]:
    """GPT-2's vocabulary, out of a Python package."""
    return GPT2


def default_teacher() -> str:
    """SmolLM2-135M, out of a Python package."""
    return SMOLLM2


def render(starter: Starter) -> str:
    """The recipe as YAML text."""
    trained = "stochastok" if starter.use == "stochastok" else "distill"
    commands = [
        ("", "the same command goes on after an interruption"),
        (f" --set {trained}.steps=500", "train longer"),
    ]
    shown = [(f"pipeline run {starter.name}.yaml{options}", meaning) for options, meaning in commands]
    if starter.use != "stochastok":
        shown.insert(
            0, (f"pipeline audit {starter.name}.yaml", "what the tokenizers make of the text, before training")
        )
    width = max(len(command) for command, _ in shown) + 2
    return _FRAME.format(
        head=f"{USES[starter.use][0].upper()}{USES[starter.use][1:]}.",
        commands="\n".join(f"#   {command:<{width}}{meaning}" for command, meaning in shown),
        name=starter.name,
        trained=trained,
        models=_models(starter),
        train=_sets(starter.train),
        evaluation=_sets(starter.evaluation),
        stages=_STAGES[starter.use].format(
            domains=_flow([each["name"] for each in starter.train]),
            digits="warn" if starter.target == default_target() else "refuse",
            hidden_states=_HIDDEN_STATES if starter.student is None else "",
        ),
    )


def _models(starter: Starter) -> str:
    lines = [
        "  teacher:  # a directory, a *.gguf file, package:NAME/path, or org/name of the Hugging Face hub",
        f"    model: {_flow(starter.teacher)}",
    ]
    if starter.use == "stochastok":
        return "\n".join(lines)
    lines += [
        "  student:  # whose layers the student begins with, and the tokenizer that it gets",
        f"    model: {_TEACHER if starter.student is None else _flow(starter.student)}",
    ]
    if starter.use == "byteify":
        return "\n".join([*lines, "    tokenizer: bytes"])
    if starter.use == "distil":
        return "\n".join([*lines, "    tokenizer: ${models.student.model}  # its own, as it is"])
    if isinstance(starter.target, str):
        return "\n".join([*lines, f"    tokenizer: {_flow(starter.target)}"])
    target = [f"      {key}: {_flow(value)}" for key, value in starter.target.items()]
    return "\n".join([*lines, "    tokenizer:", *target])


def _sets(sets: tuple[Mapping[str, Any], ...]) -> str:
    return "\n".join(f"    - {_flow(dict(each))}" for each in sets)


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.strip().removesuffix("...").strip()


_TEACHER = "${models.teacher.model}"

_FRAME = """\
# {head}
# Sized for a laptop; the comments say what a real run would have.
#
{commands}
name: {name}
seed: 17

models:
{models}

data:  # .jsonl (a field `text` or `messages` a line), .parquet, plain text, or directories of them
  train:
{train}
  eval:  # text that is not in `train`
{evaluation}

stages:
{stages}
# On GPUs: larger windows and batches, more steps, and for instance
#
# resources:
#   {trained}: {{launcher: torchrun, gpus: 8, zero: {{student: 2}}}}
"""

_HIDDEN_STATES = "      - hidden_states: {weight: 1.0}  # teacher and student have the same layers\n"

_ALIGN_AND_INIT = """\
  # Numbers: a student whose new tokenizer cuts them differently loses arithmetic. `refuse` stops then, and names the
  # ways out; `warn` goes on.
  align: {{uses: align, digits: {digits}}}
  # Rows for the new tokens: the mean of the old rows of their pieces. Other methods: pipeline ls initializers
  init: {{uses: init, needs: [align]}}
"""

_DISTILL_OPTIONS = """\
    steps: 40               # for a real run some thousands
    batch_windows: 2        # windows of text a step; 32 to 64
    window_tokens: 128      # 512 to 2048
    learning_rate: 1e-4     # 1e-5 for models of some billions of parameters
    warmup_steps: 5
    log_every: 1
"""

_EVALUATE = """\
  # Is it the teacher, or just the text? A control learns the same text in as many steps without a teacher. To have one,
  # take the marks off this block and of `control` in `evaluate`, and name it there under `needs`.
  # control:
  #   uses: distill
  #   needs: [init]
  #   losses: [cross_entropy]
  #   steps: ${{stages.distill.steps}}
  #   batch_windows: ${{stages.distill.batch_windows}}
  #   window_tokens: ${{stages.distill.window_tokens}}
  #   learning_rate: ${{stages.distill.learning_rate}}
  #   warmup_steps: ${{stages.distill.warmup_steps}}
  #   log_every: ${{stages.distill.log_every}}
  evaluate:  # runs/NAME/stages/evaluate/out/report.html: bits per byte, nats to the teacher, samples side by side
    uses: evaluate
    needs: [init, distill]  # with the control: [init, distill, control]
    # control: control
    initial: init
    trained_domains: {domains}
    max_documents: 6        # of each domain, the fewest for intervals; to rely on them, 20 or more
    generation: {{prompts: 1, max_bytes: 80}}
"""

_TRANSFER = (
    _ALIGN_AND_INIT
    + """\
  distill:
    uses: distill
    needs: [init]
    losses:                 # pipeline ls losses
      - alm: {{weight: 5.0}}            # probabilities of pieces of text that both tokenizers cut out
{hidden_states}      - cross_entropy: {{weight: 0.5}}  # the text itself
"""
    + _DISTILL_OPTIONS
    + _EVALUATE
)

_BYTEIFY = (
    """\
  # Bytes cut numbers after every digit, as few tokenizers do.
  align: {{uses: align, digits: warn}}
  # The embedding of a byte also gets the model's own row of the longest of its tokens that ends there.
  init: {{uses: init, needs: [align], expand_input: longest_suffix}}
  distill:
    uses: distill
    needs: [init]
    losses:
      - alm: {{weight: 5.0}}
{hidden_states}      - cross_entropy: {{weight: 0.5}}
"""
    + _DISTILL_OPTIONS.replace("512 to 2048 ", "2048, of bytes ")
    + _EVALUATE
)

_DISTIL = (
    """\
  # The student keeps its tokenizer: align and init copy every row.
  align: {{uses: align}}
  init: {{uses: init, needs: [align]}}
  distill:
    uses: distill
    needs: [init]
    losses:                 # pipeline ls losses
      - alm: {{weight: 5.0}}
      - cross_entropy: {{weight: 0.5}}
"""
    + _DISTILL_OPTIONS
    + _EVALUATE
)

_STOCHASTOK = """\
  base: {{uses: model, model: "${{models.teacher.model}}"}}
  stochastok:
    uses: stochastok
    needs: [base]
    proportion: 0.1         # attempts to split a token, as a share of the tokens
    steps: 40               # for a real run some thousands
    batch_windows: 2        # windows of text a step; 32 to 64
    window_tokens: 128      # 512 to 2048
    learning_rate: 2e-5
    warmup_steps: 5
    log_every: 1
  control:                  # the same steps on the same text, nothing split
    uses: stochastok
    needs: [base]
    proportion: 0
    steps: ${{stages.stochastok.steps}}
    batch_windows: ${{stages.stochastok.batch_windows}}
    window_tokens: ${{stages.stochastok.window_tokens}}
    learning_rate: ${{stages.stochastok.learning_rate}}
    warmup_steps: ${{stages.stochastok.warmup_steps}}
    log_every: 1
  evaluate:  # runs/NAME/stages/evaluate/out/report.html
    uses: evaluate
    needs: [control, stochastok]  # beside the model as it was, which the report calls `teacher`
    control: control
    trained_domains: {domains}
    max_documents: 6        # of each domain, the fewest for intervals; to rely on them, 20 or more
    suites: {{langgame: {{items: 46}}}}  # questions about the letters of words, two of each of the 23 kinds
"""

_STAGES: Mapping[Use, str] = {
    "transfer": _TRANSFER,
    "byteify": _BYTEIFY,
    "distil": _DISTIL,
    "stochastok": _STOCHASTOK,
}
