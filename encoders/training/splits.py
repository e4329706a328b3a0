"""The splits train, validation and judge: by a hash of the id, with equal contents in one split.

Records are of one group if they have the same `group`, the same caption (but for case, punctuation
and spaces), or the same bytes of a picture or a sound; and so are those that a third one connects.
A group is where its first id belongs. What many records have in common (a caption that names a
kind of thing, a picture that stands for a missing one) says nothing about one of them and groups
none: see `common`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256

from ..model.learnt import Learnt
from ..types import MEDIA, Sample

ENDS = {"train": 0.8, "validation": 0.9, "judge": 1.0}

Marks = dict[str, tuple[int | None, tuple[int, ...]]]
"""Id to the hash of its `group`, if it has one, and those of its contents."""


def split(sample_id: str, judge: bool = True) -> str:
    """ "train" (80 %), "validation" (10 %) or "judge" (10 %), by the id's sha256: always the same.

    Weights are trained on the first; decisions are fitted on the second; the third is used only to
    compare versions. Without `judge`, its tenth belongs to "train".
    """
    share = int(sha256(sample_id.encode()).hexdigest()[:8], 16) / 2**32
    name = next(name for name, end in ENDS.items() if share < end)
    return "train" if name == "judge" and not judge else name


def marks_of(samples: Iterable[Sample]) -> Marks:
    """The hashes of each sample; of a repeated id those of the last."""
    return {
        sample.id: (
            None if sample.group is None else _hash("group", sample.group.encode()),
            tuple(_contents(sample)),
        )
        for sample in samples
    }


def common(records: int) -> int:
    """A content of more than so many of the records groups none: a hundredth of them. So contents
    group none of less than 200 records, on which there is no verdict either."""
    return max(1, records // 100)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The splits of a window.

    Attributes:
        of: id to "train", "validation" or "judge".
        keys: id to the hashes by which the record is known again: of its id, of its group and of
            its contents, if they are not common.
    """

    of: Mapping[str, str]
    keys: Mapping[str, tuple[int, ...]]

    @classmethod
    def among(cls, marks: Marks, judge: bool = True) -> Splits:
        """The splits of all records of a window, in any order."""
        counts = Counter(key for _, contents in marks.values() for key in contents)
        most = common(len(marks))
        links = {
            id_: (*([] if group is None else [group]), *(k for k in contents if counts[k] <= most))
            for id_, (group, contents) in marks.items()
        }
        leader = {id_: id_ for id_ in links}

        def root(id_: str) -> str:
            while leader[id_] != id_:
                leader[id_] = id_ = leader[leader[id_]]
            return id_

        first: dict[int, str] = {}
        for id_ in sorted(links):  # so that the first id of a group leads it
            for key in links[id_]:
                one, other = sorted((root(first.setdefault(key, id_)), root(id_)))
                leader[other] = one
        return cls(
            of={id_: split(root(id_), judge) for id_ in links},
            keys={id_: (_hash("id", id_.encode()), *some) for id_, some in links.items()},
        )

    def learnt(self, id_: str, by: Iterable[Learnt]) -> bool:
        """Whether one of `by` has learnt the record, its group or one of its contents."""
        return any(key in one for one in by for key in self.keys[id_])


def records_of(samples: Sequence[Sample], name: str, most: int | None = None) -> list[Sample]:
    """One split of `samples`, the last of a repeated id; at most `most`, chosen by hash."""
    return by_hash(_in_split(samples, Splits.among(marks_of(samples)), name), most)


def unlearnt_records(
    samples: Sequence[Sample], learnt: Sequence[Learnt], *, name: str | None = "judge"
) -> tuple[list[Sample], int]:
    """A split without what is in `learnt`; and how many records of it that leaves out.

    Args:
        name: of the split; None: all.
    """
    splits = Splits.among(marks_of(samples))
    held = _in_split(samples, splits, name)
    kept = [sample for sample in held if not splits.learnt(sample.id, learnt)]
    return by_hash(kept, None), len(held) - len(kept)


def by_hash(samples: Sequence[Sample], most: int | None) -> list[Sample]:
    """At most `most` of the samples, those with the lowest hashes of their ids; sorted by id."""
    first = sorted(samples, key=lambda one: sha256(one.id.encode()).hexdigest())[:most]
    return sorted(first, key=lambda one: one.id)


def _in_split(samples: Iterable[Sample], splits: Splits, name: str | None) -> list[Sample]:
    return list({one.id: one for one in samples if name in (None, splits.of[one.id])}.values())


def _contents(sample: Sample) -> Iterable[int]:
    if sample.text is not None and (words := re.findall(r"\w+", sample.text.casefold())):
        yield _hash("text", " ".join(words).encode())
    for name in MEDIA:
        content = getattr(sample, name)
        if content is not None:
            yield _hash(name, content)


def _hash(kind: str, content: bytes) -> int:
    digest = blake2b(content, digest_size=8, person=kind.encode()).digest()
    return int.from_bytes(digest, "little")
