"""Milvus connection, mapping of its errors, strongly consistent queries."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..redact import redacted
from .filters import quoted
from .rows import HEADER, Header, decode_header

CONNECT_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 30.0
RETRY_S = 0.25
CONNECT_FAILED = 2  # pymilvus.client.types.Status


def connect(
    uri: str, *, token: str = "", ca: Path | None = None, timeout_s: float = CONNECT_TIMEOUT_S
) -> Any:
    """A client of a Milvus server (`http://host:port`, `https://` for TLS), or of Milvus Lite (a
    path, `*.db`).

    Args:
        token: user:password, or an API key.
        ca: a PEM file of the authorities that sign the server; None: those of the system.
        timeout_s: how long to wait for the server.

    Raises:
        StoreError: pymilvus (or, for a path, milvus-lite) is not installed, the address is invalid,
            or no server answers.
    """
    try:
        from pymilvus import MilvusClient, MilvusException

        if uri.endswith(".db"):
            import milvus_lite  # noqa: F401
    except ImportError as error:
        extra = "milvus-lite" if error.name == "milvus_lite" else "milvus"
        raise StoreError(f"{error.name} is not installed: pip install '.[{extra}]'") from None
    # pymilvus logs a traceback of each error before it raises it.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    until = time.monotonic() + timeout_s
    tls = {} if ca is None else {"server_pem_path": str(ca)}
    with errors(f"connecting to {redacted(uri)}"):
        while True:
            try:
                client = MilvusClient(uri, token=token, timeout=timeout_s, **tls)
                client.list_collections(timeout=timeout_s)
                return client
            except MilvusException as error:
                # pymilvus does not retry a refused connection.
                if error.code != CONNECT_FAILED or time.monotonic() > until:
                    raise
            time.sleep(RETRY_S)


@contextmanager
def errors(what: str) -> Iterator[None]:
    """Map errors of Milvus and of its connection to StoreError."""
    import grpc
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        raise StoreError(f"Milvus: {what}: {error}") from error


def query(
    client: Any, collection: str, condition: str, fields: list[str], *, timeout_s: float
) -> list[dict[str, Any]]:
    """The rows that match the expression, with strong consistency. Raises StoreError."""
    with errors(f"reading {collection}"):
        rows = client.query(
            collection,
            filter=condition,
            output_fields=fields,
            consistency_level="Strong",
            timeout=timeout_s,
        )
        return list(rows)


def among(ids: Sequence[str]) -> str:
    # The client's own look-up by ids does not escape them.
    return f"id in [{', '.join(map(quoted, ids))}]"


def read_header(client: Any, collection: str, *, timeout_s: float) -> Header | None:
    """The header of a loaded collection, or None if it has none. Raises StoreError."""
    rows = query(client, collection, among([HEADER]), ["id", "meta"], timeout_s=timeout_s)
    return decode_header(rows[0]) if rows else None
