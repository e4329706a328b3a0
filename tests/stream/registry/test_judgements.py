"""The error that judgements may make, out of the budget of thirty days."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from braid.stream.errors import RegistryError
from braid.stream.registry.judgements import MONTH_MS, level_of_judgement
from braid.stream.registry.log import EventLog
from braid.stream.registry.store import FolderStore

HOUR_S = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1e9

    def __call__(self) -> float:
        return self.now_s


def level(log: EventLog, name: str) -> float:
    return level_of_judgement(log, name, budget=0.05, planned=120)


def test_a_schedule_of_six_hours_gets_the_same_share_each_time(tmp_path: Path) -> None:
    clock = Clock()
    log = EventLog(FolderStore(tmp_path), wall=clock)
    for number in range(500):
        assert level(log, f"v{number}") == pytest.approx(0.05 / 120), number
        clock.now_s += 6 * HOUR_S


def test_no_thirty_days_spend_more_than_the_budget(tmp_path: Path) -> None:
    clock = Clock()
    log = EventLog(FolderStore(tmp_path), wall=clock)
    for number in range(400):  # every four hours: more than are planned
        level(log, f"v{number}")
        clock.now_s += 4 * HOUR_S
    judgements = log.state().judgements
    for last in judgements:
        window = [j.level for j in judgements if last.at_ms - MONTH_MS < j.at_ms <= last.at_ms]
        assert sum(window) <= 0.05 * (1 + 1e-6)
    assert sum(one.level == 0 for one in judgements) > 100
    assert sum(one.level > 0 for one in judgements[180:]) > 100, "it comes back after 30 days"


def test_a_resumed_run_is_judged_at_the_same_level_and_counts_once(tmp_path: Path) -> None:
    log = EventLog(FolderStore(tmp_path))
    first = level(log, "v1")
    again = EventLog(FolderStore(tmp_path))  # another process
    assert level_of_judgement(again, "v1", budget=0.05, planned=1) == first
    assert len(again.state().judgements) == 1
    with pytest.raises(RegistryError, match="v1 is judged already"):
        log.append(lambda _: log.event("judgement", name="v1", level=0.1))


def test_trainers_at_once_share_one_budget(tmp_path: Path) -> None:
    def judged(number: int) -> float:
        log = EventLog(FolderStore(tmp_path))
        return level_of_judgement(log, f"v{number}", budget=0.05, planned=4)

    with ThreadPoolExecutor(8) as pool:
        levels = list(pool.map(judged, range(8)))
    assert sorted(levels) == [0.0] * 4 + [0.0125] * 4
