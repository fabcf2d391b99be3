"""A suite after CUTE (Edman, Schmid & Fraser, EMNLP 2024; evaluation.md §3): letters of words, words of sentences.

Of CUTE's fourteen tasks all but ``sem``, which needs word vectors. ``orth`` goes by Levenshtein ratio alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random

from stages.evaluation.suites import cute_tasks
from stages.evaluation.suites.cute_tasks import EDITS, NO, YES, Draft, Material, letters_of, sentence
from stages.evaluation.suites.options import CuteOptions
from stages.evaluation.suites.questions import (
    Question,
    Split,
    Suite,
    Turn,
    draws,
    first_line,
    in_split,
    placed,
    settings_of,
    spread,
)
from stages.evaluation.suites.sentences import SENTENCE_WORDS, random_sentence
from stages.evaluation.suites.words import consonants, lexicon

ABOUT = (
    "Spelling, comparing and editing words by their letters and sentences by their words, after CUTE (without its task "
    "'sem'). A question follows solved examples of its task. Chosen answers are compared with near misses (two options "
    "in contains and orth, four elsewhere); written ones count if what stands between the quotation marks is the "
    "answer, whatever the case of letters in tasks on words. Material: known_words may be in training items, "
    "held_out_words are in none, random_letters are strings of consonants; sentences are other ones than training's."
)
INSTRUCTIONS: Mapping[str, str] = {
    "spell": "Spell out the word, putting a space between its letters.",
    "spell_inverse": "Write the word that is spelled out, without spaces.",
    "contains_char": "Say whether the letter is in the word.",
    "contains_word": "Say whether the word is in the sentence.",
    "orth": "Choose the word that is spelled more alike.",
    "ins_char": "Add a letter after every occurrence of another letter in the word.",
    "ins_word": "Add a word after every occurrence of another word in the sentence.",
    "del_char": "Delete every occurrence of the letter in the word.",
    "del_word": "Delete every occurrence of the word in the sentence.",
    "sub_char": "Replace every occurrence of a letter in the word by another letter.",
    "sub_word": "Replace every occurrence of a word in the sentence by another word.",
    "swap_char": "Swap the two letters in the word.",
    "swap_word": "Swap the two words in the sentence.",
}
MATERIALS = ("known_words", "held_out_words", "random_letters", "sentences")
Cell = tuple[str, str]
"""Task and material."""


def cells_of(options: CuteOptions, split: Split) -> Sequence[Cell]:
    """The kinds of question."""
    return [(task, material) for task in options.tasks for material in _materials(task, split)]


def make(options: CuteOptions, split: Split) -> Suite:
    """The suite's questions on all materials, or training items.

    Raises:
        StageError: fewer questions than there are tasks and materials.
    """
    turns = spread(cells_of(options, split), options.items, "cute")
    examples = {task: _examples(task, options) for task in options.tasks}
    return Suite(
        name="cute",
        title="Letters and words",
        about=ABOUT,
        version=options.VERSION,
        settings=settings_of(options, split, words=lexicon().digest),
        questions=[_question(turn, split, options.seed, examples[turn.cell[0]]) for turn in turns],
        groups={"task": options.tasks, "material": MATERIALS},
        forms=options.forms,
        ending="\n",
        read=read_quoted,
    )


def read_quoted(question: Question, text: str) -> str:
    """What stands between the first quotation marks of the first line, or all of it without any; in lower case in tasks
    on words."""
    line = first_line(question, text)
    answer = line[1:].split('"', 1)[0] if line.startswith('"') else line
    return answer.lower() if question.groups["task"].endswith("_word") else answer


def _materials(task: str, split: Split) -> tuple[str, ...]:
    if task.endswith("_word"):
        return ("sentences",)
    if split == "train":
        return ("known_words",)
    return ("known_words", "held_out_words") if task == "orth" else ("known_words", "held_out_words", "random_letters")


def _question(turn: Turn[Cell], split: Split, seed: int, examples: Sequence[Draft]) -> Question:
    task, material = turn.cell
    rng = draws("cute", seed, split, turn.number)
    while True:
        draft = _draft(task, material, turn.place, rng)
        if _belongs(material, split, draft) and draft not in examples:
            break
    solved = "".join(f'Question: {example.query}\nAnswer: "{example.answer}"\n\n' for example in examples)
    choices = (YES, NO) if task.startswith("contains") else placed(draft.answer, draft.wrong, turn.place)
    return Question(
        id=f"{split}/{turn.number}",
        groups={"task": task, "material": material},
        prompt=f"{INSTRUCTIONS[task]}\n\n{solved}Question: {draft.query}\nAnswer:",
        answer=f' "{draft.answer}"',
        options=tuple(f' "{choice}"' for choice in choices),
    )


def _examples(task: str, options: CuteOptions) -> list[Draft]:
    """Solved examples of a task, the same before each of its questions; yes and no take turns."""
    rng = draws("cute", options.seed, "examples", task)
    material = "sentences" if task.endswith("_word") else "known_words"
    examples: list[Draft] = []
    while len(examples) < options.shots:
        draft = _draft(task, material, len(examples), rng)
        if _belongs(material, "train", draft):
            examples.append(draft)
    return examples


def _belongs(material: str, split: Split, draft: Draft) -> bool:
    """Whether a question is one of ``split``; on held-out words and random letters there are no training items."""
    return material in ("held_out_words", "random_letters") or in_split(split, draft.query)


def _draft(task: str, material: str, place: int, rng: Random) -> Draft:
    if task == "orth":
        return cute_tasks.orth(_word_list(material), rng)
    units = _units(material)
    if task.startswith("contains"):
        return cute_tasks.contains(units, rng, holds=place % 2 == 0)
    if task.startswith("spell"):
        return {"spell": cute_tasks.spell, "spell_inverse": cute_tasks.spell_inverse}[task](units, rng)
    return EDITS[task.split("_")[0]](units, rng)


def _word_list(material: str) -> tuple[str, ...]:
    return lexicon().held_out if material == "held_out_words" else lexicon().known


def _units(material: str) -> Material:
    if material == "sentences":
        return Material(random_sentence, sentence, "word", SENTENCE_WORDS)
    drawn: Callable[[Random], str] = consonants
    if material != "random_letters":
        drawn = partial(_any_of, _word_list(material))
    return letters_of(drawn)


def _any_of(words: tuple[str, ...], rng: Random) -> str:
    return rng.choice(words)
