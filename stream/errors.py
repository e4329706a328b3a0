"""What can go wrong in `stream`, as one tree.

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
├── EmbeddedError      a binary of the embedded services is not there, or does not answer
├── DatasetError       a data set cannot be had
└── DemoError          the demo did not get where it should
"""

from __future__ import annotations


class StreamError(Exception):
    """Base of every error that `stream` raises on purpose."""


class BadRecord(StreamError, ValueError):
    """One message that can never be processed: retrying does not help.

    Args:
        field: the field at fault, or `key` or `value` for the whole message.
        reason: what is wrong, with the limit and the value seen.
        stage: the step of the worker that found it.
    """

    def __init__(self, field: str, reason: str, *, stage: str = "decode") -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
        self.stage = stage


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
