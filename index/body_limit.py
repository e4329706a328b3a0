"""Refuses request bodies over a limit before they are held in memory."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware: 413 for a body over `limit` bytes, said in advance or found on the way."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._limit:
            await self._drain(receive)
            body = too_large(f"is {announced.decode(errors='replace')} bytes", self._limit)
            headers = {"connection": "close"}
            await JSONResponse(body, status_code=413, headers=headers)(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                # FastAPI hands an HTTPException on, where it would call any other a bad body.
                raise BodyTooLarge(self._limit)
            return message

        await self._app(scope, limited, send)

    async def _drain(self, receive: Receive) -> None:
        """Read and drop as much as the limit: a client that is cut off may miss the answer."""
        dropped = 0
        while dropped <= self._limit:
            message = await receive()
            dropped += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return


class BodyTooLarge(HTTPException):
    """More came than the limit allows."""

    def __init__(self, limit: int) -> None:
        super().__init__(413)
        self.body = too_large("is larger", limit)


def too_large(what: str, limit: int) -> dict[str, dict[str, str]]:
    return {"error": {"field": "body", "reason": f"{what}, the limit is {limit} bytes"}}
