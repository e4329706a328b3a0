"""Hits as a table of pandas (extra `pandas`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

NESTED = ("meta", "labels", "predicted", "uri", "scores")  # a column for each entry


def hits_table(hits: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> pd.DataFrame:
    """One row for each hit, in order; see `SearchAnswer.to_pandas`.

    Args:
        fields: those of a hit, which are columns even if there are no hits.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            f"to_pandas: {error.name} is not installed: pip install 'braid-stream[pandas]'"
        ) from None
    rows = [_row(hit) for hit in hits]
    own = [name for name in fields if name not in NESTED]
    columns = dict.fromkeys([*own, *(name for row in rows for name in row)])
    table = pd.DataFrame({name: [row.get(name) for row in rows] for name in columns})
    # A producer may send any whole number: what is no time in nanoseconds is NaT.
    table["ts"] = pd.to_datetime(table["ts"], unit="ms", utc=True, errors="coerce")
    return table


def _row(hit: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: value for name, value in hit.items() if name not in NESTED}
    for field in NESTED:
        row |= {f"{field}.{name}": value for name, value in (hit.get(field) or {}).items()}
    return row
