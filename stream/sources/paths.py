"""Paths into a message: JMESPath expressions and templates of them, compiled at start.

Beside JMESPath's own functions, `key()`, `headers()` and `timestamp()` give the message's key,
headers (name to text) and time in milliseconds, `position()` its topic, partition and offset as
one text, and `envelope()` the Debezium envelope of a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError, JMESPathTypeError
from jmespath.functions import Functions, signature

from ..errors import BadRecord, ConfigError, StreamError
from ..kafka.packing import kind, shown

STAGE = "map"
_FIELDS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_PART = re.compile(r"\$\{([^{}]*)\}")


@dataclass(slots=True)
class Scope:
    """What the functions of a path give for the message at hand."""

    key: Callable[[], Any] = lambda: None
    headers: Mapping[str, str] = field(default_factory=dict)
    timestamp: int = 0
    position: str = ""
    envelope: Any = None


class _Functions(Functions):
    """JMESPath's functions and those of the message. One for each source: it has state."""

    def __init__(self) -> None:
        self.scope = Scope()

    @signature()
    def _func_key(self) -> Any:
        return self.scope.key()

    @signature()
    def _func_headers(self) -> Any:
        return self.scope.headers

    @signature()
    def _func_timestamp(self) -> Any:
        return self.scope.timestamp

    @signature()
    def _func_position(self) -> Any:
        return self.scope.position

    @signature()
    def _func_envelope(self) -> Any:
        return self.scope.envelope


class Path:
    """One path or template.

    Args:
        name: the setting, for messages, such as `map.id`.
        text: a JMESPath expression, or a template with parts `${expression}`.
    """

    def __init__(self, paths: Paths, name: str, text: str) -> None:
        self._paths, self._text = paths, text
        self.name = name
        self.is_template = "${" in text
        self._parts: list[str | Callable[[Any], Any]] = []
        if not self.is_template:
            self._find = self._compiled(text)
            return
        at = 0
        for part in _PART.finditer(text):
            self._parts += [text[at : part.start()], self._compiled(part[1])]
            at = part.end()
        self._parts.append(text[at:])
        if any("${" in part for part in self._parts if isinstance(part, str)):
            raise ConfigError(f"{paths.where}.{name}: {text!r}: a ${{ has no }} after it")

    def find(self, document: Any, *, gaps: bool = False) -> Any:
        """The value in a document; None: it is absent, as an empty text is.

        Args:
            gaps: parts of a template may be absent, but not all; else none may.

        Raises:
            BadRecord: it cannot be evaluated, or a part of a template is no text or number.
        """
        try:
            value = self._filled(document, gaps) if self.is_template else self._find(document)
        except (StreamError, MemoryError):
            raise
        except JMESPathTypeError as error:
            if error.actual_type != "null":
                raise self.bad(f"cannot be evaluated: {error}") from None
            value = None  # a function of what is absent
        except Exception as error:  # noqa: BLE001 (functions raise many kinds on odd values)
            raise self.bad(f"cannot be evaluated: {error}") from None
        return None if value == "" else value

    def bad(self, reason: str) -> BadRecord:
        """The error of a message in which the path finds nothing usable."""
        return BadRecord(self.name, f"path {shown(self._text)} {reason}", stage=STAGE)

    def _filled(self, document: Any, gaps: bool) -> str | None:
        values = [part if isinstance(part, str) else part(document) for part in self._parts]
        fields = values[1::2]
        if all(value is None or value == "" for value in fields):
            return None
        if not gaps and any(value is None or value == "" for value in fields):
            return None
        return "".join(self._as_text(value) for value in values)

    def _as_text(self, value: Any) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int | float):
            return str(value)
        raise self.bad(f"has a part that is a {kind(value)}, not a text or number")

    def _compiled(self, text: str) -> Callable[[Any], Any]:
        where = f"{self._paths.where}.{self.name}"
        if _FIELDS.fullmatch(text):
            return _fields(text.split("."))
        try:
            expression = jmespath.compile(text)
        except JMESPathError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{where}: {text!r} is not JMESPath: {reason}") from None
        table = _Functions.FUNCTION_TABLE
        if unknown := {name for name in _functions(expression.parsed) if name not in table}:
            raise ConfigError(f"{where}: {text!r}: there is no function {', '.join(unknown)}()")
        options = self._paths.options
        return lambda document: expression.search(document, options)


class Paths:
    """Compiles the paths of one source, and holds the message that they are evaluated for.

    Args:
        where: names the source in messages, such as `sources.products`.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._functions = _Functions()
        self.options = jmespath.Options(custom_functions=self._functions)

    def path(self, name: str, text: str) -> Path:
        """Raises ConfigError: not JMESPath, or an unknown function."""
        return Path(self, name, text)

    def enter(self, scope: Scope) -> None:
        """Evaluate for this message from here on."""
        self._functions.scope = scope


def _fields(names: list[str]) -> Callable[[Any], Any]:
    """The plainest expression, `a.b.c`, without the interpreter of JMESPath."""

    def find(document: Any) -> Any:
        for name in names:
            if not isinstance(document, Mapping):
                return None
            document = document.get(name)
        return document

    return find


def _functions(node: Mapping[str, Any]) -> Iterator[str]:
    if node["type"] == "function_expression":
        yield node["value"]
    for child in node["children"]:
        if isinstance(child, Mapping):
            yield from _functions(child)
