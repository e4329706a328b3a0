"""`braid up`: all services on this machine until Ctrl-C; a service that ends is restarted."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

from braid.index.redact import redacted

from ..errors import ConfigError
from ..kafka.topics import ensure
from ..local.embedded import GRACE_S, KAFKA_PORT
from ..local.fleet import Fleet, embedded_services, with_addresses
from ..local.supervisor import Supervisor
from ..settings import Settings
from .common import service_url

CHECK_S = 0.5


def run(settings: Settings) -> None:
    """Start broker and Redis unless the settings name them, one worker and the index node.

    Raises:
        ConfigError: `model` names no folder.
        FileLockError: another process runs the services of this home.
        EmbeddedError, ChildError: a service cannot be started.
        ChildError: a process refused its configuration; the others are stopped.
    """
    _check_model(settings)
    signal.signal(signal.SIGTERM, _interrupt)
    folder = settings.home / "services"
    try:
        with embedded_services(settings, folder, prefer=KAFKA_PORT, grace=GRACE_S) as embedded:
            own = with_addresses(settings, embedded)
            ensure(own, own.generation)
            _say(f"KAFKA_BOOTSTRAP={own.kafka.bootstrap}")
            _say(f"REDIS_URL={own.redis.url or ''}")
            _say(f"the query service will answer at {service_url(own)}; logs: {own.home}/logs")
            _say("set the variables above in another terminal to produce, retrain and search")
            with Fleet(own, own.home / "logs") as fleet:
                fleet.start("embed")
                fleet.start("index")
                supervisor = Supervisor([*embedded.children, *fleet.children], _say)
                try:
                    while True:
                        supervisor.check()
                        time.sleep(CHECK_S)
                except KeyboardInterrupt:
                    _say("stopping")
    except KeyboardInterrupt:  # during the start, or a second one during the stop
        _say("stopped")


def _check_model(settings: Settings) -> None:
    """Raise ConfigError for a wrong name, which would end the worker at every start."""
    model = settings.model.spec
    if model is not None and not model.startswith("null:") and not Path(model).is_dir():
        raise ConfigError(f"model: no folder at {model[:200]!r}")


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(redacted(line), file=sys.stderr, flush=True)
