"""A TLS listener in front of a server that has none, as a process.

python -m tests.tls_proxy PORT TARGET CERTIFICATE KEY [PROTOCOL]
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from braid.stream.local.child import start_server


@contextmanager
def tls_in_front_of(
    target: int, certificate: tuple[Path, Path], *, protocol: str = "", log: Path
) -> Iterator[int]:
    """The port of a listener on 127.0.0.1 that ends TLS and passes the bytes on to `target`.

    Args:
        protocol: to agree on by ALPN, such as h2.
    """
    files = [str(file) for file in certificate]
    child, port = start_server(
        "tls proxy",
        lambda port: [sys.executable, "-m", __name__, str(port), str(target), *files, protocol],
        log=log,
    )
    try:
        yield port
    finally:
        child.stop(0)


async def main(port: str, target: str, certificate: str, key: str, protocol: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    if protocol:
        context.set_alpn_protocols([protocol])

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", int(target))
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

    async with await asyncio.start_server(serve, "127.0.0.1", int(port), ssl=context) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
