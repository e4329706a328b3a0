"""A process that is ended because it makes no progress leaves its stacks."""

from __future__ import annotations

import subprocess
import sys

from braid.stream.liveness.watchdog import STUCK

HANGING = """
import threading
from braid.stream.liveness import watchdog

def waits_without_limit():
    threading.Event().wait()

threading.Thread(target=waits_without_limit).start()
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HANGING + code], capture_output=True, text=True, timeout=60
    )


def test_the_stacks_of_all_threads_are_written_and_the_process_ends_at_once() -> None:
    done = run("watchdog.dump_and_exit('the device hangs')")
    assert done.returncode == STUCK
    assert "ended at once: the device hangs" in done.stderr
    assert "waits_without_limit" in done.stderr


def test_a_pipe_that_nobody_reads_does_not_keep_the_process() -> None:
    code = """
import os
watchdog.DUMP_WITHIN_S = 0.5
reader, writer = os.pipe()
os.dup2(writer, 2)
watchdog.dump_and_exit('x' * 10_000_000)
"""
    assert run(code).returncode == STUCK


def test_a_call_that_holds_the_interpreter_is_ended_by_the_timer() -> None:
    code = """
import ctypes
watchdog.rearm(0.5)
watchdog.disarm()
watchdog.rearm(0.5)
ctypes.PyDLL(None).sleep(60)  # a call that keeps the GIL
"""
    done = run(code)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "waits_without_limit" in done.stderr
