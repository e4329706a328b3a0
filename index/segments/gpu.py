"""Search on a GPU: one thread owns it, and queries that wait are searched together.

Sealed rows are copied once, in float16; growing rows go into a preallocated tensor as they are
published, and both are searched by brute force (`faiss.bfKnn`), since no GPU index of FAISS can
take back a row, and some builds drop added rows or ignore filters without a word. Rows that may not
be hits are left out by gathering the others. Scores only choose whom to score again, exactly, on
the CPU (`braid.index.segments.rescoring`), so that CPU and GPU give the same answers.

`open_gpu` tries this build on known rows first: recall, rows that were added, rows left out. If
anything is off, or the GPU fails later, search goes on on the CPU, and the log says so.

Shapes: B queries, D dimensions, N rows, K hits, M wanted rows.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from ..filters import Filter
from ..store import Array
from .growing import Block
from .scan import Ask, Candidates, scan, wanted
from .sealed import Segment
from .view import Part, Rows, View

log = logging.getLogger(__name__)

Scores = npt.NDArray[np.float32]
Found = npt.NDArray[np.int64]

SCRATCH = 256 * 1024 * 1024  # bytes FAISS may keep for itself
MOST_K = 2048  # what FAISS's GPU search can return
MOST_BATCH = 1024  # queries searched together
COPY = 65_536  # rows copied at once
PROBE_ROWS, PROBE_DIM, PROBE_K = 4096, 64, 10
SAFETY = 4.0  # times the largest error that the probe saw
MOST_ERROR = 0.01  # a float32 score off by more is no rounding


class GpuUnusable(Exception):
    """This build, or this GPU, does not do what it should; the message says what."""


class Kernel(Protocol):
    """Brute force on a device."""

    def empty(self, count: int, dim: int, *, half: bool) -> Any:
        """Room for rows, in float16 or float32."""
        ...

    def fill(self, room: Any, begin: int, rows_ND: Array) -> float:
        """Write rows from `begin` on; the largest |x - stored x|."""
        ...

    def knn(
        self, room: Any, count: int, queries_BD: Array, k: int, row_M: Found | None
    ) -> tuple[Scores, Found]:
        """The k best of the first `count` rows, or of these M: scores and rows, [B, K]."""
        ...


class FaissKernel:
    """`faiss.bfKnn` over torch tensors. To be used by one thread."""

    def __init__(self) -> None:
        import faiss
        import torch

        if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
            raise GpuUnusable("this FAISS build has no GPU support, or finds no GPU")
        if not torch.cuda.is_available():
            raise GpuUnusable("torch finds no CUDA GPU")
        self._faiss, self._torch = faiss, torch
        self._device = torch.device("cuda")
        self._resources = faiss.StandardGpuResources()
        self._resources.setTempMemory(SCRATCH)
        # torch's stream too: what one of them writes is there when the other reads.
        self._resources.setDefaultNullStreamAllDevices()

    def empty(self, count: int, dim: int, *, half: bool) -> Any:
        torch = self._torch
        kind = torch.float16 if half else torch.float32
        return torch.empty((count, dim), dtype=kind, device=self._device)

    def fill(self, room: Any, begin: int, rows_ND: Array) -> float:
        torch = self._torch
        lost = 0.0
        for at in range(0, len(rows_ND), COPY):
            piece = torch.from_numpy(np.array(rows_ND[at : at + COPY])).to(self._device)
            place = room[begin + at : begin + at + len(piece)]
            place.copy_(piece)
            if room.dtype != piece.dtype:
                lost = max(lost, float((place.float() - piece).norm(dim=1).max()))
        return lost

    def knn(
        self, room: Any, count: int, queries_BD: Array, k: int, row_M: Found | None
    ) -> tuple[Scores, Found]:
        torch, faiss = self._torch, self._faiss
        rows = room[:count]
        if row_M is not None:
            rows = rows.index_select(0, torch.from_numpy(row_M).to(self._device))
        queries = torch.from_numpy(queries_BD).to(self._device, rows.dtype)
        score_BK = torch.empty((len(queries), k), dtype=torch.float32, device=self._device)
        at_BK = torch.empty((len(queries), k), dtype=torch.int64, device=self._device)
        half = rows.dtype == torch.float16
        kind = faiss.DistanceDataType_F16 if half else faiss.DistanceDataType_F32
        # What `faiss.contrib.torch_utils` would do. That module replaces methods of every index
        # of the process, and what it puts there no longer takes search parameters.
        args = faiss.GpuDistanceParams()
        args.metric, args.k, args.dims = faiss.METRIC_INNER_PRODUCT, k, rows.shape[1]
        args.vectors = faiss.cast_integer_to_void_ptr(rows.data_ptr())
        args.vectorType, args.vectorsRowMajor, args.numVectors = kind, True, len(rows)
        args.queries = faiss.cast_integer_to_void_ptr(queries.data_ptr())
        args.queryType, args.queriesRowMajor, args.numQueries = kind, True, len(queries)
        args.outDistances = faiss.cast_integer_to_float_ptr(score_BK.data_ptr())
        args.outIndices = faiss.cast_integer_to_void_ptr(at_BK.data_ptr())
        args.outIndicesType = faiss.IndicesDataType_I64
        faiss.bfKnn(self._resources, args)
        scores, found = score_BK.cpu().numpy(), at_BK.cpu().numpy()
        if row_M is not None:
            found = np.where(found >= 0, row_M[found], -1)
        return scores, found


@dataclass(slots=True)
class _Room:
    """Rows of one part on the device: the first `filled` of them."""

    rows: Any
    half: bool
    filled: int = 0
    lost: float = 0.0


@dataclass(slots=True)
class _Job:
    view: Callable[[], View]
    ask: Ask
    filter: Filter | None
    answer: Future[list[tuple[Part, Candidates]]] = field(default_factory=Future)

    def fits(self, other: _Job) -> bool:
        """Whether both can be searched in one go."""
        mine, its = self.ask, other.ask
        return (self.view, mine.name, mine.count, self.filter) == (
            other.view,
            its.name,
            its.count,
            other.filter,
        )


class Gpu:
    """The thread that owns a kernel; searches come from any thread.

    Args:
        kernel: made on that thread, and used only there.

    Raises:
        GpuUnusable: the probe found that this build does not do what it should.
    """

    def __init__(self, kernel: Callable[[], Kernel]) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._rooms: WeakKeyDictionary[Rows, dict[str, _Room]] = WeakKeyDictionary()
        self._ready: Future[float] = Future()
        self._make = kernel
        self.broken: str | None = None
        self.together = 0  # the most queries that were searched in one go
        self._thread = threading.Thread(target=self._run, name="gpu", daemon=True)
        self._thread.start()
        self.error = self._ready.result()

    def scan(
        self, view: Callable[[], View], ask: Ask, filter: Filter | None
    ) -> list[tuple[Part, Candidates]]:
        """Candidates of every part of the view as it is when the GPU comes to it."""
        if ask.count > MOST_K or ask.careful or self.broken is not None:
            return _on_cpu(view(), ask, filter)
        job = _Job(view, ask, filter)
        self._jobs.put(job)
        return job.answer.result()

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            kernel = self._make()
            self._ready.set_result(probe(kernel))
        except BaseException as error:  # noqa: BLE001 (handed to who waits)
            self._ready.set_exception(error)
            return
        held: _Job | None = None
        while True:
            job = held or self._jobs.get()
            held = None
            if job is None:
                return
            jobs = [job]
            queries = len(job.ask.queries_BD)
            while queries < MOST_BATCH and not self._jobs.empty():
                more = self._jobs.get()
                if more is None:
                    self._answer(kernel, jobs)
                    return
                if not job.fits(more):
                    held = more
                    break
                jobs.append(more)
                queries += len(more.ask.queries_BD)
            self._answer(kernel, jobs)

    def _answer(self, kernel: Kernel, jobs: Sequence[_Job]) -> None:
        first = jobs[0]
        try:
            queries_BD = np.concatenate([job.ask.queries_BD for job in jobs])
            norm_B = np.concatenate([job.ask.norm_B for job in jobs])
            ask = Ask(queries_BD, norm_B, first.ask.name, first.ask.count, exact=True)
            view = first.view()
            try:
                found = self._search(kernel, view, ask, first.filter)
            except RuntimeError as error:  # CUDA's and FAISS's errors; nothing is trusted after one
                self.broken = str(error)
                log.error("the GPU failed, search goes on on the CPU: %s", error)
                found = _on_cpu(view, ask, first.filter)
            self.together = max(self.together, len(queries_BD))
        except BaseException as error:  # noqa: BLE001 (its waiters must not wait for ever)
            for job in jobs:
                job.answer.set_exception(error)
            return
        begin = 0
        for job in jobs:
            end = begin + len(job.ask.queries_BD)
            job.answer.set_result([(part, its.lines(begin, end)) for part, its in found])
            begin = end

    def _search(
        self, kernel: Kernel, view: View, ask: Ask, filter: Filter | None
    ) -> list[tuple[Part, Candidates]]:
        found = []
        for part in view.parts.values():
            mask, count = wanted(part, ask.name, filter)
            if not count:
                continue
            row_M = None if mask is None else np.flatnonzero(mask)
            room = self._room(kernel, part, ask.name)
            if room is None:
                found.append((part, scan(part, ask, mask, count)))
                continue
            at_M, total = row_M, room.filled
            if isinstance(part.rows, Segment):
                row_N = part.rows.vectors[ask.name].row_N
                if row_M is not None and row_N is not None:
                    at_M = None if count == len(row_N) else np.searchsorted(row_N, row_M)
            else:
                total = part.count
            score_BK, at_BK = kernel.knn(
                room.rows, total, ask.queries_BD, min(ask.count, count), at_M
            )
            found.append((part, self._candidates(part, ask, room, count, score_BK, at_BK)))
        return found

    def _candidates(
        self, part: Part, ask: Ask, room: _Room, count: int, score_BK: Scores, at_BK: Found
    ) -> Candidates:
        off_B = ask.norm_B * np.float32(self.error + room.lost)
        if room.half:  # the query was rounded too
            rounded = ask.queries_BD.astype(np.float16).astype(np.float32)
            off_B = off_B + np.linalg.norm(rounded - ask.queries_BD, axis=1).astype(np.float32)
        above_B = np.full(len(score_BK), -np.inf, np.float32)
        if at_BK.shape[1] < count:
            above_B = score_BK[:, -1] + off_B
        row_BK = at_BK
        if isinstance(part.rows, Segment):
            row_N = part.rows.vectors[ask.name].row_N
            if row_N is not None:
                row_BK = np.where(at_BK >= 0, row_N[at_BK], -1)
        return Candidates(score_BK, row_BK, above_B, off_B.astype(np.float32))

    def _room(self, kernel: Kernel, part: Part, name: str) -> _Room | None:
        """The part's rows on the device; None if there is no memory for them."""
        rooms = self._rooms.setdefault(part.rows, {})
        sealed = isinstance(part.rows, Segment)
        if isinstance(part.rows, Segment):
            raw_ND = part.rows.vectors[name].raw_ND
            needed = len(raw_ND)
        else:
            assert isinstance(part.rows, Block)
            raw_ND = part.rows.vectors[name]
            needed = part.count
        try:
            if name not in rooms:
                rows = kernel.empty(len(raw_ND), raw_ND.shape[1], half=sealed)
                rooms[name] = _Room(rows, half=sealed)
            room = rooms[name]
            if room.filled < needed:
                lost = kernel.fill(room.rows, room.filled, raw_ND[room.filled : needed])
                room.lost = max(room.lost, lost)
                room.filled = needed
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "out of memory" not in str(error):
                raise
            log.warning("no memory on the GPU for %d rows, searched on the CPU", needed)
            rooms.pop(name, None)
            return None
        return room


def gpu_found() -> bool:
    """Whether this FAISS build supports GPUs and sees one."""
    import faiss

    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def open_gpu(kernel: Callable[[], Kernel] = FaissKernel) -> Gpu | None:
    """The GPU, if there is one that does what it should; else None, and the log says why."""
    try:
        gpu = Gpu(kernel)
    except (GpuUnusable, ImportError, RuntimeError) as error:
        log.error("no search on a GPU, the CPU does it: %s", error)
        return None
    log.info("search on the GPU: float32 scores are off by less than %.1e", gpu.error)
    return gpu


def probe(kernel: Kernel) -> float:
    """Try a kernel on known rows; how far its float32 scores may be off.

    Raises:
        GpuUnusable: it misses rows, does not see added ones, or returns some that were left out.
    """
    rng = np.random.default_rng(0)
    rows_ND = rng.standard_normal((PROBE_ROWS, PROBE_DIM)).astype(np.float32)
    rows_ND /= np.linalg.norm(rows_ND, axis=1, keepdims=True)
    queries_BD = rows_ND[:: PROBE_ROWS // 16] + 0.0
    exact_BN = queries_BD.astype(np.float64) @ rows_ND.T.astype(np.float64)
    worst = 0.0
    for half in (False, True):
        room = kernel.empty(PROBE_ROWS, PROBE_DIM, half=half)
        first = PROBE_ROWS // 2
        allowed = MOST_ERROR if half else max(worst, MOST_ERROR)
        for filled, chosen in (
            (first, None),
            (PROBE_ROWS, None),
            (PROBE_ROWS, np.arange(1, PROBE_ROWS, 7)),
        ):
            begin = 0 if filled == first else first
            if chosen is None:
                kernel.fill(room, begin, rows_ND[begin:filled])
            score_BK, row_BK = kernel.knn(room, filled, queries_BD, PROBE_K, chosen)
            among = np.arange(filled) if chosen is None else chosen
            if not np.isin(row_BK, among).all():
                raise GpuUnusable("rows that were left out are found")
            true_BK = np.take_along_axis(exact_BN, row_BK, 1)
            best_BK = -np.sort(-exact_BN[:, among], axis=1)[:, :PROBE_K]
            if np.abs(true_BK - best_BK).max() > allowed:
                raise GpuUnusable("rows that were added are not found, or not the nearest")
            off = float(np.abs(score_BK - true_BK).max())
            if off > allowed:
                raise GpuUnusable(f"scores are off by {off:.2g}")
            if not half:
                worst = max(worst, off)
    return max(SAFETY * worst, 1e-6)


def _on_cpu(view: View, ask: Ask, filter: Filter | None) -> list[tuple[Part, Candidates]]:
    found = []
    for part in view.parts.values():
        mask, count = wanted(part, ask.name, filter)
        if count:
            found.append((part, scan(part, ask, mask, count)))
    return found
