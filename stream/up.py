"""`braid up`: everything on this machine, until Ctrl-C."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from types import FrameType

from .cli_common import service_url
from .fleet import Fleet, services
from .settings import Settings
from .topics import ensure

CHECK_S = 0.5


def run(settings: Settings) -> None:
    """Start broker and Redis unless the settings name them, one worker and the index node.

    Raises:
        ChildError: a process ended, with the end of its log; the others are stopped.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _interrupt)
    with services(settings, settings.home / "services") as own:
        if own.embedded:
            # The topics of the last run are gone, and with them what the snapshots' offsets mean.
            shutil.rmtree(settings.home / "index", ignore_errors=True)
            _say("the embedded broker keeps nothing on disk: produce your records again")
        ensure(own)
        _say(f"KAFKA_BOOTSTRAP={own.kafka_bootstrap}")
        _say(f"REDIS_URL={own.redis_url or ''}")
        if own.embedded:
            _say("BRAID_EMBEDDED=true")
        _say(f"the query service will answer at {service_url(own)}; logs are in {own.home}/logs")
        _say("set the variables above in another terminal to produce, retrain and search")
        with Fleet(own, own.home / "logs") as fleet:
            fleet.start("embed")
            fleet.start("index")
            try:
                while True:
                    fleet.check()
                    time.sleep(CHECK_S)
            except KeyboardInterrupt:
                _say("stopping")


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
