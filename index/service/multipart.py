"""Strict and bounded parser of `multipart/form-data`.

The body is in memory, within the body's limit. Ambiguous input is refused: two parts of one name,
text that is not UTF-8, a body that ends early.
"""

from __future__ import annotations

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from ..errors import BadQuery

MAX_PARTS = 32
MAX_BOUNDARY = 70  # RFC 2046, 5.1.1


def read_form(body: bytes, content_type: str) -> dict[str, bytes]:
    """The parts of an upload by name.

    Raises:
        BadQuery: 400 for a malformed body, 422 for too many parts or two of one name.
    """
    boundary = parse_options_header(content_type)[1].get("boundary", "")
    if not 0 < len(boundary) <= MAX_BOUNDARY:
        reason = f"must name a boundary of 1 to {MAX_BOUNDARY} bytes, got {len(boundary)}"
        raise BadQuery("content-type", reason, status=400)
    parts: dict[str, list[bytes]] = {}
    try:
        with PushMultipartParser(boundary, strict=True) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    name = _name(event)
                    if name in parts:
                        raise BadQuery(name[:60], "is given twice")
                    if len(parts) == MAX_PARTS:
                        raise BadQuery("body", f"has more than {MAX_PARTS} parts")
                    pieces = parts[name] = []
                elif event is not None:
                    pieces.append(event)
    except MultipartError as error:
        raise BadQuery("body", f"is not multipart/form-data: {error}", status=400) from None
    return {name: b"".join(pieces) for name, pieces in parts.items()}


def text_of(name: str, data: bytes) -> str:
    """A part as text. Raises BadQuery if it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadQuery(name, f"is not UTF-8: {error.reason}", status=400) from None


def _name(part: MultipartSegment) -> str:
    encoding = part.header("content-transfer-encoding", "binary")
    if encoding.lower() not in ("binary", "8bit", "7bit"):
        raise BadQuery(part.name, f"must not be encoded, got {encoding[:60]!r}", status=400)
    return str(part.name)
