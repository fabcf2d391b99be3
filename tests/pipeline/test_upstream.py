"""What a recipe says about stages together: inputs that a stage can do without, and what its neighbours must give."""

from __future__ import annotations

import pytest

from pipeline.errors import RecipeError
from pipeline.reading.loading import load_recipe

HEADER = """\
name: cached
models:
  student: {model: ./student, tokenizer: ./target}
data:
  train: [{path: ./a.txt}]
"""
TEACHER = HEADER.replace("models:\n", "models:\n  teacher: {model: ./teacher}\n")
STAGES = """\
stages:
  align: {uses: align}
  init: {uses: init, needs: [align]}
"""
SCORE = "  score: {uses: score}\n"


def distill(needs: str, losses: str, **options: str) -> str:
    extra = "".join(f", {name}: {value}" for name, value in options.items())
    return f"  distill: {{uses: distill, needs: [{needs}], steps: 1, losses: [{losses}]{extra}}}\n"


@pytest.fixture
def load(tmp_path):
    def load(text: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path)

    return load


@pytest.fixture
def problems(load):
    def problems(text: str) -> list[str]:
        with pytest.raises(RecipeError) as raised:
            load(text)
        return [problem.split("recipe.yaml:", 1)[1].split(": ", 1)[1] for problem in raised.value.problems]

    return problems


def test_scores_take_the_teachers_place(load):
    recipe = load(TEACHER + STAGES + SCORE + distill("init, score", "alm"))
    assert recipe.stages["distill"].inputs["teacher"] == ("score",)
    assert recipe.stages["score"].inputs == {"teacher": ("sources/teacher",), "documents": ("sources/train",)}
    recipe = load(TEACHER + STAGES + SCORE + distill("init", "alm"))
    assert recipe.stages["distill"].inputs["teacher"] == ("sources/teacher",)


def test_imported_scores_need_no_teacher_at_all(load):
    served = "  score: {uses: import-scores, path: ./served.jsonl}\n"
    recipe = load(HEADER + STAGES + served + distill("init, score", "dpca"))
    assert recipe.stages["distill"].inputs["teacher"] == ("score",)
    assert "sources/teacher" not in recipe.stages


def test_cross_entropy_alone_uses_a_teacher_where_there_is_one(load):
    assert load(TEACHER + STAGES + distill("init", "cross_entropy")).stages["distill"].inputs["teacher"]
    scored = load(TEACHER + STAGES + SCORE + distill("init, score", "cross_entropy"))
    assert scored.stages["distill"].inputs["teacher"] == ("score",)
    assert "teacher" not in load(HEADER + STAGES + distill("init", "cross_entropy")).stages["distill"].inputs


def test_a_loss_that_needs_a_teacher_asks_for_one(problems):
    (problem,) = problems(HEADER + STAGES + distill("init", "alm"))
    assert problem == "models.teacher.model: required, but not given: it is input 'teacher' of stage 'distill'"


@pytest.mark.parametrize(
    ("stage", "losses", "expected"),
    [
        (SCORE, "bpm", "bpm needs the teacher's most probable tokens, which score does not keep: give it top_k"),
        (SCORE, "strict", "strict needs the teacher's whole distribution, which score does not keep: leave it out"),
        (SCORE, "hidden_states", "hidden_states needs the teacher's hidden states, which score does not keep: give it"),
        (
            "  score: {uses: import-scores, path: ./served.jsonl}\n",
            "alm",
            "alm with these options needs the probability of a boundary after every token, which score does not keep: "
            "imported scores have it with boundary: top_k; alm does without it with gamma: null and debias: false",
        ),
    ],
)
def test_an_objective_that_needs_more_than_is_kept_is_refused_before_anything_runs(problems, stage, losses, expected):
    (problem,) = problems(TEACHER + STAGES + stage + distill("init, score", losses))
    assert problem.startswith(f"stages.distill.losses[0].{losses}: {expected}")
    assert "dpca" in problem.rsplit("or use one of", 1)[1]


def test_what_is_kept_is_enough(load):
    keeping = "  score: {uses: score, top_k: 8, hidden_states: [-1]}\n"
    load(TEACHER + STAGES + keeping + distill("init, score", "bpm, hidden_states, alm"))
    served = "  score: {uses: import-scores, path: ./served.jsonl, boundary: top_k}\n"
    load(TEACHER + STAGES + served + distill("init, score", "alm"))


def test_options_of_a_teacher_that_runs_do_not_go_with_scores(problems):
    (problem,) = problems(TEACHER + STAGES + SCORE + distill("init, score", "alm", teacher_dtype="bf16"))
    assert problem.startswith("stages.distill.teacher_dtype: has no effect: no teacher is loaded where score keeps")


def test_two_stages_cannot_both_score(problems):
    both = SCORE + SCORE.replace("score:", "again:")
    (problem,) = problems(TEACHER + STAGES + both + distill("init, score, again", "alm"))
    assert "input 'teacher' takes one 'scores' artifact, but score and again make one each: keep one" in problem


TEXT, CHAT = "{path: ./b.jsonl}", "{path: ./chat.jsonl, messages: messages}"


@pytest.mark.parametrize("uses", ["distill, losses: [cross_entropy]", "stochastok"])
def test_the_best_checkpoint_is_not_chosen_by_conversations(load, problems, uses):
    def recipe(*sets: str, keep_best: str = ", keep_best: {every: 1}") -> str:
        held_out = HEADER + f"  eval: [{', '.join(sets)}]\n"
        return held_out + STAGES + f"  train: {{uses: {uses}, needs: [init], steps: 1{keep_best}}}\n"

    (problem,) = problems(recipe(CHAT))
    assert problem.startswith("stages.train.keep_best: measures the student on the first documents of data.eval, which")
    assert "the conversations of 'chat'" in problem
    assert problems(recipe(CHAT, TEXT))
    assert problems(recipe(TEXT[:-1] + ", stream: true}", CHAT)), "what is streamed comes after the rest"
    # Only so many documents are read, so conversations behind texts may never be seen.
    load(recipe(TEXT, CHAT))
    load(recipe(CHAT, keep_best=""))
