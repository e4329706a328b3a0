"""Filters on meta: what they match, and the reasons of refusals."""

from __future__ import annotations

import math

import pytest

from braid.index.errors import BadQuery
from braid.index.filters import MAX_CHOICES, MAX_CONDITIONS, MAX_DEPTH, compile_filter

META = {"lang": "de", "year": 2021, "tags": ["red", 7], "draft": True, "none": None, "price": 1.0}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lang": "de"}, True),
        ({"lang": "fr"}, False),
        ({"year": 2021.0}, True),
        ({"year": "2021"}, False),
        ({"draft": True}, True),
        ({"draft": 1}, False),
        ({"price": 1}, True),
        ({"price": True}, False),
        ({"none": None}, True),
        ({"missing": None}, True),
        ({"missing": 0}, False),
        ({"tags": "red"}, True),
        ({"tags": 7}, True),
        ({"tags": "blue"}, False),
        ({"lang": {"in": ["fr", "de"]}}, True),
        ({"lang": {"in": ["fr"]}}, False),
        ({"tags": {"in": ["blue", 7.0]}}, True),
        ({"draft": {"in": [1, 0]}}, False),
        ({"missing": {"in": [None]}}, True),
        ({"year": {"gte": 2021, "lt": 2022}}, True),
        ({"year": {"gt": 2021}}, False),
        ({"year": {"lte": 2021}}, True),
        ({"year": {"lt": 2021}}, False),
        ({"year": {"gte": "2000"}}, False),
        ({"lang": {"gte": "da", "lte": "dz"}}, True),
        ({"draft": {"gte": 0}}, False),
        ({"missing": {"gte": 0}}, False),
        ({"lang": {"exists": True}}, True),
        ({"lang": {"exists": False}}, False),
        ({"none": {"exists": True}}, False),
        ({"missing": {"exists": False}}, True),
        ({"lang": "de", "year": 2020}, False),
        ({"and": [{"lang": "de"}, {"year": 2021}]}, True),
        ({"and": [{"lang": "de"}, {"year": 2020}]}, False),
        ({"or": [{"lang": "fr"}, {"year": 2021}]}, True),
        ({"or": [{"lang": "fr"}, {"year": 2020}]}, False),
        ({"not": {"lang": "fr"}}, True),
        ({"not": {"lang": "de"}}, False),
        ({"not": {"or": [{"lang": "fr"}, {"not": {"lang": "de"}}]}, "year": 2021}, True),
    ],
)
def test_a_filter_admits(given: object, expected: bool) -> None:
    assert compile_filter(given)(META) is expected


def test_meta_of_an_unknown_shape_equals_nothing() -> None:
    meta = {"deep": {"a": 1}, "mixed": [{"a": 1}, "x"], "nan": math.nan}
    assert not compile_filter({"deep": None})(meta)
    assert not compile_filter({"deep": {"in": ["a", None]}})(meta)
    assert compile_filter({"mixed": "x"})(meta)
    assert not compile_filter({"nan": {"gte": 0}})(meta)


def nested(depth: int) -> object:
    return {"lang": "de"} if depth == 0 else {"not": nested(depth - 1)}


@pytest.mark.parametrize(
    ("given", "field", "reason"),
    [
        ([], "filter", "object"),
        ({}, "filter", "object"),
        ("lang", "filter", "object"),
        ({"lang": {"like": "d%"}}, "filter.lang.like", "in, exists, gt"),
        ({"lang": {}}, "filter.lang", "no operator"),
        ({"lang": ["de"]}, "filter.lang", "string"),
        ({"year": math.nan}, "filter.year", "finite"),
        ({"year": {"gte": math.inf}}, "filter.year.gte", "finite"),
        ({"year": {"gte": None}}, "filter.year.gte", "number or a string"),
        ({"year": {"gte": True}}, "filter.year.gte", "number or a string"),
        ({"year": {"gte": [1]}}, "filter.year.gte", "string"),
        ({"lang": {"in": "de"}}, "filter.lang.in", "list"),
        ({"lang": {"in": []}}, "filter.lang.in", "list"),
        ({"lang": {"in": [["de"]]}}, "filter.lang.in", "string"),
        ({"lang": {"in": [0] * (MAX_CHOICES + 1)}}, "filter.lang.in", str(MAX_CHOICES)),
        ({"lang": {"exists": 1}}, "filter.lang.exists", "true or false"),
        ({"and": {"lang": "de"}}, "filter.and", "list"),
        ({"or": []}, "filter.or", "list"),
        ({"or": [{"lang": {"like": 1}}]}, "filter.or[0].lang.like", "operator"),
        ({"not": ["x"]}, "filter.not", "object"),
        (nested(MAX_DEPTH + 1), "filter" + ".not" * (MAX_DEPTH + 1), str(MAX_DEPTH)),
        ({f"f{n}": n for n in range(MAX_CONDITIONS + 1)}, "filter", str(MAX_CONDITIONS)),
    ],
)
def test_a_bad_filter_is_refused_with_its_place(given: object, field: str, reason: str) -> None:
    with pytest.raises(BadQuery) as caught:
        compile_filter(given)
    assert caught.value.field == field
    assert reason in caught.value.reason
    assert caught.value.status == 422


def test_the_deepest_filter_and_the_most_choices_that_are_allowed_work() -> None:
    assert compile_filter(nested(MAX_DEPTH))(META) is (MAX_DEPTH % 2 == 0)
    assert compile_filter({"year": {"in": list(range(2021, 2021 + MAX_CHOICES))}})(META)


def test_the_limits_are_those_that_are_documented() -> None:
    assert (MAX_DEPTH, MAX_CONDITIONS, MAX_CHOICES) == (8, 64, 1000)


@pytest.mark.parametrize("name", ["and", "or"])
def test_lists_of_filters_count_towards_the_depth(name: str) -> None:
    def listed(depth: int) -> object:
        return {"lang": "de"} if depth == 0 else {name: [listed(depth - 1)]}

    assert compile_filter(listed(MAX_DEPTH))(META)
    with pytest.raises(BadQuery, match="nested deeper"):
        compile_filter(listed(MAX_DEPTH + 1))


def test_conditions_are_counted_over_the_whole_filter() -> None:
    """The `or` and the `not` are conditions, too."""
    fields: list[object] = [{"lang": "de"}] * (MAX_CONDITIONS - 3)
    assert compile_filter({"or": [*fields, {"not": {"lang": "fr"}}]})(META)
    with pytest.raises(BadQuery, match="more than 64 conditions"):
        compile_filter({"or": [*fields, {"not": {"lang": "fr"}}, {"lang": "de"}]})


def test_a_refusal_is_short_whatever_was_sent() -> None:
    for value in (["x" * 10**6] * 100, {"x": "y" * 10**6}):
        with pytest.raises(BadQuery) as caught:
            compile_filter({"lang": {"in": [value]}})
        assert len(caught.value.reason) < 200


@pytest.mark.parametrize(
    ("value", "shown"),
    [([1, 2], "a list of 2"), ({"a": 1}, "an object of 1"), (b"raw", "b'raw'")],
)
def test_a_refusal_shows_what_was_sent(value: object, shown: str) -> None:
    with pytest.raises(BadQuery, match=f"got {shown}$"):
        compile_filter({"lang": {"in": [value]}})


def test_operators_of_one_field_must_all_match() -> None:
    between = compile_filter({"year": {"gt": 2020, "lt": 2022}})
    assert [between({"year": year}) for year in (2020, 2021, 2022)] == [False, True, False]
    assert not compile_filter({"lang": {"in": ["de"], "exists": False}})(META)
