"""CPython's garbage collector and thread switching, set for a stream of records.

A record in flight is some twenty objects that the cyclic collector tracks, and they end by their
reference counts: it frees nothing of them, yet with its default threshold of 700 it looks at each
several times, a third of the CPU time of the null worker. A full collection also walks through all
that torch and transformers define (0.3 s, while every other thread waits).

A thread that returns from C to Python, as the encoders' do after each operation, waits up to one
switch interval for a thread that runs Python code: 5 ms by default, four times in each transaction.
"""

from __future__ import annotations

import gc
import sys

YOUNG = 50_000
"""Objects between two collections: those of about 2,000 records."""
SWITCH_S = 0.0005


def tune_interpreter() -> None:
    """Exclude what is loaded by now from collections, make the others rare, and switch threads
    more often.

    Called once by a worker's process, when its first model is loaded, just before it serves.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
    sys.setswitchinterval(SWITCH_S)
