"""The device thread and the embedder: order, bounds, failures, swaps."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from braid.encoders import BadInput, CheckpointError, DeviceThread, Embedder, Model, Sample, load
from braid.encoders.model.null import NullModel, hashed_unit
from braid.encoders.types import Embedding, Prepared
from tests.encoders.material import samples

WAIT = 30.0  # seconds; only a failing test waits as long


def hold(started: threading.Event, go: threading.Event) -> str:
    """Work that says that it runs, and runs until it is told to end."""
    started.set()
    assert go.wait(WAIT)
    return "held"


def test_work_is_done_in_order_on_one_thread() -> None:
    device = DeviceThread()
    result = [device.submit(lambda n: (n, threading.get_ident()), i) for i in range(20)]
    results = [future.result(WAIT) for future in result]
    device.close()
    assert [i for i, _ in results] == list(range(20))
    assert len({thread for _, thread in results}) == 1
    assert results[0][1] != threading.get_ident()


def test_one_runs_and_one_waits_and_then_it_is_full() -> None:
    device = DeviceThread()
    started, go = threading.Event(), threading.Event()
    running = device.submit(hold, started, go)
    assert started.wait(WAIT)
    assert not device.full
    waiting = device.submit(lambda: "waited")
    assert device.full
    blocked = threading.Thread(target=lambda: results.append(device.submit(lambda: "last")))
    results: list = []
    blocked.start()
    blocked.join(0.3)
    assert blocked.is_alive(), "submit must block while one piece of work waits"
    go.set()
    blocked.join(WAIT)
    assert running.result(WAIT) == "held"
    assert waiting.result(WAIT) == "waited"
    assert results[0].result(WAIT) == "last"
    device.close()


def test_the_next_batch_can_be_handed_over_while_one_runs() -> None:
    """Overlap: the producer is free to prepare while the device works."""
    device = DeviceThread()
    running, go = threading.Event(), threading.Event()
    first = device.submit(hold, running, go)
    assert running.wait(WAIT)
    second = device.submit(lambda: "second")  # returns at once
    assert not first.done()
    go.set()
    assert second.result(WAIT) == "second"
    device.close()


def test_an_exception_fails_its_waiter_and_the_thread_goes_on() -> None:
    device = DeviceThread()

    def fail() -> None:
        raise ZeroDivisionError("ours")

    failed = device.submit(fail)
    after = device.submit(lambda: 7)
    with pytest.raises(ZeroDivisionError, match="ours"):
        failed.result(WAIT)
    assert after.result(WAIT) == 7
    device.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_of_the_thread_fails_everyone_who_waits() -> None:
    device = DeviceThread()
    started, go = threading.Event(), threading.Event()

    def leave() -> None:
        started.set()
        go.wait(WAIT)
        raise SystemExit(3)

    leaving = device.submit(leave)
    assert started.wait(WAIT)
    waiting = device.submit(lambda: 1)
    go.set()
    with pytest.raises(SystemExit):
        leaving.result(WAIT)
    with pytest.raises(RuntimeError, match="ended"):
        waiting.result(WAIT)
    device.close()
    with pytest.raises(RuntimeError, match="closed"):
        device.submit(lambda: 1)


def test_close_finishes_what_was_submitted_and_may_be_repeated() -> None:
    device = DeviceThread()
    result = [device.submit(int, i) for i in range(2)]
    device.close()
    device.close()
    assert [future.result(0) for future in result] == [0, 1]
    with pytest.raises(RuntimeError, match="closed"):
        device.submit(lambda: 1)


def test_a_cancelled_piece_of_work_is_not_done() -> None:
    device = DeviceThread()
    started, go = threading.Event(), threading.Event()
    device.submit(hold, started, go)
    assert started.wait(WAIT)
    done: list[int] = []
    waiting = device.submit(lambda: done.append(1))
    assert waiting.cancel()
    go.set()
    device.close()
    assert done == []


def test_embedding_in_three_lines(version: Path) -> None:
    with Embedder.load(version, device="cpu") as embedder:
        embeddings = embedder.embed(samples(150))
    assert [embedding.id for embedding in embeddings] == [f"s{i}" for i in range(150)]
    assert embeddings[0].tasks["colour"].label == "red"


def test_a_bad_sample_is_reported_and_the_embedder_lives() -> None:
    with Embedder(load("null:16")) as embedder:
        with pytest.raises(BadInput):
            embedder.embed([Sample(id="good", text="x"), Sample(id="bad")])
        assert len(embedder.embed([Sample(id="good", text="x")])) == 1


class Slow(NullModel):
    """A null model that can be held in the middle of a batch."""

    def __init__(self) -> None:
        super().__init__(16)
        self.started, self.go = threading.Event(), threading.Event()

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        self.started.set()
        assert self.go.wait(WAIT)
        return super().encode(prepared)


def test_a_batch_ends_with_the_model_that_it_began_with() -> None:
    slow, young = Slow(), load("null:16:v2")
    with Embedder(slow) as embedder:
        names: list[str] = []
        thread = threading.Thread(
            target=lambda: names.append(embedder.embed_with([Sample(id="1", text="a")])[0].name)
        )
        thread.start()
        assert slow.started.wait(WAIT)
        embedder.swap(young)
        assert embedder.model.name == "null-16-v2"
        slow.go.set()
        thread.join(WAIT)
        names.append(embedder.embed_with([Sample(id="2", text="b")])[0].name)
    assert names == ["null-16", "null-16-v2"]


def test_the_null_model_is_a_model_and_can_be_computed_again() -> None:
    model: Model = load("null:16")
    assert isinstance(model, Model)
    model.check()
    (embedding,) = model.encode([model.prepare(Sample(id="1", text="hello"))])
    assert np.array_equal(embedding.fused, hashed_unit(b"text\0hello", 16))
    assert np.linalg.norm(embedding.fused) == pytest.approx(1.0, abs=1e-6)
    assert embedding.tasks["parity"].label in ("even", "odd")
    assert load("null:16:v2").space == model.space
    assert load("null:32").space != model.space
    with pytest.raises(BadInput):
        model.prepare(Sample(id="1"))


@pytest.mark.parametrize("spec", ["null:", "null:x", "null:1", "null:99999999"])
def test_a_null_spec_that_makes_no_sense_is_refused(spec: str) -> None:
    with pytest.raises(CheckpointError):
        load(spec)


def test_the_trained_model_is_a_model(model: Model) -> None:
    assert isinstance(model, Model)
