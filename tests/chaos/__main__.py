"""Random faults under a flow of records, updates, parts, deletions and poison, and an oracle.

    make chaos SEED=1 [RECORDS=20000] [SECONDS=150]
    python -m tests.chaos --seed 1 [--records 20000] [--seconds 150] [--json] [--keep DIR]

Apache Kafka, Valkey, two workers (with the join in each) and an index node are killed, stopped
beyond their sessions, cut off, reset, left half open, blackholed and delayed, one fault after the
other, by a seed. What ends is started again as `braid up` does it. After each fault the committed
offset of every partition that is behind must move, and the index node answer, within 60 s. At the
end the committed outputs and the answers of the index are compared with an oracle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos import oracle
from tests.chaos.cluster import Cluster
from tests.chaos.faults import schedule
from tests.chaos.flow import Flow, messages

RECOVERED_WITHIN_S = 60.0
READY_WITHIN_S = 180.0
QUERIES = 30


def run(
    folder: Path, *, seed: int, records: int, seconds: float, verbose: bool = True
) -> dict[str, Any]:
    """One run; its summary. Raises AssertionError with what went wrong."""
    began = time.monotonic()

    def say(line: str) -> None:
        if verbose:
            print(f"{time.monotonic() - began:6.1f} s  {line}", file=sys.stderr, flush=True)

    say(f"seed {seed}, {records} messages, {folder}")
    sent = list(messages(records, seed))
    faults: list[dict[str, Any]] = []
    with Cluster(folder, say) as cluster:
        ready = cluster.wait_for(cluster.index_ready, timeout=READY_WITHIN_S)
        assert ready is not None, "the index node does not answer"
        flow = Flow(cluster.settings, sent, per_second=records / seconds).start()
        for pause, fault in schedule(seed):
            cluster.rest(pause)
            if flow.done:
                break
            say(f"{fault} for {fault.lasts_s:.1f} s")
            fault.begin(cluster)
            cluster.rest(fault.lasts_s)
            fault.end(cluster)
            recovered_s = cluster.wait_for(cluster.progress(), timeout=RECOVERED_WITHIN_S)
            faults.append({"fault": str(fault), "lasts_s": fault.lasts_s, "after_s": recovered_s})
            assert recovered_s is not None, (
                f"no progress {RECOVERED_WITHIN_S:g} s after the end of {fault}: "
                f"{cluster.positions()}"
            )
            say(f"{fault} is over, progress after {recovered_s:.1f} s")
        flow.check()
        drained_s = cluster.wait_for(cluster.caught_up, timeout=2 * RECOVERED_WITHIN_S)
        assert drained_s is not None, f"not all is committed: {cluster.positions()}"
        say(f"all is committed after {drained_s:.1f} s more")
        checked = _check(cluster, sent)
    say(f"the oracle agrees: {checked}")
    recovery = [fault["after_s"] for fault in faults]
    return {
        "seed": seed, "records": records, "faults": faults,
        "recovery_s": {
            "median": round(statistics.median(recovery), 1), "max": round(max(recovery), 1)
        },
        "drained_s": round(drained_s, 1), "took_s": round(time.monotonic() - began, 1), **checked,
    }  # fmt: skip


def _check(cluster: Cluster, sent: Sequence[Any]) -> dict[str, int]:
    records, parts = cluster.read("records"), cluster.read("parts")
    oracle.check_inputs(sent, records, parts)
    due = oracle.expected(records)
    oracle.check_outputs(
        due,
        vectors=cluster.read("vectors"),
        predictions=cluster.read("predictions"),
        dead=cluster.read("dead-letters"),
        parts=parts,
        names={name: cluster.settings.topic(name) for name in ("records", "parts")},
    )
    with cluster.client() as client:

        def indexed() -> bool:
            return client.ready() and client.status().records == len(due.live)

        assert cluster.wait_for(indexed, timeout=RECOVERED_WITHIN_S) is not None, (
            f"the index holds {client.status().records} of {len(due.live)} records"
        )
        queries = [f"text {number} of no seed" for number in range(QUERIES)]
        hits = oracle.check_index(client, due.live, queries)
    return {
        "offsets": len(records), "predicted": len(due.vectors), "deleted": len(due.deleted),
        "dead_letters": len(due.dead), "live": len(due.live), "hits": hits,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--records", type=int, default=20_000, help="messages produced")
    parser.add_argument("--seconds", type=float, default=150.0, help="of producing them")
    parser.add_argument("--json", action="store_true", help="the summary as one JSON object")
    parser.add_argument("--keep", type=Path, help="a folder for data and logs, which is kept")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="braid-chaos-") as folder:
        summary = run(
            (given.keep or Path(folder)).absolute(),
            seed=given.seed,
            records=given.records,
            seconds=given.seconds,
        )
    if given.json:
        print(json.dumps(summary))
    else:
        for fault in summary["faults"]:
            print(f"{fault['after_s']:6.1f} s after {fault['fault']} ({fault['lasts_s']:.1f} s)")
        print(f"seed {summary['seed']}: recovery {summary['recovery_s']}, {summary['took_s']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
