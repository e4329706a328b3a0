"""The modules that are mutated, each with the quick tests that guard it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """One module.

    Attributes:
        file: from the repository's root.
        tests: files and tests that pytest runs for each mutant, in this order, until a test fails.
        speed_only: constants that select a method by its speed, with equal results.
        only: the classes that are mutated; empty: the whole module.
    """

    file: str
    tests: tuple[str, ...]
    speed_only: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        return "braid." + self.file.removesuffix(".py").replace("/", ".")


SCAN = "tests/index/segments/test_scan.py"
DECISION = "tests/encoders/model/test_decision.py"
FUSION = "tests/encoders/model/test_fusion.py"
LOSSES = "tests/encoders/training/test_losses.py"

TARGETS: dict[str, Target] = {
    "rescoring": Target(
        "index/segments/rescoring.py",
        (
            "tests/index/segments/test_rescoring.py",
            f"{SCAN}::test_an_answer_is_proven_only_against_all_that_was_left_out",
            f"{SCAN}::test_candidates_that_may_not_be_real_do_not_disturb",
            f"{SCAN}::test_exact_duplicates_come_by_id_and_end",
        ),
    ),
    "scan": Target(
        "index/segments/scan.py",
        ("tests/index/segments/test_scan_candidates.py", SCAN),
        (
            "CHUNK",
            "FEW_ROWS",
            "FEW_SHARE",
            "MANY_QUERIES",
            "MOST_WANTED",
            "MOST_FETCHED",
            "INT8_FACTOR",
            "FEW_OUT",
            "SELECT_QUERIES",
            "SELECT_SHARE",
        ),
    ),
    "id_map": Target("index/segments/id_map.py", ("tests/index/segments/test_id_map.py",)),
    "filters": Target("index/filters.py", ("tests/index/test_filters.py",)),
    "offsets": Target("stream/worker/offsets.py", ("tests/stream/worker/test_ledger.py",)),
    "batcher": Target(
        "stream/worker/micro_batches.py",
        ("tests/stream/worker/test_batcher.py", "tests/stream/worker/test_look_ahead.py"),
        only=("MicroBatcher",),
    ),
    "open_transaction": Target(
        "stream/worker/open_transaction.py",
        (
            "tests/stream/worker/test_publisher.py",
            "tests/stream/worker/test_publisher_rebalance.py",
        ),
    ),
    "publisher": Target(
        "stream/worker/publisher.py",
        (
            "tests/stream/worker/test_publisher.py",
            "tests/stream/worker/test_publisher_rebalance.py",
        ),
        ("MAX_HOLD_S", "FULL"),
    ),
    "handover": Target(
        "stream/registry/handover.py", ("tests/stream/registry/test_handover.py",), ("LOOK_S",)
    ),
    "snapshot_check": Target(
        "stream/index_node/snapshot_check.py", ("tests/stream/index_node/test_snapshot_check.py",)
    ),
    "fusion": Target(
        "encoders/model/fusion.py",
        (
            FUSION,
            f"{LOSSES}::test_mean_fusion_of_one_is_that_one_and_absent_vectors_do_not_matter",
            f"{LOSSES}::test_mean_fusion_of_opposite_vectors_is_still_a_unit_vector",
        ),
    ),
    "decision": Target("encoders/model/decision.py", (DECISION, FUSION, LOSSES)),
    "calibration": Target("encoders/model/calibration.py", (DECISION, FUSION, LOSSES)),
    "losses": Target("encoders/training/losses.py", (LOSSES,)),
    "splits": Target("encoders/training/splits.py", ("tests/encoders/training/test_splits.py",)),
}
