"""Decoding in processes of their own: the same results, and a record harms nobody but itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import braid.encoders.decoding.isolation
from benchmarks import prepare_isolation
from braid.encoders import Sample
from braid.encoders.config import Limits
from braid.encoders.decoding.isolation import DecodePool, isolate, picture
from braid.encoders.decoding.pictures import decode_image, decode_whole
from braid.encoders.decoding.waves import decode_wave
from braid.encoders.errors import BadInput
from braid.encoders.types import Model
from tests.encoders.material import png, wav
from tests.fuzz.files import RGB, scans_jpeg
from tests.fuzz.files import png as raw_png

LIMITS = Limits()
LARGE = raw_png((8000, 8000), colour=RGB)  # 244 MiB, about a second


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    made = DecodePool(2)
    yield made
    isolate(None)
    made.close()


def children(pool: DecodePool) -> list[int]:
    return [child._process.pid for child in pool._idle.queue if child is not None]


def refused(pool: DecodePool, data: bytes, kind: str = "image") -> str:
    with pytest.raises(BadInput) as caught:
        pool.decode(kind, data, 64, LIMITS)
    assert caught.value.field == kind
    return caught.value.reason


def change(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Run `code` in children before they serve."""
    start = braid.encoders.decoding.isolation._START
    begin = "from braid.encoders.decoding.isolation"
    monkeypatch.setattr(
        braid.encoders.decoding.isolation, "_START", start.replace(begin, f"{code}; {begin}")
    )


def gone(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_model_prepares_the_same_in_children(model: Model, pool: DecodePool) -> None:
    sample = Sample(id="x", text="a red thing", image=png(), audio=wav(rate=11_025))
    here = model.prepare(sample)
    isolate(pool)
    with ThreadPoolExecutor(4) as threads:
        for there in threads.map(model.prepare, [sample] * 12):
            for name, value in here.inputs.items():
                assert np.array_equal(np.asarray(value), np.asarray(there.inputs[name]))
    assert len(children(pool)) == 2


def test_a_picture_of_its_own_size() -> None:
    pool = DecodePool(1, cpu_s=60)  # a busy machine takes more CPU time for the same
    try:
        isolate(pool)
        assert np.array_equal(picture(png(), None, LIMITS), decode_whole(png(), LIMITS))
        assert picture(LARGE, None, LIMITS).shape == (8000, 8000, 3)  # the largest admitted
    finally:
        isolate(None)
        pool.close()


def test_what_is_refused_there_is_refused_here(pool: DecodePool) -> None:
    for kind, data in (("image", b"nothing"), ("image", png()[:60]), ("audio", wav()[:44])):
        decode = decode_image if kind == "image" else decode_wave
        with pytest.raises(BadInput) as caught:
            decode(data, 64, LIMITS)
        assert refused(pool, data, kind) == caught.value.reason
    assert len(children(pool)) == 1, "the child serves on"


def test_memory_beyond_the_limit_costs_one_record() -> None:
    pool = DecodePool(1, memory=100 << 20)
    try:
        reason = refused(pool, LARGE)
        assert reason == "does not decode: takes more than 104857600 bytes of memory"
        assert pool.decode("image", png(), 64, LIMITS)[0].shape == (3, 64, 64)
    finally:
        pool.close()


@pytest.mark.slow
def test_cpu_time_beyond_the_limit_costs_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of the header are raised, so that a progressive JPEG takes minutes."""
    change(
        monkeypatch,
        "import braid.encoders.decoding.pictures as p, braid.encoders.decoding.containers as c; "
        "p.SCANS_AT_LIMIT = c.SCANS = 10**9",
    )
    pool = DecodePool(1, cpu_s=1)
    try:
        reason = refused(pool, scans_jpeg((4000, 4000), 40_000))
        assert reason == "does not decode: takes more than 1 s of CPU time"
        assert pool.decode("image", png(), 64, LIMITS)[0].shape == (3, 64, 64)
    finally:
        pool.close()


def test_a_child_that_hangs_costs_one_record() -> None:
    pool = DecodePool(1, wall_s=30.0)
    try:
        pool.decode("image", png(), 64, LIMITS)
        (child,) = children(pool)
        os.kill(child, signal.SIGSTOP)
        pool._wall_s = 0.5
        assert refused(pool, png()) == "does not decode: takes more than 0.5 s"
        assert gone(child)
        pool._wall_s = 30.0
        assert pool.decode("image", png(), 64, LIMITS)[0].shape == (3, 64, 64)
    finally:
        pool.close()


@pytest.mark.slow
def test_a_child_that_was_killed_by_something_else_loses_no_record(pool: DecodePool) -> None:
    pool.decode("image", png(), 64, LIMITS)
    (child,) = children(pool)
    with ThreadPoolExecutor(1) as threads:
        decoding = threads.submit(pool.decode, "image", LARGE, 64, LIMITS)
        time.sleep(0.2)  # it decodes, or has begun to
        os.kill(child, signal.SIGKILL)
        assert decoding.result()[0].shape == (3, 64, 64)
    assert children(pool) != [child]


def test_a_record_that_crashes_two_children_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash of a codec, where no file is known that still makes one: the child's own signal."""
    change(
        monkeypatch,
        "import os, braid.encoders.decoding.isolation as i; image = i._KINDS['image']; "
        "crash = lambda data, *more: os.kill(os.getpid(), 11) if data == b'crash' "
        "else image(data, *more); i._KINDS = {{'image': crash}}",
    )
    pool = DecodePool(1)
    try:
        assert refused(pool, b"crash") == "does not decode: the decoder ended with SIGSEGV"
        assert pool.decode("image", png(), 64, LIMITS)[0].shape == (3, 64, 64)
    finally:
        pool.close()


def test_children_end_with_a_killed_parent(tmp_path: Path) -> None:
    code = """
import sys, time
from braid.encoders.config import Limits
from braid.encoders.decoding.isolation import DecodePool
from tests.encoders.material import png
pool = DecodePool(1)
pool.decode("image", png(), 64, Limits())
print(pool._idle.queue[-1]._process.pid, "torch" in sys.modules, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        assert parent.stdout is not None
        child, _, torch = parent.stdout.readline().strip().partition(" ")
        assert torch == "False"
        assert not gone(int(child))
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()
    deadline = time.monotonic() + 60
    while not gone(int(child)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    report = prepare_isolation.main(["--records", "4", "--rounds", "2", "--json"])
    assert set(report["rows"]) == {
        f"{kind}, {way}" for kind in ("pictures", "sounds") for way in ("thread", "process")
    }
