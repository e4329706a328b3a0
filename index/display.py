"""Hits as HTML, as a notebook shows them.

Texts, ids, meta and labels are of whoever produced the records: all of them are escaped, and
pictures are only shown from data URIs that the client made, so that nothing is loaded and no script
runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from braid.modalities import MODALITIES

from .errors import BraidIndexError

SHOWN = 50  # hits
PICTURES = 20  # thumbnails, each of which is one call
TEXT = 300  # characters of a text, and of meta and the like

ABOUT = ("meta", "labels", "predicted")

Hit = Mapping[str, Any]
Thumbnail = Callable[[str], str | None]


def hits_html(answer: Mapping[str, Any], thumbnail: Thumbnail | None = None) -> str:
    """A table of the first SHOWN hits.

    Args:
        answer: of a search.
        thumbnail: a record's id to the data URI of its picture, or None; asked for the first
            PICTURES hits that hold one.
    """
    hits: Sequence[Hit] = answer["hits"]
    shown = hits[:SHOWN]
    pictures = {} if thumbnail is None else _pictures(shown, thumbnail)
    rows = [_row(hit, pictures.get(hit["id"])) for hit in shown]
    more = f", the first {SHOWN} shown" if len(hits) > SHOWN else ""
    caption = (
        f"{len(hits)} hits{more}; model {answer['model'] or 'none'}, "
        f"generation {answer['generation']}, {answer['took_ms']:.0f} ms"
    )
    head = "".join(f"<th>{name}</th>" for name in ("score", "picture", "id", "text", "about"))
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _pictures(hits: Sequence[Hit], thumbnail: Thumbnail) -> dict[str, str]:
    """Data URIs by id; none after a call that fails, so that no notebook waits for each."""
    pictures: dict[str, str] = {}
    shown = {name for name, modality in MODALITIES.items() if modality.shown == "thumb"}
    for hit in [hit for hit in hits if shown & {*hit["modalities"]}][:PICTURES]:
        try:
            uri = thumbnail(hit["id"])
        except BraidIndexError:
            break
        if uri is not None:
            pictures[hit["id"]] = uri
    return pictures


def _row(hit: Hit, picture: str | None) -> str:
    image = ""
    if picture is not None:
        image = f'<img src="{escape(picture)}" alt="" style="max-height:96px;max-width:128px">'
    lines = "<br>".join(f"{name}: {_short(_packed(hit[name]))}" for name in ABOUT if hit[name])
    cells = (f"{hit['score']:.3f}", image, _short(hit["id"]), _short(hit["text"] or ""), lines)
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _packed(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _short(text: str) -> str:
    """A producer's text, cut and escaped."""
    return escape(text if len(text) <= TEXT else f"{text[: TEXT - 1]}…")
