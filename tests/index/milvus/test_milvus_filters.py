"""Milvus filters match what the filter matches, for any names and values."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braid.index.filters import And, Equals, Exists, Filter, Not, OneOf, Or, Range, compile_filter
from braid.index.milvus.client import query
from braid.index.milvus.filters import MAX_TAGS, expression, quoted, tags_of
from braid.index.milvus.store import MilvusStore
from tests.index.lite import fresh, opened
from tests.index.oracle import unit, upsert

PLAIN = ["lang", "alive", "a-b_9"]
STRANGE = ["", 'x"] == 1 or alive == true or meta["x', "[0]", "é", "a\\", "half\ud800"]
STRINGS = ["", "a", "b", "1", "true", "None", 'a"b', "a\\", "a\\\\", "é", "𝄞", "\n", "\r\t", "\x00"]
NUMBERS = [0, 1, 1.0, -1, -0.0, 0.1, 7, 1e-7, 5e-324, 1e300, -1e300, 2**53 - 1]
HUGE = [2**53, 2**53 + 1, float(2**53), 2**60 + 1, 2**63 - 1, -(2**63), 2**64 - 1]
SCALARS: list[Any] = [None, True, False, *STRINGS, *NUMBERS, *HUGE]
LISTS: list[Any] = [[], [None], [1, "a"], [True], [1.0, 2**53 + 1], ["a\\", 'a"b', None], [0.1, 0]]
FIELDS = [*PLAIN, *STRANGE]


def metas() -> list[dict[str, Any]]:
    """Every value once in two of the fields, mixed with others; and metas that have no tags."""
    rng = random.Random(3)
    made: list[dict[str, Any]] = [{}]
    for value in [*SCALARS, *LISTS, {"deep": 1}]:
        for field in rng.sample(FIELDS, 2):
            others = {rng.choice(FIELDS): rng.choice([*SCALARS, *LISTS]) for _ in range(2)}
            made.append({**others, field: value})
    return [*made, {"lang": list(range(5000))}, {"lang": "\x01" * 16_000}, {"alive": float("nan")}]


METAS = metas()


def stored() -> dict[str, dict[str, Any]]:
    return {f"m{number}": meta for number, meta in enumerate(METAS)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusStore]:
    path: Path = tmp_path_factory.mktemp("milvus") / "filters.db"
    with opened(path) as client:
        made = fresh(client)
        writes = [upsert(id_, 1, by=[], meta=meta) for id_, meta in stored().items()]
        made.apply(writes, positions={}, progress={})
        yield made


def leaves(fields: list[str], numbers: list[Any]) -> st.SearchStrategy[Filter]:
    field = st.sampled_from(fields)
    scalar = st.sampled_from(SCALARS)
    bound = st.sampled_from([*STRINGS, *numbers])
    return st.one_of(
        st.builds(Equals, field, scalar),
        st.builds(OneOf, field, st.lists(scalar, min_size=1, max_size=4).map(tuple)),
        st.builds(Exists, field, st.booleans()),
        st.builds(Range, field, st.sampled_from(["gt", "gte", "lt", "lte"]), bound),
        st.builds(Range, field, st.sampled_from(["gt", "gte", "lt", "lte"]), bound),
    )


def trees(leaf: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    def wider(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
        parts = st.lists(inner, min_size=1, max_size=3).map(tuple)
        return st.one_of(st.builds(And, parts), st.builds(Or, parts), st.builds(Not, inner))

    return st.recursive(leaf, wider, max_leaves=5)


MANY = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def admitted(filter: Filter) -> set[str]:
    return {id_ for id_, meta in stored().items() if filter(meta)}


@pytest.mark.slow
@MANY
@given(trees(leaves(FIELDS, [*NUMBERS, *HUGE, 10**400, -(10**400), 1.7e308])))
def test_a_search_finds_what_the_filter_admits(store: MilvusStore, filter: Filter) -> None:
    (hits,) = store.search(unit("q")[None], k=len(METAS), filter=filter)
    assert {hit.id for hit in hits} == admitted(filter)


@pytest.mark.slow
@MANY
@given(trees(leaves(PLAIN, [n for n in NUMBERS if abs(n) < 1e300])))  # inexact in Milvus Lite
def test_for_plain_names_and_numbers_milvus_finds_nothing_more(
    store: MilvusStore, filter: Filter
) -> None:
    """So that no search has to look further; but for rows whose meta has no tags."""
    condition = f"alive == true and tagged == true and {expression(filter)}"
    result = query(store._client, store.collection, condition, ["id"], timeout_s=10)
    tagged = {id_ for id_, meta in stored().items() if tags_of(meta) is not None}
    assert {row["id"] for row in result} == admitted(filter) & tagged


@pytest.mark.slow
def test_a_range_that_ends_at_a_stored_value_is_as_sharp_as_the_filter(store: MilvusStore) -> None:
    ends = [
        (field, value)
        for meta in METAS
        for field, value in meta.items()
        if field in PLAIN and (value in STRINGS or value in NUMBERS) and not isinstance(value, bool)
    ]
    assert {type(value) for _, value in ends[:12]} == {int, float, str}
    for field, value in ends[:12]:
        for op in ("gt", "gte", "lt", "lte"):
            for filter in (Range(field, op, value), Not(Range(field, op, value))):
                (hits,) = store.search(unit("q")[None], k=len(METAS), filter=filter)
                assert {hit.id for hit in hits} == admitted(filter)


@pytest.mark.parametrize(
    ("op", "bound", "condition"),
    [
        ("gt", 2**53 - 1, '(meta["n"] > 9007199254740991)'),
        ("gt", 2**53, '(meta["n"] >= 9007199254740991.0)'),
        ("lt", 2**53 + 1, '(meta["n"] <= 9007199254740994.0)'),
        ("lte", -(2**53), '(meta["n"] <= -9007199254740991.0)'),
        ("gte", 1e308, '(meta["n"] >= 9.999999999999998e+307)'),
        ("gt", 10**400, "(tagged == true or tagged == false)"),
    ],
)
def test_a_bound_that_a_double_may_miss_lets_its_neighbours_in(
    op: str, bound: float, condition: str
) -> None:
    """A server compares as doubles; Lite does not, so only the text can be looked at here."""
    assert expression(Range("n", op, bound)).endswith(f" and {condition}))")


def test_no_parts_and_no_values(store: MilvusStore) -> None:
    for filter in (And(()), Or(()), Not(And(())), OneOf("lang", ()), Not(OneOf("lang", ()))):
        (hits,) = store.search(unit("q")[None], k=len(METAS), filter=filter)
        assert {hit.id for hit in hits} == admitted(filter)


@pytest.mark.slow
def test_the_largest_filter_that_is_allowed_is_answered(store: MilvusStore) -> None:
    given = {f"f{number}": {"in": [None, *range(999)]} for number in range(60)}
    (hits,) = store.search(unit("q")[None], k=len(METAS), filter=compile_filter(given))
    assert {hit.id for hit in hits} == set(stored())


def test_no_name_of_a_query_stands_in_an_expression_as_it_was_given() -> None:
    """But for the plain name and the quoted bound of a range."""
    evil = 'x" or alive == false or "'
    parts = (Equals(evil, evil), OneOf(evil, (evil, 1)), Exists(evil, True), Range(evil, "gt", 1))
    assert "false" not in expression(And(parts)).replace("tagged == false", "")
    condition = expression(Range("n", "gt", 'a"\\\n'))
    assert condition.endswith('(meta["n"] > "a\\"\\\\\\n")))')
    assert quoted("it's\x00é") == '"it\'s\x00é"'


def test_a_meta_has_tags_up_to_the_limit() -> None:
    """Each value is one; that the field is there is one more."""
    assert len(tags_of({"n": list(range(MAX_TAGS - 1))}) or []) == MAX_TAGS
    assert tags_of({"n": list(range(MAX_TAGS))}) is None
    assert tags_of({}) == []
    assert tags_of({"n": 1}) == tags_of({"n": 1.0}) != tags_of({"n": True})
    assert tags_of({"ab": "c"}) != tags_of({"a": "bc"})
