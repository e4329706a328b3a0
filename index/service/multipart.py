"""Strict and bounded parser of `multipart/form-data`.

The body is in memory, within the body's limit. Ambiguous input is refused: two parts of one name,
text that is not UTF-8, a body that ends early.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..errors import BadQuery

MAX_PARTS = 32
MAX_BOUNDARY = 70  # RFC 2046, 5.1.1


@dataclass(kw_only=True, slots=True)
class Part:
    """One part of an upload."""

    name: str = ""
    pieces: list[bytes] = field(default_factory=list)
    headers: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    def text(self) -> str:
        """The part as text. Raises BadQuery if it is not UTF-8."""
        try:
            return self.data.decode()
        except UnicodeDecodeError as error:
            raise BadQuery(self.name, f"is not UTF-8: {error.reason}", status=400) from None


def read_form(body: bytes, content_type: str) -> dict[str, Part]:
    """The parts of an upload by name.

    Raises:
        BadQuery: 400 for a malformed body, 422 for too many parts or two of one name.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY:
        reason = f"must name a boundary of 1 to {MAX_BOUNDARY} bytes, got {len(boundary)}"
        raise BadQuery("content-type", reason, status=400)
    reader = _Reader(boundary)
    try:
        reader.parser.write(body)
        reader.parser.finalize()
    except FormParserError as error:
        raise BadQuery("body", f"is not multipart/form-data: {error}", status=400) from None
    if not reader.ended:
        raise BadQuery("body", "ends before its last boundary does", status=400)
    parts: dict[str, Part] = {}
    for part in reader.parts:
        if part.name in parts:
            raise BadQuery(part.name[:60], "is given twice")
        parts[part.name] = part
    return parts


class _Reader:
    """Collects the parts from the parser's callbacks."""

    def __init__(self, boundary: bytes) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._name = self._value = b""
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_part_data": lambda data, start, end: self._last.append(data[start:end]),
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_end": self._end,
            },
        )

    @property
    def _last(self) -> list[bytes]:
        return self.parts[-1].pieces

    def _begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise BadQuery("body", f"has more than {MAX_PARTS} parts")
        self.parts.append(Part())

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self.parts[-1].headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        part = self.parts[-1]
        header = part.headers.get(b"content-disposition", b"")
        disposition, options = parse_options_header(header)
        name = options.get(b"name")
        if disposition != b"form-data" or not name:
            reason = f"part {len(self.parts)} has no `content-disposition: form-data` with a name"
            raise BadQuery("body", reason, status=400)
        part.name = name.decode("utf-8", "backslashreplace")
        encoding = part.headers.get(b"content-transfer-encoding", b"binary").strip().lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            shown = encoding[:60].decode("latin-1")
            raise BadQuery(part.name, f"must not be encoded, got {shown!r}", status=400)

    def _end(self) -> None:
        self.ended = True
