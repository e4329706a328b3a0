"""Logging of a process: lines of text or of JSON on standard error, secrets redacted.

No line of the level info or above has content of a record: of one that fails, it has the place, the
id and the kind of error. The reason, which may quote the record, is in the dead letter.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any

from braid.index.redact import RedactingFormatter, redacted

from .settings import Settings

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
NOISY = ("aiokafka", "faiss", "httpx", "httpcore", "faust", "mode")
RETRIES = "aiokafka.producer.sender"
"""Warns of each repetition, also of the first to a new topic; what fails in the end is raised."""
FIELDS = "fields"
"""Of `extra`: a map of further fields of a JSON line, `log.info(..., extra={"fields": {...}})`."""
log = logging.getLogger("braid")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `ts` (UTC), `level`, `logger`, `message`, `process` (its id), the
    fields given, and `error` with the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "ts": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
            "process": record.process,
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["error"] = redacted("".join(traceback.format_exception(*record.exc_info)))
        return json.dumps(line, default=str, ensure_ascii=False)


def set_up(settings: Settings) -> None:
    """Log as the settings say what braid and its libraries log, and what ends the process."""
    as_json = settings.log_format == "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else RedactingFormatter(TEXT))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger(RETRIES).setLevel(logging.ERROR)
    if as_json:
        logging.captureWarnings(True)
        sys.excepthook = _uncaught
        threading.excepthook = lambda args: _uncaught(
            args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
        )


def say(line: str, level: int = logging.INFO) -> None:
    """A line for whoever watches the process: as it is, or as JSON if that is logged."""
    if any(isinstance(handler.formatter, JsonFormatter) for handler in logging.root.handlers):
        log.log(level, "%s", line)
    else:
        print(redacted(line), file=sys.stderr, flush=True)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        log.critical("%s ends the process", kind.__name__, exc_info=(kind, error, trace))
