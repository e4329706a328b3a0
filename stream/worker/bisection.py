"""Bisection of micro-batches that fail: which record is at fault, and the size of the next batches.

A batch whose encoding raised is cut in halves, each encoded as a batch of its own, until the record
that fails stands alone. Only failing alone condemns a record, so that the verdict does not depend
on which records shared its batch.

Three measures keep the cost low. The second half waits for the first one's verdict: where the first
passes, the second holds the fault and is cut at once; where it fails, the second is as good as new
records and goes into the next batches with them. Out of memory halves the budget of the
batches to come; it doubles again with time. While records that fail are frequent, batches are
small. With a share p of such records, and a call of n records that takes T(n) seconds, a share w
of them when it raises, a record in batches of n costs T(n)/n seconds. Each failing one costs
w T(n) more, then for each halving to h records (T(h) - h T(n)/n) / 2 where that half passes, and
w T(h) / 2 where it fails. n is the power of two for which this is least; p, T and w are measured.
The trade is that of group testing (Dorfman 1943, https://doi.org/10.1214/aoms/1177731363).
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from braid.encoders.types import Embedding, Model

from ..errors import WorkerError, bad_record
from .in_flight import Item

ATTEMPTS = 2  # a record fails alone so often before it is condemned
GROW_AFTER_S = 60.0  # without running out of memory; then the budget doubles
MEMORY_RECORDS = 500.0  # after so many records a failure counts half
RARE = 0.1  # what is left of a failure when batches are full again
FIXED = 4.0  # what a call costs beside its records, in records: MiniLM on two cores of a CPU
CALL_FADES = 0.9  # an earlier call of the same size counts so much less with each one


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Upper bounds of one micro-batch. An item over the budget is a batch of its own."""

    records: int
    tokens: int
    pixels: int
    seconds: float


@dataclass(slots=True, eq=False)
class Piece:
    """Items that are encoded together.

    Attributes:
        share: of the full budget that it was formed with.
        whole: it is a new micro-batch, no part of one that failed.
        second: the other half of the failed piece that this is the first half of.
        waits: for the verdict on the first half.
        at_fault: it holds a record that fails, for the first half passed.
        passes: calls of the device that had passed when it failed last.
    """

    items: list[Item]
    share: float = 1.0
    whole: bool = False
    second: Piece | None = None
    waits: bool = False
    at_fault: bool = False
    passes: int = -1

    @property
    def last(self) -> bool:
        """Whether failing once more condemns its one record."""
        return len(self.items) == 1 and self.items[0].failures == ATTEMPTS - 1


class CallCost:
    """Seconds that a call of the device takes, by how many records it has."""

    def __init__(self) -> None:
        self._passed: dict[int, list[float]] = {}  # by n's power of two: count, n, seconds
        self._failed, self._complete = 0.0, 0.0  # seconds of calls that raised, and had they passed

    def passed(self, records: int, seconds: float) -> None:
        """A call whose records have embeddings; earlier ones of the same size count less."""
        if records == 0 or seconds <= 0.0:
            return
        sums = self._passed.setdefault(records.bit_length(), [0.0] * 3)
        for at, term in enumerate((1.0, records, seconds)):
            sums[at] = CALL_FADES * sums[at] + term

    def failed(self, records: int, seconds: float) -> None:
        """A call that raised."""
        if not self._passed:
            return
        faded = 0.5 ** (records / MEMORY_RECORDS)
        self._failed = faded * self._failed + seconds
        self._complete = faded * self._complete + self.seconds(records)

    def seconds(self, records: int) -> float:
        """Of a call with so many records, from calls of the nearest size."""
        if not self._passed:
            return FIXED + records
        size = records.bit_length()
        count, total, seconds = self._passed[min(self._passed, key=lambda at: abs(at - size))]
        return (FIXED + records) / (FIXED + total / count) * seconds / count

    @property
    def done_when_failing(self) -> float:
        """What share of its time a call has taken when it raises; 1 while that is unknown."""
        if self._complete <= 0:
            return 1.0
        return min(1.0, self._failed / self._complete)


class Bisection:
    """The pieces of failed batches, and the budget of new ones. Used by one thread.

    Args:
        budget: of a batch while nothing fails.
        clock: monotonic seconds.
    """

    def __init__(self, budget: Budget, *, clock: Callable[[], float]) -> None:
        self._full = budget
        self._clock = clock
        self._waiting: deque[Piece] = deque()
        self._share = 1.0  # of the budget that fits into memory
        self._grow_at = math.inf
        self._failing = 0.0  # records that failed, each counted less and less
        self._seen = 0.0  # records that did or did not, counted likewise
        self._released: list[Item] = []
        self._calls = CallCost()

    def __len__(self) -> int:
        """How many pieces wait."""
        return len(self._waiting)

    @property
    def records(self) -> int:
        """How many records are in them."""
        return sum(len(piece.items) for piece in list(self._waiting))

    @property
    def share(self) -> float:
        """What part of the full budget a batch may take, by memory."""
        return self._share

    def budget(self) -> Budget:
        """What the next new batch may hold."""
        if self._clock() >= self._grow_at:
            self._share = min(1.0, 2 * self._share)
            self._grow_at = self._clock() + GROW_AFTER_S if self._share < 1.0 else math.inf
        full, share = self._full, self._share
        return Budget(
            records=min(max(1, int(full.records * share)), self._few(full.records)),
            tokens=max(1, int(full.tokens * share)),
            pixels=max(1, int(full.pixels * share)),
            seconds=full.seconds * share,
        )

    def seconds(self, records: int) -> float:
        """What a call with so many records takes on the device."""
        return self._calls.seconds(records)

    def take(self) -> Piece | None:
        """The next piece of a failed batch; they go before new ones."""
        ready = (at for at, piece in enumerate(self._waiting) if not piece.waits)
        if (at := next(ready, None)) is None:
            return None
        piece = self._waiting[at]
        del self._waiting[at]
        while piece.at_fault and len(piece.items) > 1:
            piece, second = _linked(piece)
            self._waiting.insert(at, second)
        return piece

    def passed(self, piece: Piece, count: int, took_s: float) -> None:
        """A piece was encoded, and so many of its records have an embedding."""
        self._calls.passed(len(piece.items), took_s)
        self._verdict(piece, passed=True)
        faded = 0.5 ** (count / MEMORY_RECORDS)
        self._failing *= faded
        self._seen = self._seen * faded + count

    def failed(self, piece: Piece, error: BaseException, took_s: float) -> Item | None:
        """Cut a piece that failed; returns its record if that is condemned now."""
        self._calls.failed(len(piece.items), took_s)
        self._verdict(piece, passed=False)
        if len(piece.items) > 1:
            if out_of_memory(error):
                self._share = max(1 / self._full.records, min(self._share, piece.share / 2))
                self._grow_at = self._clock() + GROW_AFTER_S
                self._put_first(_halves(piece))
            else:
                self._failing += 0.5 if piece.whole else 0.0
                self._put_first(_linked(piece))
            return None
        (item,) = piece.items
        item.failures += 1
        if item.failures < ATTEMPTS:
            self._put_first([piece])
            return None
        self._failing += 0.5
        return item

    def released(self) -> list[Item]:
        """The records that are no more suspect than new ones, in order; each is returned once."""
        items, self._released = self._released, []
        return items

    def suspect(self, items: Sequence[Item]) -> None:
        """Encode each of these alone: something is wrong with what was made of them in a batch."""
        self._put_first([Piece([item]) for item in items])

    def clear(self) -> None:
        """Forget the pieces that wait."""
        self._waiting.clear()
        self._released.clear()

    def _put_first(self, pieces: Sequence[Piece]) -> None:
        self._waiting.extendleft(reversed(pieces))

    def _verdict(self, piece: Piece, *, passed: bool) -> None:
        """What encoding a piece came to decides about the other half."""
        second, piece.second = piece.second, None
        if second is None:
            return
        if passed:
            second.waits, second.at_fault = False, True
        else:
            self._waiting.remove(second)
            self._released += second.items

    def _few(self, most: int) -> int:
        """Records in a batch, a power of two, by how frequent failing ones are."""
        if self._failing < RARE:
            return most
        share = self._failing / max(self._seen, most)
        seconds, done = self._calls.seconds, self._calls.done_when_failing

        def cost(records: int) -> float:
            """Seconds of a record in batches of so many."""
            each = seconds(records) / records
            wasted, half = done * seconds(records), records // 2
            while half:
                wasted += ((1 + done) * seconds(half) - half * each) / 2
                half //= 2
            return each + share * wasted

        return min((most, *(1 << power for power in range(most.bit_length()))), key=cost)


def _halves(piece: Piece) -> tuple[Piece, Piece]:
    middle = len(piece.items) // 2
    share = piece.share / 2
    return Piece(piece.items[:middle], share), Piece(piece.items[middle:], share)


def _linked(piece: Piece) -> tuple[Piece, Piece]:
    """Its halves, of which the second waits for the first."""
    first, second = _halves(piece)
    first.second, second.waits = second, True
    return first, second


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the host or on the device."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # nothing of torch can be raised before it is imported
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


# torch has a class for its own allocator on CUDA alone; the others raise RuntimeError.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


def finite(embeddings: Sequence[Embedding]) -> list[Embedding | None]:
    """The embeddings, None for each with a vector that is not finite.

    Raises:
        FloatingPointError: it is the only one.
    """
    vectors = [vector for one in embeddings for vector in (one.fused, *one.by.values())]
    if np.isfinite(np.concatenate(vectors)).all():
        return list(embeddings)
    if len(embeddings) == 1:
        raise FloatingPointError("the vector is not finite")
    return [
        one if np.isfinite(np.concatenate([one.fused, *one.by.values()])).all() else None
        for one in embeddings
    ]


def check_golden(model: Model, error: Exception) -> None:
    """Raises WorkerError if the model fails on its golden batch too."""
    try:
        model.check()
    except Exception as broken:  # noqa: BLE001 (no record is at fault)
        golden, record = (bad_record(failure, stage="encode").reason for failure in (broken, error))
        raise WorkerError(
            f"model {model.name} fails on its own golden batch ({golden}) after it failed on a "
            f"record ({record}): the model or its device is at fault, no record is"
        ) from error
