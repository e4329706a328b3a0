"""The negative control of the zombie test: a worker that breaks one rule.

Where the real worker publishes under the lease that it took when its partitions were assigned, and
drops what it had in flight when they went away, this one uses whatever group metadata holds at the
moment of the commit. Woken as a zombie it joins the group again, and the broker lets its old batch
through: it checks the generation, not who owns the partition. Records come out twice.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

from braid.stream.cli.main import main
from braid.stream.kafka.client import Output
from braid.stream.kafka.sink import TransactionalSink
from braid.stream.worker import worker
from braid.stream.worker.in_flight import Outcome
from braid.stream.worker.offsets import Run
from braid.stream.worker.publisher import Publisher


class UnsafePublisher(Publisher):
    joined_again = threading.Event()

    def on_lost(self, partitions: list[int]) -> None:
        """Neither waits for the open transaction nor drops what is in flight."""

    def on_assigned(self, partitions: list[int]) -> None:
        super().on_assigned(partitions)
        if not self._shared.failpoint._armed:
            self.joined_again.set()

    def _transaction(
        self,
        sink: TransactionalSink,
        runs: Sequence[Run[Outcome]],
        outputs: list[Output],
        lease: object,
    ) -> None:
        self._shared.failpoint("before-publish")  # stopped here, and woken as a zombie
        if not self._shared.failpoint._armed:
            self.joined_again.wait(20)
        super()._transaction(
            sink, runs, outputs, self._records.lease
        )  # fetched at commit: a new generation's


if __name__ == "__main__":
    worker.Publisher = UnsafePublisher  # type: ignore[attr-defined]
    sys.argv[0] = "braid"
    main()
