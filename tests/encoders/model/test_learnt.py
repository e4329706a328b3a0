"""What versions have learnt: exact, and bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from braid.encoders.manifest import Manifest, read_manifest
from braid.encoders.model import learnt
from braid.encoders.model.learnt import FILE, Learnt

RNG = np.random.default_rng(0)
KEYS = [int(key) for key in RNG.integers(0, 2**64 - 1, 500, dtype=np.uint64, endpoint=True)]


def read_back(one: Learnt, folder: Path, manifest: Manifest) -> Learnt | None:
    (folder / FILE).write_bytes(one.to_bytes())
    return Learnt.read(folder, manifest)


def test_it_is_kept_whole(tmp_path: Path, version: Path) -> None:
    manifest = read_manifest(version)
    one = Learnt.of([*KEYS, KEYS[0], 0, 2**64 - 1])
    again = read_back(one, tmp_path, manifest)
    assert again is not None
    assert again.keys.tolist() == sorted({*KEYS, 0, 2**64 - 1})
    assert all(key in again for key in (*KEYS, 0, 2**64 - 1))
    assert not any(key ^ 1 in again for key in KEYS)
    assert Learnt.read(tmp_path, Manifest.from_json(manifest.to_json().replace(FILE, "x"))) is None


def test_many_become_bits_that_forget_none(
    tmp_path: Path, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learnt, "MOST", 400)
    monkeypatch.setattr(learnt, "BITS", 16)
    one = Learnt.of(KEYS[:300])
    assert one.bits is None
    both = one | Learnt.of(KEYS[200:])
    assert both.bits is not None
    again = read_back(both | Learnt.of([5]), tmp_path, read_manifest(version))
    assert again is not None
    assert len(again.to_bytes()) < 2**13 + 200
    assert all(key in again for key in (*KEYS, 5))
    others = RNG.integers(0, 2**64 - 1, 2000, dtype=np.uint64)
    assert np.mean([int(key) in again for key in others]) == pytest.approx(500 / 2**16, abs=0.01)
