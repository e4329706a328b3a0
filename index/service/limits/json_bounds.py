"""Limits on values, names and nesting of JSON, checked before it is parsed.

Parsing `[[],[],...]` of 8 MiB makes 180 MB of lists, and the parser holds the GIL meanwhile.
"""

from __future__ import annotations

import numpy as np

from ...errors import BadQuery

MAX_VALUES = 500_000  # 64 vectors of 4,096 numbers are 262,144
MAX_NAMES = 100_000  # of objects; 700,000 different ones take a second to parse
MAX_CONTAINERS = 20_000  # objects and arrays; 64 filters of 64 conditions are some 8,000
MAX_DEPTH = 64
PIECE = 256 * 1024  # bytes per step, so that other threads get the GIL in between
QUOTE, ESCAPE = ord('"'), ord("\\")


def check_json(name: str, raw: bytes) -> None:
    """Raise BadQuery for the field `name` if it has too many values or containers, or levels."""
    containers = raw.count(b"[") + raw.count(b"{")  # an upper bound: some may be inside strings
    few = raw.count(b",") < MAX_VALUES and raw.count(b":") <= MAX_NAMES
    if few and containers <= MAX_DEPTH:
        return
    values, names, containers, depth = json_counts(raw)
    for what, count, limit in (
        ("values", values, MAX_VALUES),
        ("names", names, MAX_NAMES),
        ("objects and arrays", containers, MAX_CONTAINERS),
        ("levels of objects and arrays", depth, MAX_DEPTH),
    ):
        if count > limit:
            raise BadQuery(name, f"has {count} {what}, the limit is {limit}")


def json_counts(raw: bytes) -> tuple[int, int, int, int]:
    """Values (commas plus one), names, containers, and the deepest nesting, outside strings."""
    commas = names = containers = deepest = level = 0
    quoted = escaped = 0
    for start in range(0, len(raw), PIECE):
        piece = np.frombuffer(raw, np.uint8, count=min(PIECE, len(raw) - start), offset=start)
        quotes, escaped = _quotes(piece, escaped)
        inside = (np.cumsum(quotes) + quoted) % 2
        quoted = int(inside[-1])
        outside = inside == 0
        opened = ((piece == ord("[")) | (piece == ord("{"))) & outside
        closed = ((piece == ord("]")) | (piece == ord("}"))) & outside
        levels = level + np.cumsum(opened.astype(np.int32) - closed.astype(np.int32))
        commas += int(((piece == ord(",")) & outside).sum())
        names += int(((piece == ord(":")) & outside).sum())
        containers += int(opened.sum())
        deepest, level = max(deepest, int(levels.max())), int(levels[-1])
    return commas + 1, names, containers, deepest


def _quotes(piece: np.ndarray, escaped: int) -> tuple[np.ndarray, int]:
    """Which bytes are quotes that open or close a string; 1 if the next byte is escaped.

    A byte is escaped by an odd number of backslashes before it. `escaped`: as returned for the
    piece before.
    """
    quotes = piece == QUOTE
    slashes = piece == ESCAPE
    if not escaped and not slashes.any():
        return quotes, 0
    place = np.arange(len(piece))
    # The first backslash of each run; one that is itself escaped from before does not count.
    last_other = np.maximum.accumulate(np.where(slashes, -1, place))
    run = place - last_other  # length of the run of backslashes that ends here; 0: none
    if escaped:  # the run at the start of the piece is one longer
        run += last_other == -1
    before = np.concatenate([[escaped], run[:-1]])
    return quotes & (before % 2 == 0), int(run[-1] % 2)
