"""The exceptions of `stream`, as one tree.

StreamError
├── BadRecord          one message breaks the schema or a limit: it becomes a dead letter
├── ConfigError        a setting or a topic is not what it must be: the process does not start
├── BrokerError        Kafka answered with an error that braid cannot mend
│   ├── Unreachable    no broker answered in time
│   ├── Fenced         this worker's slot is another's now, or was taken back: it must stop
│   └── PublishRefused the transaction was aborted; its records are read again
├── WorkerError        the worker stops; what it had not committed is read again
├── RegistryError      a model version is missing, damaged or not allowed
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
    """Kafka refused something for good."""


class Unreachable(BrokerError):
    """No broker answered within the time allowed."""


class Fenced(BrokerError):
    """The transactional id is another process's now, or was taken back: this one must stop."""


class PublishRefused(BrokerError):
    """The transaction was aborted: nothing of it is visible, its records are read again."""


class WorkerError(StreamError):
    """The worker cannot go on; nothing that it had not committed is lost."""


class RegistryError(StreamError):
    """A model version is missing, damaged, or not allowed to serve."""


class WindowError(StreamError):
    """The shards of a training window are missing or damaged: the run cannot use them."""


class LockError(StreamError):
    """Another trainer runs, or whether one runs cannot be known."""


class EmbeddedError(StreamError):
    """A part of the embedded services is not installed or cannot be fetched."""
