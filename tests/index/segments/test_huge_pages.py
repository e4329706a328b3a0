"""Huge pages: the kernel reports them, and the content is unchanged."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from braid.index.segments.huge_pages import PAGE, collapse

SIZE = 4 * PAGE


def huge_bytes(address: int) -> int:
    """Bytes in huge pages of the mapping that holds the address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if "-" in name and not name.endswith(":"):
            begin, end = (int(number, 16) for number in name.split("-"))
            inside = begin <= address < end
        elif inside and name == "AnonHugePages:":
            return 1024 * int(rest.split()[0])
    return 0


def test_rows_are_moved_to_huge_pages_and_stay_what_they_were() -> None:
    held = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    rows = np.frombuffer(held, np.uint8)  # small pages until somebody asks
    rows[:] = np.arange(SIZE) % 251
    address = int(rows.ctypes.data)
    before = huge_bytes(address)
    if not collapse(address, SIZE):
        pytest.skip("this kernel gives no huge pages to who asks")
    assert huge_bytes(address) > before
    np.testing.assert_array_equal(rows, np.arange(SIZE) % 251)


def test_less_than_a_page_stays_where_it_is() -> None:
    rows = np.zeros(PAGE // 2, np.uint8)
    assert not collapse(int(rows.ctypes.data), rows.nbytes)
