"""No output shows the user and password of a URL."""

from __future__ import annotations

import logging

import pytest

from braid.index.redact import RedactingFormatter, redacted

SECRETS = ("s3cret", "p@ss", "user:")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:s3cret@host:6379/0", "redis://***@host:6379/0"),
        ("rediss://user:s3cret@host", "rediss://***@host"),
        ("at redis://u:p@ss@host/0 and http://u@b/", "at redis://***@host/0 and http://***@b/"),
        ("redis://host:6379/0?password=s3cret&x=1", "redis://host:6379/0?password=***&x=1"),
        ("HTTP://u:s3cret@[::1]:1/a@b", "HTTP://***@[::1]:1/a@b"),
        ("mail me@host, no url", "mail me@host, no url"),
        ("http://host/path?to=a@b", "http://host/path?to=a@b"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_user_and_password_are_stars(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(ValueError(text)) == shown


def test_a_log_shows_none_either() -> None:
    formatter = RedactingFormatter("%(message)s")
    try:
        raise ConnectionError("redis://user:s3cret@host does not answer")
    except ConnectionError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "x.py", 1, "at %s", ("http://user:s3cret@b",), None
        )
        record.exc_info = (type(error), error, error.__traceback__)
    text = formatter.format(record)
    assert "http://***@b" in text
    assert "redis://***@host" in text
    assert not any(secret in text for secret in ("s3cret", "user"))
