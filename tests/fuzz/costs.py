"""What one record costs a model's `prepare`: CPU seconds and memory, measured in a process.

The process is killed when a record takes it far beyond the bound, and started anew.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from braid.encoders.errors import BadInput
from braid.encoders.types import Sample

MIB = 1024 * 1024
WAIT_S = 90.0  # of wall clock, on a machine that does other things too


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """One record's cost.

    Attributes:
        cpu_s: of all threads of the process.
        peak_mib: resident memory that it had at most, above what it had before.
        error: what `prepare` raised that is not BadInput, or that it did not end; else empty.
    """

    cpu_s: float
    peak_mib: float
    error: str = ""


class Meter:
    """Prepares samples in a process of its own. A context manager.

    Args:
        model: a folder with a version.
    """

    def __init__(self, model: Path) -> None:
        self._model = model
        self._process: Any = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Meter:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def measure(self, sample: Sample) -> Cost:
        assert self._pipe is not None
        self._pipe.send(sample)
        if self._pipe.poll(WAIT_S):
            try:
                cost: Cost = self._pipe.recv()
                return cost
            except EOFError:
                self._process.join()
                cost = Cost(cpu_s=0, peak_mib=0, error=f"the process ended: {self._process}")
        else:
            cost = Cost(cpu_s=WAIT_S, peak_mib=0, error=f"not prepared within {WAIT_S:g} s")
        self.__exit__()
        self._start()
        return cost

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._model), daemon=True)
        self._process.start()
        theirs.close()
        assert self._pipe.poll(300), "the model did not load"
        self._pipe.recv()


def _serve(pipe: Connection, folder: Path) -> None:
    from braid.encoders.embedder import load

    model = load(folder, device="cpu")
    pipe.send(None)
    while True:
        sample: Sample = pipe.recv()
        before, began = _resident("VmRSS"), time.process_time()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        error = ""
        try:
            model.prepare(sample)
        except BadInput:
            pass
        except Exception as other:  # noqa: BLE001 (that is the finding)
            error = f"{type(other).__name__}: {other}"[:300]
        pipe.send(
            Cost(
                cpu_s=time.process_time() - began,
                peak_mib=(_resident("VmHWM") - before) / 1024,
                error=error,
            )
        )


def _resident(name: str, pid: int | str = "self") -> int:
    """A line of /proc/PID/status in KiB; 0 once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def resident_mib(pid: int) -> float:
    """Resident memory of a process now; 0 once it has ended."""
    return _resident("VmRSS", pid) / 1024
