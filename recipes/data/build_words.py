"""Make the word list of the evaluation suites: ``python recipes/data/build_words.py stages/evaluation/suites``.

The most frequent words of the quickstart's novel and speeches (public domain and CC0), so many of each length, and
words chosen by hand that hold a rare letter twice, so that every letter of the alphabet can be asked for.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
WORDS_OF_LENGTH = {2: 24, 3: 140, 4: 320, 5: 340, 6: 320, 7: 280, 8: 220, 9: 150, 10: 110, 11: 60, 12: 36}
WORD = re.compile(r"(?<![\w'’-])[A-Za-z]+(?![\w'’-])")

TWICE = """
baby bubble rabbit ribbon cabbage hobby bulb bomb barber pebble rubber number bumblebee babble probably
coffee office giraffe traffic effort cliff stiff fluffy waffle offer affair scarf puffin daffodil fulfil
garage baggage gauge giggle luggage begging juggle goggles foggy gigantic biggest language eggshell zigzag
church health hitchhike highway rhythm shellfish though although heath toothbrush hunchback fishhook height
jujube jejune jujitsu jojoba jinjili juju
kayak kick kiosk knack knock skunk trekking bookmark cookbook blackjack knuckle breakneck kitschy chopstick kickback
quinquennial quinquefoil quinquennium quinquagesima
valve velvet involve survive vivid evolve revolve vivacious savvy verve survivor overview
awkward window willow widow swallow wallow wigwam wow powwow wildflower waterfowl wheelbarrow wristwatch windowsill
xerox xanthoxylum executrix maxixe
anyway yesterday mystery yearly typify everybody gypsy royalty yummy symphony synonym loyalty polygyny yearbook yolky
puzzle pizza buzz jazz fuzzy dizzy dazzle drizzle grizzly nozzle blizzard muzzle pizzazz sizzle quizzes
"""
"""Words with a letter twice that the texts hardly have, by that letter: b f g h j k q v w x y z."""


def frequent_words() -> list[str]:
    """Words that are written in lower case at least as often as not, the most frequent first."""
    lower, all_ = Counter(), Counter()
    for name in ("train-novel.jsonl", "train-speeches.jsonl"):
        for line in (HERE / name).read_text(encoding="utf-8").splitlines():
            for word in WORD.findall(json.loads(line)["text"]):
                all_[word.lower()] += 1
                lower[word] += word.islower()
    words = [word for word in all_ if 2 * lower[word] >= all_[word]]
    return sorted(words, key=lambda word: (-all_[word], word))


def word_list() -> list[str]:
    """All words in alphabetical order."""
    words = frequent_words()
    of_length = {length: [word for word in words if len(word) == length] for length in WORDS_OF_LENGTH}
    chosen = {word for length, count in WORDS_OF_LENGTH.items() for word in of_length[length][:count]}
    return sorted(chosen | set(TWICE.split()))


if __name__ == "__main__":
    (Path(sys.argv[1]) / "words.txt").write_text("\n".join(word_list()) + "\n", encoding="utf-8")
