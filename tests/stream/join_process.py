"""A process that runs the join alone, as a worker runs it beside its hot path.

python -m tests.stream.join_process SLOT     # settings from the environment, until SIGTERM
"""

from __future__ import annotations

import logging
import signal
import sys
import threading

from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.settings import load
from braid.stream.worker.join.loop import JoinThread


def main() -> None:
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s")
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    join = JoinThread(load(), slot=sys.argv[1], metrics=WorkerMetrics().join)
    join.start()
    stopping.wait()
    join.close()


if __name__ == "__main__":
    main()
