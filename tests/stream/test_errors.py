"""Any exception that a record causes becomes a BadRecord with bounded, printable texts."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from braid.encoders.errors import BadInput
from braid.stream.errors import FIELD_CHARS, REASON_CHARS, BadRecord, bad_record


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_a_bad_record_stays_as_it_is() -> None:
    error = BadRecord("image.uri", "no such host", stage="prepare")
    assert bad_record(error, stage="decode", field="x") is error


def test_a_bad_input_keeps_its_field_and_reason() -> None:
    error = bad_record(BadInput("image", "has 9 pixels too many"), stage="prepare")
    assert (error.field, error.reason, error.stage) == ("image", "has 9 pixels too many", "prepare")
    assert error.kind == "BadInput"


def test_another_exception_gives_the_name_of_its_class_and_its_text() -> None:
    error = bad_record(ValueError("Invalid IPv6 URL"), stage="prepare", field="image.uri")
    assert str(error) == "image.uri: ValueError: Invalid IPv6 URL"
    assert (error.kind, error.stage) == ("ValueError", "prepare")


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (Unprintable(), "Unprintable"),
        (KeyError(nested(100_000)), "KeyError"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_exception_without_a_text_gives_the_name_of_its_class(
    raised: Exception, reason: str
) -> None:
    assert bad_record(raised, stage="prepare").reason == reason


def test_no_address_of_an_object_reaches_the_reason() -> None:
    with pytest.raises(OSError, match="cannot identify") as caught:
        Image.open(io.BytesIO(b"no picture"))
    reason = bad_record(caught.value, stage="prepare").reason
    assert reason == "UnidentifiedImageError: cannot identify image file BytesIO"
    shown = bad_record(ValueError(f"{io.BytesIO()!r} and {nested!r}"), stage="prepare").reason
    assert shown == "ValueError: BytesIO and function"


def test_a_name_and_a_reason_of_9_mb_are_cut() -> None:
    error = BadRecord("meta." + "n" * 9_000_000, "r" * 9_000_000)
    assert len(error.field) == FIELD_CHARS
    assert len(error.reason) == REASON_CHARS
    assert error.field.endswith("n…")
    assert len(str(error)) < FIELD_CHARS + REASON_CHARS + 3
    raised = bad_record(ValueError("\n" * 9_000_000), stage="prepare")
    assert raised.reason == "ValueError:"


@given(st.text(st.characters(), max_size=3000), st.text(st.characters(), max_size=3000))
def test_any_texts_fit_a_header_and_a_line_of_the_log(field: str, reason: str) -> None:
    error = BadRecord(field, reason)
    for text, limit in ((error.field, FIELD_CHARS), (error.reason, REASON_CHARS)):
        assert len(text) <= limit
        assert text.isprintable()
        text.encode()  # no lone surrogate
