"""The negative control of the zombie test: a worker that breaks one rule.

Where the real worker publishes under the lease that it took when its partitions were assigned, and
drops what it had in flight when they went away, this one uses whatever group metadata holds at the
moment of the commit. Woken as a zombie it joins the group again, and the broker lets its old batch
through: it checks the generation, not who owns the partition. Records come out twice.
"""

from __future__ import annotations

import sys
import threading

from braid.stream.cli.main import main
from braid.stream.kafka.client import Output
from braid.stream.kafka.sink import TransactionalSink
from braid.stream.worker import supervisor
from braid.stream.worker.offsets import Run
from braid.stream.worker.worker import Worker


class UnsafeWorker(Worker):
    joined_again = threading.Event()

    def _transaction(
        self,
        sink: TransactionalSink,
        runs: list[Run[list[Output]]],
        outputs: list[Output],
        lease: object,
    ) -> None:
        self._failpoint("before-publish")  # stopped here, and woken as a zombie
        if not self._failpoint._armed:
            self.joined_again.wait(20)
        super()._transaction(
            sink, runs, outputs, self._source.lease
        )  # fetched at commit: a new generation's

    def _on_lost(self, partitions: list[int]) -> None:
        """Neither waits for the open transaction nor drops what is in flight."""

    def _on_assigned(self, partitions: list[int]) -> None:
        super()._on_assigned(partitions)
        if not self._failpoint._armed:
            self.joined_again.set()


if __name__ == "__main__":
    supervisor.Worker = UnsafeWorker  # type: ignore[attr-defined]
    sys.argv[0] = "braid"
    main()
