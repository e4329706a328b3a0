"""The exceptions of `stream`, as one tree.

StreamError
├── BadRecord          one message breaks the schema or a limit: it becomes a dead letter
├── ConfigError        a setting or a topic is not what it must be: the process does not start
├── BrokerError        Kafka answered with an error that braid cannot mend
│   ├── Unreachable    no broker answered in time
│   ├── AccessError    TLS, the credentials or an ACL: also a ConfigError
│   ├── Fenced         this worker's slot is another's now, or was taken back: it must stop
│   └── PublishRefused the transaction was aborted; its records are read again
│       └── StaleLease the group has another generation; its records are published again
├── SchemaRegistryAway the schema registry does not answer: the message is decoded later
├── WorkerError        the worker stops; what it had not committed is read again
├── RegistryError      a model version is missing, damaged or not allowed
│   └── RegistryAway   the registry's object store does not answer
├── WindowError        a training window is missing or damaged
├── LockError          another trainer runs, or whether one runs cannot be known
├── EmbeddedError      a part of the embedded services is not installed or cannot be fetched
├── FileLockError      another process uses the same folder
├── DatasetError       a data set cannot be had
└── DemoError          the demo did not get where it should
"""

from __future__ import annotations

import re

from braid.encoders.errors import BadInput

FIELD_CHARS = 200  # of a name of a field, which a producer chooses
REASON_CHARS = 500
KIND_CHARS = 80
_OBJECT = re.compile(r"<(?:[\w.]*\.)?(\w+)(?: [^<>]*)? at 0x[0-9a-fA-F]+>")


class StreamError(Exception):
    """Base of every error that `stream` raises on purpose."""


class BadRecord(StreamError, ValueError):
    """One message that can never be processed: retrying does not help.

    Both texts are made printable, on one line and bounded, since a producer chooses parts of them
    and they go into headers and log lines.

    Args:
        field: the field at fault, or `key` or `value` for the whole message; FIELD_CHARS at most.
        reason: what is wrong, with the limit and the value seen; REASON_CHARS at most.
        stage: the step of the worker that found it.
        kind: the name of the exception's class, by which dead letters are counted.
    """

    def __init__(
        self, field: str, reason: str, *, stage: str = "decode", kind: str = "BadRecord"
    ) -> None:
        self.field = bounded(field, FIELD_CHARS)
        self.reason = bounded(reason, REASON_CHARS)
        self.stage = stage
        self.kind = bounded(kind, KIND_CHARS)
        super().__init__(f"{self.field}: {self.reason}")

    @property
    def brief(self) -> str:
        """The error without its reason, which may quote the record: for logs."""
        return f"{self.kind} in {self.field}, found by {self.stage}"


def bad_record(error: Exception, *, stage: str, field: str = "record") -> BadRecord:
    """The BadRecord for any exception that one record caused, to be raised or published.

    A BadRecord stays as it is; a BadInput keeps its field and reason. MemoryError is not for here:
    it is the process's, not the record's.

    Args:
        stage: the step that raised it.
        field: the field at fault, where the exception does not name one.
    """
    if isinstance(error, BadRecord):
        return error
    kind = type(
        error.__cause__ if isinstance(error, BadInput) and error.__cause__ else error
    ).__name__
    if isinstance(error, BadInput):
        return BadRecord(error.field, error.reason, stage=stage, kind=kind)
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 (RecursionError among them: its arguments are the record's)
        text = ""
    return BadRecord(field, f"{kind}: {text}" if text else kind, stage=stage, kind=kind)


_PATH = re.compile(r"\b(?:Posix|Windows|Pure\w+)?Path\((['\"])(.*?)\1\)")
_STREAMS = {"BytesIO": "the data", "BufferedReader": "the file"}


def plain(error: Exception) -> str:
    """What an error says to a person: no objects as Python writes them, no errno in brackets."""
    if isinstance(error, OSError) and error.strerror:
        files = " -> ".join(str(file) for file in (error.filename, error.filename2) if file)
        return f"{files}: {error.strerror}" if files else error.strerror
    text = str(error) or type(error).__name__
    return _OBJECT.sub(lambda match: _STREAMS.get(match[1], match[1]), _PATH.sub(r"\2", text))


def bounded(text: object, limit: int) -> str:
    """A text as one printable line of at most `limit` characters, without addresses of objects."""
    plain = text if isinstance(text, str) else type(text).__name__
    plain = _OBJECT.sub(r"\1", plain[: 4 * limit])
    plain = " ".join(plain.split())[: limit + 1]
    if not plain.isprintable():
        plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in plain)
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


class ConfigError(StreamError, ValueError):
    """A setting, a file or a topic's shape is not what this process needs."""


class BrokerError(StreamError):
    """Kafka refused something for good.

    Args:
        text: the whole message.
        reason: its last part, which names no address; by default the whole message.
    """

    def __init__(self, text: str, *, reason: str | None = None) -> None:
        super().__init__(text)
        self.reason = text if reason is None else reason


class Unreachable(BrokerError):
    """No broker answered within the time allowed."""


class AccessError(BrokerError, ConfigError):
    """The broker's certificate is not accepted, or this client's credentials or rights are not."""


class Fenced(BrokerError):
    """The transactional id is another process's now, or was taken back: this one must stop."""


class PublishRefused(BrokerError):
    """The transaction was aborted: nothing of it is visible, its records are read again."""


class StaleLease(PublishRefused):
    """Not committed, for the member has another epoch by now. While the partitions stay, what it
    would have published is published again."""


class SchemaRegistryAway(StreamError):
    """The schema registry does not answer, or refuses: nothing is wrong with the message."""


class WorkerError(StreamError):
    """The worker cannot go on; nothing that it had not committed is lost."""


class RegistryError(StreamError):
    """A model version is missing, damaged, or not allowed to serve."""


class RegistryAway(RegistryError):
    """The registry's object store does not answer, or not in time: what was known still holds."""


class WindowError(StreamError):
    """The shards of a training window are missing or damaged: the run cannot use them."""


class LockError(StreamError):
    """Another trainer runs, or whether one runs cannot be known."""


class EmbeddedError(StreamError):
    """A part of the embedded services is not installed or cannot be fetched."""
