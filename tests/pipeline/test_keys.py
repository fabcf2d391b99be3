from __future__ import annotations

import hashlib
import json
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.keys import cache_key, canonical_json, key_ingredients, keyed_params, map_references
from stages.stage import StageConfig, not_keyed, reference


class Shade(StrEnum):
    DARK = "dark"


class Part(StageConfig):
    file: str = reference()
    weight: float = 1.0
    workers: int = not_keyed(2)


class Whole(StageConfig):
    count: int
    rate: float
    shade: Shade = Shade.DARK
    parts: tuple[Part, ...] = ()
    also: tuple[str, ...] = reference(())
    optional: int | None = None
    base: Part | None = None
    verbose: bool = not_keyed(False)


def identify(location, text):
    return f"content of {text}"


def test_params_hold_declared_types_marks_and_nested_references():
    config = Whole.model_validate(
        {"count": 1, "rate": 1, "parts": [{"file": "a"}], "also": ["b", "c"], "verbose": True}
    )
    assert keyed_params(config, identify) == {
        "count": 1,
        "rate": 1.0,
        "shade": "dark",
        "parts": [{"file": {"content": "content of a"}, "weight": 1.0}],
        "also": [{"content": "content of b"}, {"content": "content of c"}],
    }
    assert isinstance(keyed_params(config, identify)["rate"], float), "1 for a float field is 1.0"


def test_references_are_identified_with_their_place():
    config = Whole(count=1, rate=1, parts=(Part(file="a"), Part(file="b")), also=("c",), base=Part(file="d"))
    seen = []
    keyed_params(config, lambda location, text: seen.append((location, text)) or "")
    assert seen == [
        (("parts", 0, "file"), "a"),
        (("parts", 1, "file"), "b"),
        (("also", 0), "c"),
        (("base", "file"), "d"),
    ]


def test_mapped_references_leave_everything_else_unset():
    config = Whole(count=1, rate=1, parts=(Part(file="a"),))
    mapped = map_references(config, lambda location, text: text.upper())
    assert mapped.parts == (Part(file="A"),)
    assert mapped.model_fields_set == {"count", "rate", "parts"}
    assert map_references(config, lambda location, text: text) == config


def test_key_is_the_hash_of_the_documented_text():
    ingredients = key_ingredients(
        "train", 3, {"rate": 0.5, "name": "ä"}, {"models": [("x", "k1"), ("y", "k2")], "data": ["k3"]}
    )
    text = (
        '{"inputs":{"data":["k3"],"models":[["x","k1"],["y","k2"]]},"key_schema":1,'
        '"params":{"name":"ä","rate":0.5},"uses":"train","version":3}'
    )
    assert cache_key(ingredients) == hashlib.sha256(text.encode()).hexdigest()
    assert json.loads(json.dumps(ingredients)) == ingredients, "kept as JSON, so it must survive it"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values), st.randoms())
def test_canonical_text_ignores_order_and_loses_nothing(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)
    assert json.loads(canonical_json(value)) == value


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), (1, "1"), (None, "null"), ([], {})])
def test_values_of_different_types_are_different_texts(one, other):
    assert canonical_json({"a": one}) != canonical_json({"a": other})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": value})


def test_a_value_without_json_form_is_refused():
    class Odd(StageConfig):
        data: bytes

    with pytest.raises(TypeError, match="bytes cannot be part of a cache key"):
        keyed_params(Odd(data=b"x"), identify)
