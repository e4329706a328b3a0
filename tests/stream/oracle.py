"""What the index must answer, computed by numpy from the null model's own rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from braid.encoders.model.null import hashed_unit
from braid.index.client import Client

TIES = 1e-6


def check_index(client: Client, texts: Mapping[str, str], queries: Sequence[str], *, k: int) -> int:
    """Every record is in the index exactly once and each answer is the oracle's; hits checked."""
    ids = sorted(texts)
    rows_RD = np.stack([hashed_unit(b"text\0" + texts[id_].encode(), 16) for id_ in ids])
    at = {id_: number for number, id_ in enumerate(ids)}
    checked = 0
    for query in queries:
        scores_R = rows_RD @ hashed_unit(b"text\0" + query.encode(), 16)
        best_K = np.sort(scores_R)[::-1][:k]
        hits = client.search(text=query, k=k).hits
        assert len({hit.id for hit in hits}) == len(hits) == min(k, len(ids))
        for hit, best in zip(hits, best_K, strict=True):
            assert abs(hit.score - scores_R[at[hit.id]]) < 1e-5
            assert abs(hit.score - best) < 1e-5 + TIES
        checked += len(hits)
    assert client.status().records == len(ids)
    return checked
