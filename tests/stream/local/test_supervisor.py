"""Children that end are started again, later and later, and every end is reported."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from braid.stream.local.child import Child, ChildError
from braid.stream.local.supervisor import FIRST_PAUSE_S, LONGEST_PAUSE_S, Supervisor
from tests.stream.harness import wait_for


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


Make = Callable[[str, str], Child]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Starts a child that runs a Python program."""
    children: list[Child] = []

    def start(name: str, code: str) -> Child:
        child = Child(name, [sys.executable, "-S", "-c", code], log=tmp_path / f"{name}.log")
        children.append(child)
        return child.start()

    yield start
    for child in children:
        child.stop(grace=0)


def ended(child: Child) -> None:
    wait_for(f"{child.name} ended", lambda: not child.running, timeout=30)


STAY = "import time; time.sleep(600)"


def test_what_was_killed_is_started_again_and_the_others_are_left_alone(make: Make) -> None:
    killed, other = make("killed", STAY), make("other", STAY)
    other_pid, lines, clock = other.pid, list[str](), Clock()
    supervisor = Supervisor([killed, other], lines.append, clock=clock)
    supervisor.check()
    assert lines == []
    killed.send(signal.SIGKILL)
    ended(killed)
    supervisor.check()
    supervisor.check()
    assert not killed.running
    clock.now += FIRST_PAUSE_S
    supervisor.check()
    assert killed.running
    assert (other.pid, other.running) == (other_pid, True)
    assert len(lines) == 2
    assert "killed ended (SIGKILL); it is started again in 1 s" in lines[0]
    assert f"killed is started again (pid {killed.pid})" in lines[1]


def test_pauses_grow_to_their_limit_and_shrink_after_a_healthy_run(make: Make) -> None:
    child = make("restless", "print('x' * 5000); print('last words'); raise SystemExit(3)")
    lines, clock = list[str](), Clock()
    supervisor = Supervisor([child], lines.append, clock=clock)
    pauses = []
    for _ in range(8):
        ended(child)
        supervisor.check()
        pauses.append(float(lines[-1].split("started again in ")[1].split(" s;")[0]))
        assert "(status 3)" in lines[-1]
        assert "| last words" in lines[-1]
        assert len(lines[-1]) < 5000  # a log is quoted within bounds
        clock.now += pauses[-1]
        supervisor.check()
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    ended(child)
    clock.now += LONGEST_PAUSE_S + 1  # so long it ran
    supervisor.check()
    assert "started again in 1 s" in lines[-1]


def test_a_configuration_error_at_the_first_run_raises(make: Make) -> None:
    child = make("misled", f"print('partitions: must be 1'); raise SystemExit({os.EX_CONFIG})")
    supervisor = Supervisor([child], print, clock=Clock())
    ended(child)
    with pytest.raises(ChildError, match="partitions: must be 1"):
        supervisor.check()


def test_a_configuration_error_later_on_is_retried(make: Make, tmp_path: Path) -> None:
    """What ran once may run again: topics change, folders come back."""
    mark = tmp_path / "ran"
    code = (
        f"import pathlib, time; mark = pathlib.Path({str(mark)!r})\n"
        f"if mark.exists(): raise SystemExit({os.EX_CONFIG})\n"
        "mark.touch(); time.sleep(600)"
    )
    child, lines, clock = make("changed", code), list[str](), Clock()
    supervisor = Supervisor([child], lines.append, clock=clock)
    wait_for("it ran", mark.exists, timeout=30)
    child.send(signal.SIGKILL)
    for _ in range(3):
        ended(child)
        supervisor.check()
        clock.now += LONGEST_PAUSE_S
        supervisor.check()
    assert [line for line in lines if "status 78" in line]


def test_a_child_that_cannot_be_started_is_tried_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    child, lines, clock = make("large", "raise SystemExit(1)"), list[str](), Clock()
    supervisor = Supervisor([child], lines.append, clock=clock)
    ended(child)
    supervisor.check()
    clock.now += 1

    def no_memory() -> Child:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(child, "start", no_memory)
        supervisor.check()
    assert "large cannot be started: [Errno 12] Cannot allocate memory" in lines[-1]
    clock.now += 2
    supervisor.check()
    assert "large is started again" in lines[-1]
