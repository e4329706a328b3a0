"""The media of the poison corpus: each is decoded or refused, within the limits of one record."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from braid.encoders.config import Limits
from braid.encoders.decoding.pictures import decode_image
from braid.encoders.decoding.waves import decode_wave
from braid.encoders.errors import BadInput
from tests.fuzz.media import CASES, corpus

LIMITS = Limits()
CPU_S = 5.0
MEMORY = LIMITS.image_bytes + 64 * 1024 * 1024


def measure(seed: int, every: int) -> None:
    """Decode each case of its number, and all bombs; print one line of JSON for each."""
    for number, case in enumerate(corpus(seed)):
        if number % every and not case.name.startswith("bombs/"):
            continue
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, cpu_before = peak(), time.process_time()
        try:
            if case.kind == "image":
                decode_image(case.data, 224, LIMITS)
            else:
                decode_wave(case.data, 6.0, LIMITS)
            reason = ""
        except BadInput as error:
            reason = error.reason
        line = {
            "name": case.name,
            "reason": reason,
            "cpu_s": time.process_time() - cpu_before,
            "bytes": peak() - before,
        }
        print(json.dumps(line), flush=True)


def peak() -> int:
    """The most memory that this process held, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_file_costs_more_than_one_record_may() -> None:
    code = "from tests.fuzz.test_media import measure; measure(seed=0, every=5)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(lines) > CASES // 5
    assert {line["name"]: line["cpu_s"] for line in lines if line["cpu_s"] > CPU_S} == {}
    assert {line["name"]: line["bytes"] for line in lines if line["bytes"] > MEMORY} == {}
    assert {line["name"] for line in lines if " object at " in line["reason"]} == set()
    assert any(line["reason"] for line in lines)
    assert any(not line["reason"] for line in lines)


# Their writers put the time or a random number into the file.
STAMPED = {f"valid/{name}" for name in ("PDF", "WAV-FLOAT", "WAV-DOUBLE", "OGG-VORBIS", "OGG-OPUS")}


def test_a_corpus_is_the_same_for_the_same_seed() -> None:
    def digest(seed: int) -> list[str]:
        cases = islice(corpus(seed), 150)  # those before the bombs, which take long to make
        return [
            f"{case.name} {len(case.data)}"
            if case.name in STAMPED
            else hashlib.sha256(case.name.encode() + case.data).hexdigest()
            for case in cases
        ]

    first = digest(1)
    assert len(set(first)) == 150
    assert first == digest(1)
