"""What must be committed: from the messages of `records` and `parts`, by the model's rule.

Each offset of `records` has exactly one outcome: a vector and a prediction, a deletion, or a dead
letter. What the index answers follows from the latest of each id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from braid.encoders.model.null import NullModel, hashed_unit
from braid.encoders.types import Sample
from braid.index.client import Client
from braid.stream.errors import BadRecord
from braid.stream.kafka.client import Message as Read
from braid.stream.kafka.schemas import PROGRESS_KEY, decode_map, decode_record, decode_vector
from tests.chaos.flow import Message
from tests.chaos.worker import PNG
from tests.stream.poison_worker import FAULTS

TOLERANCE = 1e-5
Where = tuple[int, int]  # partition and offset of `records`
Vector = np.ndarray


@dataclass(slots=True)
class Expected:
    """By offset of `records`, and by id what the index holds."""

    vectors: dict[Where, Vector] = field(default_factory=dict)
    deleted: set[Where] = field(default_factory=set)
    dead: dict[Where, str] = field(default_factory=dict)  # the stage
    live: dict[str, Vector] = field(default_factory=dict)


def expected(records: Iterable[Read]) -> Expected:
    """The outcome of each message of `records`, in the order of each partition."""
    model, result = NullModel(16), Expected()
    for message in records:
        at, key = (message.partition, message.offset), (message.key or b"").decode()
        if message.value is None:
            result.deleted.add(at)
            result.live.pop(key, None)
            continue
        try:
            record = decode_record(message.key, message.value, default_ts=message.ts)
        except BadRecord:
            result.dead[at] = "decode"
            continue
        image = record.image.data if record.image is not None else None
        if image is not None and not image.startswith(PNG):
            result.dead[at] = "prepare"
        elif key.partition("-")[0] in (*FAULTS, "nan"):
            result.dead[at] = "encode"
        else:
            sample = Sample(id=record.id, text=record.text, image=image)
            result.vectors[at] = model.encode([model.prepare(sample)])[0].fused
            result.live[key] = result.vectors[at]
    return result


def check_inputs(sent: Sequence[Message], records: Sequence[Read], parts: Sequence[Read]) -> None:
    """`records` holds what was sent, each message once, and the whole record of each part's id."""
    joined: dict[bytes, bytes | None] = {}
    direct: Counter[tuple[bytes | None, bytes | None]] = Counter()
    for message in records:
        if (message.key or b"").startswith(b"p"):
            joined[message.key or b""] = message.value
        else:
            direct[message.key, message.value] += 1
    assert direct == Counter((m.key, m.value) for m in sent if m.topic == "records"), "records"
    # A deletion comes back on `parts`, so that the join forgets the id.
    on_parts = Counter((m.key, m.value) for m in parts if m.value is not None)
    assert on_parts == Counter((m.key, m.value) for m in sent if m.topic == "parts"), "parts"
    whole: dict[bytes, dict[str, object]] = {}
    for one in sent:
        if one.topic == "parts" and one.key.startswith(b"p"):
            whole.setdefault(one.key, {}).update(decode_map(one.value or b""))
    assert joined.keys() == whole.keys(), "ids of parts"
    for id_, fields in whole.items():
        got = decode_record(id_, joined[id_] or b"", default_ts=0)
        assert got.text == fields["text"], id_
        assert got.image is not None, id_
        assert {"data": got.image.data} == fields["image"], id_


def check_outputs(
    due: Expected,
    *,
    vectors: Iterable[Read],
    predictions: Iterable[Read],
    dead: Iterable[Read],
    parts: Sequence[Read],
    names: Mapping[str, str],
) -> None:
    """Exactly one outcome of each offset, and the right one.

    Args:
        names: of the topics.
    """
    seen: Counter[Where] = Counter()
    gone: Counter[Where] = Counter()
    for message in vectors:
        if message.key == PROGRESS_KEY:
            continue
        if message.value is None:
            gone[message.partition, int(dict(message.headers)["source"] or b"")] += 1
            continue
        vector = decode_vector(message.value)
        at = (message.partition, vector.source)
        seen[at] += 1
        assert np.abs(vector.fused - due.vectors[at]).max() < TOLERANCE, at
    _once("vectors", seen, due.vectors)
    _once("deletions", gone, due.deleted)
    sources = (decode_map(message.value or b"")["source"] for message in predictions)
    _once("predictions", Counter((one["partition"], one["offset"]) for one in sources), due.vectors)
    letters: Counter[tuple[str, int, int]] = Counter()
    for message in dead:
        headers = {name: (value or b"").decode() for name, value in message.headers}
        where = (headers["topic"], int(headers["partition"]), int(headers["offset"]))
        letters[where] += 1
        if headers["topic"] == names["records"]:
            assert headers["stage"] == due.dead[where[1:]], where
    bad_parts = {
        (names["parts"], message.partition, message.offset)
        for message in parts
        if (message.key or b"").startswith(b"b")
    }
    _once("dead letters", letters, {(names["records"], *at) for at in due.dead} | bad_parts)


def check_index(client: Client, live: Mapping[str, Vector], queries: Sequence[str]) -> int:
    """Each answer of the index is the oracle's; how many hits were compared."""
    ids = sorted(live)
    rows_RD = np.stack([live[id_] for id_ in ids])
    at = {id_: number for number, id_ in enumerate(ids)}
    checked = 0
    for query in queries:
        scores_R = rows_RD @ hashed_unit(b"text\0" + query.encode(), 16)
        best_K = np.sort(scores_R)[::-1][:10]
        hits = client.search(text=query, k=10).hits
        assert len({hit.id for hit in hits}) == len(hits) == len(best_K), query
        for hit, best in zip(hits, best_K, strict=True):
            assert abs(hit.score - scores_R[at[hit.id]]) < TOLERANCE, hit
            assert abs(hit.score - best) < TOLERANCE, hit
        checked += len(hits)
    assert client.status().records == len(ids)
    return checked


def _once(what: str, got: Counter, due: Iterable[object]) -> None:
    due = set(due)
    missing, extra = due - got.keys(), got.keys() - due
    doubled = {at for at, count in got.items() if count > 1}
    if missing or extra or doubled:
        raise AssertionError(
            f"{what}: {len(missing)} of {len(due)} missing {_few(missing)}, {len(extra)} that must "
            f"not be there {_few(extra)}, {len(doubled)} doubled {_few(doubled)}"
        )


def _few(places: Iterable[object]) -> list[str]:
    return sorted(map(str, places))[:3]
