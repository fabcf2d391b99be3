"""``pipeline init``."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import EXIT_OK, RecipeError

if TYPE_CHECKING:
    from pipeline.starting.starter import Starter

SUMMARY = "write a first recipe for your own text"

EPILOG = """\
On a terminal it asks for what is not given. Without --eval some of the text is held out. Nothing is overwritten.
  transfer     give a model another tokenizer (default: SmolLM2-135M, GPT-2's vocabulary)
  byteify      make a byte-level model of a model
  distil       teach --student what --teacher knows, each with its own tokenizer
  stochastok   go on training a model on tokens that are split at random
"""

USES = ("transfer", "byteify", "distil", "stochastok")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``init``."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the run and of the file NAME.yaml (first)")
    parser.add_argument("--use", choices=USES, metavar="USE", help=f"{' | '.join(USES)} (transfer)")
    parser.add_argument("--teacher", metavar="MODEL", help="directory, *.gguf, package:NAME/path, or org/name")
    parser.add_argument("--student", metavar="MODEL", help="the same; default: the teacher itself")
    parser.add_argument("--target-tokenizer", metavar="TOKENIZER", help="what `transfer` gives the student")
    parser.add_argument("--train", action="extend", nargs="+", default=[], metavar="FILE", help="text to train on")
    parser.add_argument("--eval", action="extend", nargs="+", default=[], metavar="FILE", help="held-out text")
    parser.add_argument("--text", metavar="FIELD", help="the field of a record that holds the text (text)")


def execute(arguments: argparse.Namespace) -> int:
    """Ask for what is missing, write the recipe, and say what to do next."""
    from pipeline.starting.own_text import hold_out, parts_of, sets_of
    from pipeline.starting.starter import render

    if sys.stdin.isatty():
        _ask(arguments)
    name = arguments.name or "first"
    _check_name(name)
    path = Path(f"{name}.yaml")
    if path.exists():
        raise RecipeError(f"{path} is there already: choose another name, or remove it")
    _check(arguments)
    own = sets_of(arguments.train, path.parent, field=arguments.text)
    train, evaluation = own, sets_of(arguments.eval, path.parent, field=arguments.text)
    if arguments.text not in (None, "text") and not any("text" in each for each in (*own, *evaluation)):
        raise RecipeError(f"--text {arguments.text}: none of these files has records with fields")
    if not evaluation:
        train, evaluation = parts_of(own, name)
    _write(path, render(_starter(arguments, name, train, evaluation)))
    if train is not own:
        try:
            lines = hold_out(own, train, evaluation, path.parent)
        except (RecipeError, OSError):
            path.unlink()
            raise
        print("\n".join(lines))
    audit = [] if arguments.use == "stochastok" else [f"\n  pipeline audit {path}"]
    print(f"{path} is written. Next:{''.join(audit)}\n  pipeline run {path}")
    return EXIT_OK


def _check_name(name: str) -> None:
    """Refuse a name that no run can have, before it becomes that of a file."""
    from pipeline.recipe import run_name

    try:
        run_name(name)
    except ValueError as error:
        raise RecipeError(str(error)) from None


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that have no effect, and references that lead nowhere.

    Raises:
        RecipeError: says which.
    """
    use = arguments.use or "transfer"
    if arguments.target_tokenizer is not None and use != "transfer":
        raise RecipeError(f"--target-tokenizer is for --use transfer; {use} has its own")
    if arguments.student is not None and use == "stochastok":
        raise RecipeError("--student is not for --use stochastok, which trains one model: name it with --teacher")
    if not arguments.train:
        raise RecipeError("what shall it train on? Name a file or several: --train FILE")
    for reference in (arguments.teacher, arguments.student, arguments.target_tokenizer):
        _check_reference(reference)


def _starter(arguments: argparse.Namespace, name: str, train: list[Any], evaluation: list[Any]) -> Starter:
    from pipeline.starting.starter import Starter, default_target, default_teacher

    return Starter(
        name=name,
        use=arguments.use or "transfer",
        teacher=arguments.teacher or default_teacher(),
        student=arguments.student,
        target=arguments.target_tokenizer or default_target(),
        train=tuple(train),
        evaluation=tuple(evaluation),
    )


def _check_reference(reference: str | None) -> None:
    """Refuse a reference that is not one; whether the hub has it is found out when it is needed."""
    from pipeline.starting.own_text import check_literal
    from stages.references import HubReference, ReferenceProblem, parse

    if reference is not None:
        check_literal(reference)
    if reference is None or reference == "bytes":
        return
    try:
        found = parse(reference, Path.cwd())
        if not isinstance(found, HubReference):
            found.locate()
    except ReferenceProblem as problem:
        raise RecipeError(str(problem)) from None


def _write(path: Path, text: str) -> None:
    """Write the recipe, unless it is not one."""
    from pipeline.reading.launch_checks import check_recipe
    from pipeline.reading.loading import load_recipe

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error.strerror}") from None
    try:
        check_recipe(load_recipe(path))
    except RecipeError:
        path.unlink()
        raise


def _ask(arguments: argparse.Namespace) -> None:
    """Fill in what was not given, each with its default for an empty answer."""
    from pipeline.starting.starter import USES as MEANINGS

    print("An empty answer takes what stands in brackets.")
    if arguments.use is None:
        for use, meaning in MEANINGS.items():
            print(f"  {use:<12}{meaning}")
        arguments.use = _choice("What for", MEANINGS, "transfer")
    arguments.name = arguments.name or _answer("Name of the run", "first")
    arguments.teacher = arguments.teacher or _answer("Model", None, "SmolLM2-135M, out of a Python package")
    if arguments.use == "distil" and arguments.student is None:
        arguments.student = _answer("Student", None, "the same model")
    if arguments.use == "transfer" and arguments.target_tokenizer is None:
        arguments.target_tokenizer = _answer("Tokenizer that it shall get", None, "GPT-2's, out of a Python package")
    while not arguments.train:
        arguments.train = _files("Files of text to train on (at least one)")
    if not arguments.eval:
        arguments.eval = _files("Files of held-out text", "a part of the others")


def _files(question: str, meaning: str | None = None) -> list[str]:
    """File names as a shell takes them: one with spaces is in quotes."""
    while True:
        try:
            return shlex.split(_answer(question, None, meaning) or "")
        except ValueError:
            print("a quote is not closed")


def _answer(question: str, default: str | None, meaning: str | None = None) -> str | None:
    shown = meaning or default
    try:
        return input(f"{question} [{shown}]: " if shown else f"{question}: ").strip() or default
    except EOFError:
        raise RecipeError("\nno answer: nothing was written") from None


def _choice(question: str, known: Any, default: str) -> str:
    from pipeline.nearest import unknown_name

    while (answer := _answer(question, default)) not in known:
        print(f"there is no {answer!r}{unknown_name(answer or '', list(known))}")
    return answer
