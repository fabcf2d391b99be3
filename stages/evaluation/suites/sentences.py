"""Plain sentences of random words."""

from __future__ import annotations

from random import Random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NOUNS = _words(
    """
    baker bear bird boat boy bridge captain carpenter cat child clock cook cow dancer doctor dog dragon driver
    duck farmer fish fisherman fox friend frog gardener giant girl goat guard guest hen horse hunter king kitten
    lamp lion mouse neighbour nurse octopus owl painter parrot pilot pirate poet pony potter puppy queen rabbit
    robot sailor sheep singer soldier stranger student sweeper teacher tiger train traveller turtle visitor waiter
    whale wizard wolf writer
    """
)
_VERBS = _words(
    """
    barked bowed climbed cried danced dreamed fell floated grumbled hid hopped hummed jumped knocked landed
    laughed leaned listened looked marched moved paused played prayed pushed ran rested rolled sang sat shivered
    shouted slept smiled sneezed spoke stood stopped swam talked travelled trembled turned waited walked wandered
    waved whispered whistled yawned
    """
)
_ADJECTIVES = _words(
    """
    angry brave bright brown careful cheerful clever cold curious dusty eager early famous friendly gentle golden
    grey happy heavy honest hungry lazy little lonely lucky merry narrow noisy old patient polite proud quick
    quiet round sad shy silent silver sleepy slow small strange strong tall tired tiny warm wet white wild wise
    wooden young
    """
)
_PREPOSITIONS = _words("above across against around behind below beside beyond near past towards under with without")
_ADVERBS = _words(
    """
    again alone always badly calmly carefully early gently happily home loudly nearby outside quickly quietly
    slowly softly suddenly together today tonight twice upstairs well yesterday
    """
)

SENTENCE_WORDS = (*_NOUNS, *_ADJECTIVES, *_ADVERBS)
"""Words that sentences are asked about, or edited with."""


def random_sentence(rng: Random) -> tuple[str, ...]:
    """The words of a plain sentence, 3 to 10 of them, the first with a capital."""
    words = list(_subject(rng))
    words.append(rng.choice(_VERBS))
    if rng.random() < 0.5:
        words += [rng.choice(_PREPOSITIONS), *_subject(rng)]
    if rng.random() < 0.4:
        words.append(rng.choice(_ADVERBS))
    words[0] = words[0].capitalize()
    return tuple(words)


def _subject(rng: Random) -> list[str]:
    adjective = [rng.choice(_ADJECTIVES)] if rng.random() < 0.5 else []
    return [rng.choice(("the", "our", "this", "that", "every")), *adjective, rng.choice(_NOUNS)]
