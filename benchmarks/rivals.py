"""Other vector indexes, behind one small face, for the benchmarks (extra `bench`).

Each is built with the parameters that its documentation starts from, and has one dial that trades
speed for recall, turned by `index_approximate` in the same way for all. Imported lazily: one that
is not installed is reported as absent.

Shapes: B queries, D dimensions, N rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from braid.index.store import Array

from .vectors import K

EF = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
REFINED = 10  # times k candidates of quantised vectors are scored again by the whole ones
LINKS, BUILD = 16, 200  # of a graph: links of a node, candidates while it is built
PATIENCE_S = 7200.0
INSERT = 10_000  # rows of one insert into a database


@dataclass(frozen=True, kw_only=True, slots=True)
class Rival:
    """An index that holds the rows, numbered from 0.

    Attributes:
        about: what was built.
        dial: the values of what trades speed for recall, ascending.
        search: the K rows found for each query, with the dial at a value.
        close: give up what it holds.
    """

    about: str
    dial: Sequence[int]
    search: Callable[[Array, int], Sequence[Sequence[int]]]
    close: Callable[[], None] = lambda: None


def hnswlib(rows_ND: Array, folder: Path, threads: int) -> Rival:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=rows_ND.shape[1])
    index.init_index(max_elements=len(rows_ND), ef_construction=BUILD, M=LINKS)
    index.set_num_threads(threads)
    index.add_items(rows_ND, num_threads=threads)

    def search(queries_BD: Array, ef: int) -> Sequence[Sequence[int]]:
        index.set_ef(ef)
        ids: list[list[int]] = index.knn_query(queries_BD, k=K)[0].astype(np.int64).tolist()
        return ids

    return Rival(about=f"HNSW, M {LINKS}, float32", dial=EF, search=search)


def usearch(rows_ND: Array, folder: Path, threads: int) -> Rival:
    from usearch.index import Index

    index: Any = Index(
        ndim=rows_ND.shape[1], metric="ip", dtype="f16", connectivity=LINKS, expansion_add=BUILD
    )
    index.add(np.arange(len(rows_ND)), rows_ND, threads=threads)

    def search(queries_BD: Array, ef: int) -> Sequence[Sequence[int]]:
        index.expansion_search = ef
        keys = index.search(queries_BD, K, threads=threads).keys.astype(np.int64)
        return [keys.tolist()] if keys.ndim == 1 else keys.tolist()

    return Rival(about=f"HNSW, connectivity {LINKS}, float16", dial=EF, search=search)


def lancedb(rows_ND: Array, folder: Path, threads: int) -> Rival:
    # Read when the library starts its threads.
    os.environ["LANCE_CPU_THREADS"] = str(threads)
    import lancedb
    import pyarrow as pa

    count, dim = rows_ND.shape
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), dim))])

    def batches() -> Any:
        for begin in range(0, count, INSERT):
            piece_MD = rows_ND[begin : begin + INSERT]
            flat = pa.FixedSizeListArray.from_arrays(pa.array(piece_MD.reshape(-1)), dim)
            ids = pa.array(np.arange(begin, begin + len(piece_MD)))
            yield pa.record_batch([ids, flat], schema=schema)

    table = lancedb.connect(folder / "lance").create_table(
        "rows", pa.RecordBatchReader.from_batches(schema, batches())
    )
    lists = max(1, int(np.sqrt(count)))
    table.create_index(
        metric="dot",
        vector_column_name="vector",
        index_type="IVF_PQ",
        num_partitions=lists,
        num_sub_vectors=dim // 4,
    )

    def search(queries_BD: Array, probes: int) -> Sequence[Sequence[int]]:
        asked: Any = table.search(queries_BD if len(queries_BD) > 1 else queries_BD[0])
        asked = asked.nprobes(probes).refine_factor(REFINED).select(["id", "_distance"])
        hits = asked.limit(K).to_arrow()
        ids = hits["id"].to_numpy()
        if len(queries_BD) == 1:
            return [ids.tolist()]
        of = hits["query_index"].to_numpy()
        return [ids[of == number].tolist() for number in range(len(queries_BD))]

    about = f"IVF_PQ, {lists} lists, {dim // 4} bytes a row, refined {REFINED} times k, on disk"
    return Rival(about=about, dial=PROBES, search=search)


def milvus_lite(rows_ND: Array, folder: Path, threads: int) -> Rival:
    from pymilvus import DataType, MilvusClient

    # Its client pings every ten seconds; during a build of minutes its own server takes that for
    # abuse and hangs up, and the repeated call finds that the index is there already.
    seldom = {"grpc.keepalive_time_ms": int(1000 * PATIENCE_S)}
    client = MilvusClient(uri=str(folder / "milvus.db"), grpc_options=seldom)
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=rows_ND.shape[1])
    client.create_collection("rows", schema=schema)
    for begin in range(0, len(rows_ND), INSERT):
        piece_MD = rows_ND[begin : begin + INSERT]
        client.insert(
            "rows", [{"id": begin + n, "vector": row_D} for n, row_D in enumerate(piece_MD)]
        )
    client.flush("rows")
    params = client.prepare_index_params()
    params.add_index(
        "vector", index_type="HNSW", metric_type="IP", params={"M": LINKS, "efConstruction": BUILD}
    )
    # Without a time of its own a build that takes minutes is asked for again, and refused then.
    client.create_index("rows", params, timeout=PATIENCE_S)
    client.load_collection("rows", timeout=PATIENCE_S)

    def search(queries_BD: Array, ef: int) -> Sequence[Sequence[int]]:
        answers = client.search(
            "rows",
            list(queries_BD),
            anns_field="vector",
            limit=K,
            search_params={"metric_type": "IP", "params": {"ef": ef}},
        )
        return [[hit["id"] for hit in hits] for hits in answers]

    def close() -> None:
        client.close()

    about = f"HNSW, M {LINKS}, by its client"
    return Rival(about=about, dial=EF, search=search, close=close)


RIVALS: dict[str, Callable[[Array, Path, int], Rival]] = {
    "hnswlib": hnswlib,
    "usearch": usearch,
    "lancedb": lancedb,
    "milvus-lite": milvus_lite,
}
