"""The device thread and the embedder: order, bounds, failures, swaps."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from braid.encoders import BadInput, CheckpointError, DeviceThreads, Embedder, Model, Sample, load
from braid.encoders.model.null import NullModel, hashed_unit
from braid.encoders.types import Embedding, Prepared
from tests.encoders.material import samples
from tests.stream.harness import wait_for

WAIT = 30.0  # seconds; only a failing test waits as long


def hold(started: threading.Event, go: threading.Event) -> str:
    """Work that says that it runs, and runs until it is told to end."""
    started.set()
    assert go.wait(WAIT)
    return "held"


def test_work_is_done_in_order_on_one_thread() -> None:
    device = DeviceThreads()
    result = [device.submit(lambda n: (n, threading.get_ident()), i) for i in range(20)]
    results = [future.result(WAIT) for future in result]
    device.close()
    assert [i for i, _ in results] == list(range(20))
    assert len({thread for _, thread in results}) == 1
    assert results[0][1] != threading.get_ident()


def test_one_runs_and_one_waits_and_a_third_blocks() -> None:
    device = DeviceThreads()
    started, go = threading.Event(), threading.Event()
    running = device.submit(hold, started, go)
    assert started.wait(WAIT)
    waiting = device.submit(lambda: "waited")
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
    device = DeviceThreads()
    running, go = threading.Event(), threading.Event()
    first = device.submit(hold, running, go)
    assert running.wait(WAIT)
    second = device.submit(lambda: "second")  # returns at once
    assert not first.done()
    go.set()
    assert second.result(WAIT) == "second"
    device.close()


def test_an_exception_fails_its_waiter_and_the_thread_goes_on() -> None:
    device = DeviceThreads()

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
    device = DeviceThreads()
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
    device = DeviceThreads()
    result = [device.submit(int, i) for i in range(2)]
    device.close()
    device.close()
    assert [future.result(0) for future in result] == [0, 1]
    with pytest.raises(RuntimeError, match="closed"):
        device.submit(lambda: 1)


def test_a_cancelled_piece_of_work_is_not_done() -> None:
    device = DeviceThreads()
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
            target=lambda: names.append(embedder.query([Sample(id="1", text="a")]).result()[0].name)
        )
        thread.start()
        assert slow.started.wait(WAIT)
        embedder.swap(young)
        assert embedder.model.name == "null-16-v2"
        slow.go.set()
        thread.join(WAIT)
        names.append(embedder.query([Sample(id="2", text="b")]).result()[0].name)
    assert names == ["null-16", "null-16-v2"]


class Counting(Slow):
    """Notes the ids of each call, and refuses one id."""

    def __init__(self, lanes: int = 1, refused: str = "") -> None:
        super().__init__()
        self.lanes, self.refused = lanes, refused
        self.calls: list[list[str]] = []

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        ids = [item.id for item in prepared]
        self.calls.append(ids)
        embeddings = super().encode(prepared)
        if self.refused in ids:
            raise FloatingPointError("refused")
        return embeddings


def ask(embedder: Embedder, *ids: str) -> list[Future[tuple[Model, list[Embedding]]]]:
    return [embedder.query([Sample(id=id_, text=id_)]) for id_ in ids]


def test_queries_that_come_while_the_device_is_busy_are_encoded_together() -> None:
    model = Counting()
    with Embedder(model) as embedder:
        first = ask(embedder, "a")
        assert model.started.wait(WAIT)
        rest = ask(embedder, "b", "c", "d")
        model.go.set()
        for id_, future in zip("abcd", [*first, *rest], strict=True):
            used, (embedding,) = future.result(WAIT)
            assert (used, embedding.id) == (model, id_)
            assert np.array_equal(embedding.fused, hashed_unit(b"text\0" + id_.encode(), 16))
    assert model.calls == [["a"], ["b", "c", "d"]]


def test_two_lanes_share_the_queries_that_wait() -> None:
    model = Counting(lanes=2)
    with Embedder(model) as embedder:
        asked = ask(embedder, "a")
        assert model.started.wait(WAIT)
        asked += ask(embedder, "b")
        wait_for("both lanes are busy", lambda: len(model.calls) == 2, timeout=WAIT)
        asked += ask(embedder, "c", "d", "e", "f")
        model.go.set()
        assert [future.result(WAIT)[1][0].id for future in asked] == list("abcdef")
    assert max(len(call) for call in model.calls) == 2


def test_queries_of_many_threads_are_all_answered() -> None:
    """While two lanes take them from the same queue, and the model changes."""
    models = [Counting(lanes=2), Counting(lanes=2)]
    for model in models:
        model.go.set()
    with Embedder(models[0]) as embedder, ThreadPoolExecutor(16) as threads:

        def asked(number: int) -> bool:
            embedder.swap(models[number % 2])
            return (
                embedder.query([Sample(id=f"{number}", text="x")]).result(WAIT)[1][0].id
                == f"{number}"
            )

        assert all(threads.map(asked, range(2000)))


class Ending(Slow):
    """A model that ends the device thread which it runs on."""

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        super().encode(prepared)
        raise SystemExit(3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_of_a_device_thread_fails_the_queries_that_wait() -> None:
    model = Ending()
    embedder = Embedder(model)
    first = ask(embedder, "a")
    assert model.started.wait(WAIT)
    rest = ask(embedder, "b", "c")
    model.go.set()
    for future in (*first, *rest):
        assert isinstance(future.exception(WAIT), SystemExit | RuntimeError)
    with pytest.raises(RuntimeError, match="closed"):
        embedder.query([Sample(id="d", text="d")])
    embedder.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_list_that_ends_a_device_thread_fails_the_queries_that_wait() -> None:
    model = Ending()
    embedder = Embedder(model)
    thread = threading.Thread(target=lambda: embedder.embed(samples(3)))
    thread.start()
    assert model.started.wait(WAIT)
    waiting = ask(embedder, "a", "b")
    model.go.set()
    for future in waiting:
        assert isinstance(future.exception(WAIT), SystemExit | RuntimeError)
    thread.join(WAIT)
    embedder.close()


def test_queries_beside_a_close_are_answered_or_refused() -> None:
    for _ in range(50):
        embedder = Embedder(load("null:16"))
        asked: list[Future[tuple[Model, list[Embedding]]]] = []

        def keep_asking(embedder: Embedder = embedder, asked: list = asked) -> None:
            with suppress(RuntimeError):
                while True:
                    asked.extend(ask(embedder, "a"))

        thread = threading.Thread(target=keep_asking)
        thread.start()
        embedder.close()
        thread.join(WAIT)
        assert not thread.is_alive()
        assert all(isinstance(one.exception(WAIT), RuntimeError | None) for one in asked)


def test_a_query_that_cannot_be_encoded_fails_alone() -> None:
    model = Counting(refused="c")
    with Embedder(model) as embedder:
        first = ask(embedder, "a")
        assert model.started.wait(WAIT)
        b, c, d = ask(embedder, "b", "c", "d")
        model.go.set()
        assert [future.result(WAIT)[1][0].id for future in (*first, b, d)] == ["a", "b", "d"]
        with pytest.raises(FloatingPointError, match="refused"):
            c.result(WAIT)


def test_a_query_is_answered_while_a_long_list_is_embedded() -> None:
    """It does not wait for the end of the list, but for the micro-batches before it."""
    model = Counting()
    with Embedder(model, batch=1) as embedder:
        done: list[list[Embedding]] = []
        records = [Sample(id=f"r{number}", text="x") for number in range(6)]
        thread = threading.Thread(target=lambda: done.append(embedder.embed(records)))
        thread.start()
        assert model.started.wait(WAIT)
        (asked,) = ask(embedder, "q")
        model.go.set()
        assert asked.result(WAIT)[1][0].id == "q"
        thread.join(WAIT)
    assert [embedding.id for embedding in done[0]] == [f"r{number}" for number in range(6)]
    assert ["q"] in model.calls[:4]


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
