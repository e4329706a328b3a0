"""A bound on the whole test run in CI: what runs by then, and what has failed, is printed.

pytest-timeout bounds each test. It does not see what hangs between tests, such as the end of a
process of pytest-xdist, and writes where a test hung on stdout, which pytest-xdist throws away.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from typing import Any

import pytest


class WhereTestsHang:
    """In a process of pytest-xdist: has what pytest-timeout writes of a test that hung on stderr.

    Only shortly before its end: until then the process reports each test on the same writer.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._stderr = os.fdopen(os.dup(2), "w")
        self._timer: threading.Timer | None = None

    @pytest.hookimpl(tryfirst=True, optionalhook=True)
    def pytest_timeout_set_timer(self, settings: Any) -> None:
        self._timer = threading.Timer(settings.timeout * 0.99, self._show)
        self._timer.daemon = True
        self._timer.start()

    @pytest.hookimpl(tryfirst=True, optionalhook=True)
    def pytest_timeout_cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _show(self) -> None:
        self._config.get_terminal_writer()._file = self._stderr


class TimeLimit:
    """Ends the process after `seconds`, with exit status 3.

    In the process that reports: with pytest-xdist, the one that hands out the tests.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: set[str] = set()
        self._failures: list[str] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running.add(nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._running.discard(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failures.append(f"FAILED {report.nodeid} ({report.when})\n{report.longreprtext}")

    def pytest_unconfigure(self) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        stream = sys.__stderr__ or sys.stderr
        faulthandler.dump_traceback(stream)
        running = "\n".join(sorted(self._running)) or "no test"
        print(f"\nstill running after {self._seconds:g} s:\n{running}", file=stream)
        print(*self._failures, sep="\n", file=stream, flush=True)
        os._exit(3)
