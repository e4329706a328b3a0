"""GPU search: one thread owns the device and batches the waiting queries.

Sealed rows are copied once, in float16; growing rows are appended to a preallocated tensor. Both
are searched by brute force (`faiss.bfKnn`): GPU indexes of FAISS cannot remove a row, and some
builds drop added rows or ignore filters silently. A filter gathers the rows that match. GPU scores
only select candidates, which the CPU rescores exactly (`braid.index.segments.rescoring`), so that
CPU and GPU give the same answers.

`open_gpu` first checks this build on known rows: recall, added rows, excluded rows. If a check
fails, or the GPU fails later, search runs on the CPU and the log says so.

Shapes: B queries, D dimensions, N rows, K hits, M eligible rows.
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

from ..filters import Filter
from ..store import Array
from .growing import Block
from .scan import Candidates, RowNumbers, ScanRequest, Scores, eligible_rows, scan, scan_part
from .sealed import Segment
from .view import Part, Rows, View

log = logging.getLogger(__name__)

SCRATCH = 256 * 1024 * 1024  # bytes of FAISS's temporary memory
MOST_K = 2048  # limit of FAISS's GPU search
MOST_BATCH = 1024  # queries searched together
COPY = 65_536  # rows copied at once
PROBE_ROWS, PROBE_DIM, PROBE_K = 4096, 64, 10
SAFETY = 4.0  # times the largest error in the probe
MOST_ERROR = 0.01  # a larger error of a float32 score is not rounding


class GpuUnusable(Exception):
    """This build or GPU fails a check; the message names it."""


class Kernel(Protocol):
    """Brute-force search on a device."""

    def empty(self, count: int, dim: int, *, half: bool) -> Any:
        """An empty tensor for `count` rows, in float16 or float32."""
        ...

    def fill(self, room: Any, begin: int, rows_ND: Array) -> float:
        """Write rows starting at `begin`; returns the largest |x - stored x|."""
        ...

    def knn(
        self, room: Any, count: int, queries_BD: Array, k: int, row_M: RowNumbers | None
    ) -> tuple[Scores, RowNumbers]:
        """The k best of the first `count` rows, or of these M: scores and rows, [B, K]."""
        ...


class FaissKernel:
    """`faiss.bfKnn` over torch tensors. Not thread-safe."""

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
        # torch's stream too, so that FAISS reads what torch has written.
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
        self, room: Any, count: int, queries_BD: Array, k: int, row_M: RowNumbers | None
    ) -> tuple[Scores, RowNumbers]:
        torch, faiss = self._torch, self._faiss
        rows = room[:count]
        if row_M is not None:
            rows = rows.index_select(0, torch.from_numpy(row_M).to(self._device))
        queries = torch.from_numpy(queries_BD).to(self._device, rows.dtype)
        score_BK = torch.empty((len(queries), k), dtype=torch.float32, device=self._device)
        at_BK = torch.empty((len(queries), k), dtype=torch.int64, device=self._device)
        half = rows.dtype == torch.float16
        kind = faiss.DistanceDataType_F16 if half else faiss.DistanceDataType_F32
        # As `faiss.contrib.torch_utils` does. That module patches the methods of every index in
        # the process, and its versions do not accept search parameters.
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
        scores, rows_BK = score_BK.cpu().numpy(), at_BK.cpu().numpy()
        if row_M is not None:
            rows_BK = np.where(rows_BK >= 0, row_M[rows_BK], -1)
        return scores, rows_BK


@dataclass(slots=True)
class _Room:
    """Rows of one part on the device, of which the first `filled` are written."""

    rows: Any
    half: bool
    filled: int = 0
    lost: float = 0.0


@dataclass(slots=True)
class _Job:
    view: Callable[[], View]
    request: ScanRequest
    filter: Filter | None
    answer: Future[list[tuple[Part, Candidates]]] = field(default_factory=Future)

    def fits(self, other: _Job) -> bool:
        """Whether both can be searched in one call."""
        mine, theirs = self.request, other.request
        return (self.view, mine.name, mine.count, self.filter) == (
            other.view,
            theirs.name,
            theirs.count,
            other.filter,
        )


class Gpu:
    """The thread that owns a kernel; any thread may search.

    Args:
        kernel: called on that thread; its result is used only there.

    Raises:
        GpuUnusable: the probe failed.
    """

    def __init__(self, kernel: Callable[[], Kernel]) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._rooms: WeakKeyDictionary[Rows, dict[str, _Room]] = WeakKeyDictionary()
        self._ready: Future[float] = Future()
        self._make = kernel
        self.broken: str | None = None
        self.together = 0  # the most queries in one search so far
        self._thread = threading.Thread(target=self._run, name="gpu", daemon=True)
        self._thread.start()
        self.error = self._ready.result()

    def scan(
        self, view: Callable[[], View], request: ScanRequest, filter: Filter | None
    ) -> list[tuple[Part, Candidates]]:
        """Candidates of every part of the view, which is read when the search starts."""
        if request.count > MOST_K or request.careful or self.broken is not None:
            return _on_cpu(view(), request, filter)
        job = _Job(view, request, filter)
        self._jobs.put(job)
        return job.answer.result()

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            kernel = self._make()
            self._ready.set_result(probe(kernel))
        except BaseException as error:  # noqa: BLE001 (raised in the constructor)
            self._ready.set_exception(error)
            return
        held: _Job | None = None
        while True:
            job = held or self._jobs.get()
            held = None
            if job is None:
                return
            jobs = [job]
            queries = len(job.request.queries_BD)
            while queries < MOST_BATCH and not self._jobs.empty():
                more = self._jobs.get()
                if more is None:
                    self._answer(kernel, jobs)
                    return
                if not job.fits(more):
                    held = more
                    break
                jobs.append(more)
                queries += len(more.request.queries_BD)
            self._answer(kernel, jobs)

    def _answer(self, kernel: Kernel, jobs: Sequence[_Job]) -> None:
        first = jobs[0]
        try:
            queries_BD = np.concatenate([job.request.queries_BD for job in jobs])
            norm_B = np.concatenate([job.request.norm_B for job in jobs])
            request = ScanRequest(
                queries_BD, norm_B, first.request.name, first.request.count, exact=True
            )
            view = first.view()
            try:
                results = self._search(kernel, view, request, first.filter)
            except RuntimeError as error:  # of CUDA or FAISS: the device is not used again
                self.broken = str(error)
                log.error("the GPU failed, search continues on the CPU: %s", error)
                results = _on_cpu(view, request, first.filter)
            self.together = max(self.together, len(queries_BD))
        except BaseException as error:  # noqa: BLE001 (raised in the waiting threads)
            for job in jobs:
                job.answer.set_exception(error)
            return
        begin = 0
        for job in jobs:
            end = begin + len(job.request.queries_BD)
            job.answer.set_result([(part, rows.lines(begin, end)) for part, rows in results])
            begin = end

    def _search(
        self, kernel: Kernel, view: View, request: ScanRequest, filter: Filter | None
    ) -> list[tuple[Part, Candidates]]:
        results = []
        for part in view.parts.values():
            mask, count = eligible_rows(part, request.name, filter)
            if not count:
                continue
            row_M = None if mask is None else np.flatnonzero(mask)
            room = self._room(kernel, part, request.name)
            if room is None:
                results.append((part, scan(part, request, mask, count)))
                continue
            at_M, total = row_M, room.filled
            if isinstance(part.rows, Segment):
                row_N = part.rows.vectors[request.name].row_N
                if row_M is not None and row_N is not None:
                    at_M = None if count == len(row_N) else np.searchsorted(row_N, row_M)
            else:
                total = part.count
            score_BK, at_BK = kernel.knn(
                room.rows, total, request.queries_BD, min(request.count, count), at_M
            )
            results.append((part, self._candidates(part, request, room, count, score_BK, at_BK)))
        return results

    def _candidates(
        self,
        part: Part,
        request: ScanRequest,
        room: _Room,
        count: int,
        score_BK: Scores,
        at_BK: RowNumbers,
    ) -> Candidates:
        off_B = request.norm_B * np.float32(self.error + room.lost)
        if room.half:  # the query is rounded, too
            rounded = request.queries_BD.astype(np.float16).astype(np.float32)
            off_B = off_B + np.linalg.norm(rounded - request.queries_BD, axis=1).astype(np.float32)
        above_B = np.full(len(score_BK), -np.inf, np.float32)
        if at_BK.shape[1] < count:
            above_B = score_BK[:, -1] + off_B
        row_BK = at_BK
        if isinstance(part.rows, Segment):
            row_N = part.rows.vectors[request.name].row_N
            if row_N is not None:
                row_BK = np.where(at_BK >= 0, row_N[at_BK], -1)
        return Candidates(score_BK, row_BK, above_B, off_B.astype(np.float32))

    def _room(self, kernel: Kernel, part: Part, name: str) -> _Room | None:
        """The part's rows on the device; None if its memory is full."""
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
    """The GPU if it passes the probe; else None, and the log says why."""
    try:
        gpu = Gpu(kernel)
    except (GpuUnusable, ImportError, RuntimeError) as error:
        log.error("no search on a GPU, the CPU does it: %s", error)
        return None
    log.info("search on the GPU: float32 scores are off by less than %.1e", gpu.error)
    return gpu


def probe(kernel: Kernel) -> float:
    """Check a kernel on known rows; returns a bound on the error of its float32 scores.

    Raises:
        GpuUnusable: it misses rows or added rows, or returns excluded rows.
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


def _on_cpu(
    view: View, request: ScanRequest, filter: Filter | None
) -> list[tuple[Part, Candidates]]:
    scanned = (scan_part(part, request, filter) for part in view.parts.values())
    return [result for result in scanned if result is not None]
