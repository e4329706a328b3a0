"""Replaces passwords and secrets in text, and in log records."""

from __future__ import annotations

import logging
import re

STARS = "***"
# Up to the last @ before a blank, a quote or a path: passwords may hold an @ that is not encoded.
_USERINFO = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#'\"<>]*@")
_SECRET = re.compile(
    r"(?P<name>[?&](?:password|passwd|token|api_key|apikey|secret)=)[^\s&#'\"<>]*", re.IGNORECASE
)


def redacted(text: object) -> str:
    """The text with `***` for user and password of every URL, and for secrets in query strings."""
    shown = _USERINFO.sub(rf"\g<scheme>{STARS}@", str(text))
    return _SECRET.sub(rf"\g<name>{STARS}", shown)


class RedactingFormatter(logging.Formatter):
    """Formats a log record with its traceback and redacts the result."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))
