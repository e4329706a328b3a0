"""Processes watched together: what they say is passed on, and a death is told with its log."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from braid.stream.local.child import ChildError
from braid.stream.local.fleet import Fleet, services
from braid.stream.settings import load


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(load(home=tmp_path), tmp_path)


def test_a_command_is_run_to_its_end(fleet: Fleet, capfd: pytest.CaptureFixture[str]) -> None:
    fleet.run("models", "list", timeout=60)
    assert "no versions yet" in capfd.readouterr().err


def test_a_command_that_fails_is_told_with_its_log(fleet: Fleet) -> None:
    with pytest.raises(ChildError, match=r"(?s)braid models ended with status 1.*no version '7'"):
        fleet.run("models", "promote", "7", timeout=60)


def test_a_command_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    """Without a broker the index node waits; nothing of it is left."""
    fleet = Fleet(
        load(home=tmp_path, kafka={"bootstrap": "127.0.0.1:9"}, model={"spec": "null:16"}), tmp_path
    )
    with pytest.raises(ChildError, match=r"braid index took over 0\.3 s"):
        fleet.run("index", timeout=0.3)


def test_waiting_ends_when_a_process_dies(fleet: Fleet) -> None:
    with fleet:
        fleet.start("no-such")
        with pytest.raises(ChildError, match=r"(?s)braid no-such ended.*No such command"):
            fleet.wait("never", lambda: 0, 1, stalled=60)


def test_waiting_without_progress_gives_up(fleet: Fleet) -> None:
    with pytest.raises(ChildError, match=r"never: 3 of 5, and nothing moved for 0\.3 s"):
        fleet.wait("never", lambda: 3, 5, stalled=0.3)


def test_waiting_counts_on(fleet: Fleet) -> None:
    steps = iter([0, 1, 1, 4, 5])
    fleet.wait("steps", lambda: next(steps), 5, stalled=60)
    assert next(steps, None) is None


def test_given_services_are_used(tmp_path: Path) -> None:
    given = load(kafka={"bootstrap": "127.0.0.1:1"}, redis={"url": "redis://127.0.0.1:2"})
    with services(given, tmp_path) as settings:
        assert settings.kafka.bootstrap == "127.0.0.1:1"
        assert settings.redis.url == "redis://127.0.0.1:2"


@pytest.mark.slow
def test_missing_services_are_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("BRAID_") or name in ("KAFKA_BOOTSTRAP", "REDIS_URL"):
            monkeypatch.delenv(name)
    with services(load(), tmp_path) as settings:
        assert settings.redis.url is not None
        environment = settings.environment()
        assert environment["KAFKA_BOOTSTRAP"] == settings.kafka.bootstrap
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kafka", "lock", "valkey"]
