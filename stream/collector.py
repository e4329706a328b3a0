"""Garbage collection of a process that starts.

Most objects that an import makes stay. While torch is imported, looking at all of them again and
again takes a fifth of the time (`benchmarks/RESULTS.md`, Start).
"""

from __future__ import annotations

import gc

ALLOCATIONS = 50_000
"""Net allocations between two collections while a process starts; Python's default is 700."""


def collect_rarely() -> None:
    """Call it first in a process."""
    gc.set_threshold(ALLOCATIONS)


def collect_as_usual() -> None:
    """Call it when the process has imported and loaded what it needs: none of that is looked at
    again, so that later collections are short."""
    gc.freeze()
    gc.set_threshold(*_USUAL)


_USUAL = gc.get_threshold()
