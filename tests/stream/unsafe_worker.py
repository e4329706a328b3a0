"""The negative control of the zombie test: a worker that breaks one rule.

It waits until the group has given its membership away and then fetches the group metadata afresh
for the commit. The broker lets that through, and records come out twice: this is what taking the
lease once, at assignment, prevents.
"""

from __future__ import annotations

import sys
import time

from stream import app
from stream.broker import Output
from stream.cli import main
from stream.ledger import Run
from stream.worker import Worker


class UnsafeWorker(Worker):
    def _transaction(self, runs: list[Run[list[Output]]], lease: object) -> None:
        consumer = self._source._consumer
        before = consumer.memberid()
        self._failpoint("before-publish")  # stopped here, and woken as a zombie
        deadline = time.monotonic() + 5.0
        if self._was_stopped():
            while consumer.memberid() == before and time.monotonic() < deadline:
                time.sleep(0.01)
        super()._transaction(runs, consumer.consumer_group_metadata())

    def _was_stopped(self) -> bool:
        return not self._failpoint._armed


if __name__ == "__main__":
    app.Worker = UnsafeWorker  # type: ignore[misc]
    sys.argv[0] = "braid"
    main()
