"""The splits train, validation and judge, by a hash of the sample's id."""

from __future__ import annotations

from hashlib import sha256

ENDS = {"train": 0.8, "validation": 0.9, "judge": 1.0}


def split(sample_id: str, judge: bool = True) -> str:
    """ "train" (80 %), "validation" (10 %) or "judge" (10 %), by the id's sha256: always the same.

    Weights are trained on the first; decisions are fitted on the second; the third is used only to
    compare versions. Without `judge`, its tenth belongs to "train".
    """
    share = int(sha256(sample_id.encode()).hexdigest()[:8], 16) / 2**32
    name = next(name for name, end in ENDS.items() if share < end)
    return "train" if name == "judge" and not judge else name
