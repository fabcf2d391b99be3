"""What a stage is and reads, in words."""

from __future__ import annotations

import inspect

from stages.stage import Input


def stage_summary(stage: type) -> str:
    """The first paragraph of the stage's docstring."""
    return " ".join(inspect.cleandoc(stage.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")


def inputs_in_words(stage: type) -> str:
    """Where each input comes from, and what the stage makes."""
    inputs = "; ".join(f"{name}: {_input(each)}" for name, each in stage.inputs.items())
    return f"Reads {inputs}. Makes: {stage.output.kind}." if inputs else f"Makes: {stage.output.kind}."


_SECTIONS = {
    "teacher": "models.teacher",
    "student": "models.student",
    "donor": "models.donor",
    "teacher_config": "the configuration of models.teacher",
    "student_config": "the configuration of models.student",
    "tokenizer": "models.student.tokenizer",
    "train": "data.train",
    "eval": "data.eval",
}


def _input(declared: Input) -> str:
    kinds = declared.artifact if isinstance(declared.artifact, tuple) else (declared.artifact,)
    kind = " or ".join(dict.fromkeys(each.kind for each in (*kinds, *filter(None, [declared.replacement]))))
    if declared.source is None:
        where = f"{'every' if declared.many else 'the'} {kind} of `needs`"
    else:
        where = _SECTIONS[declared.source]
        where += f" or a {kind} of `needs`" if declared.replaceable else ""
    return f"{where} (if the options ask for it)" if declared.optional else where
