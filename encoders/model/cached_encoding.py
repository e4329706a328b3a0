"""Encodes what is not in the feature cache, and adds it there.

Equal inputs of one batch are encoded once. A row of the cache has the tokens that are real: fusion
masks the others, and does not depend on their places.

Shapes: B samples, N of them new, T tokens, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..backbones.base import Array, Encoder, Features, uploaded
from ..backbones.sub_batches import encode_each
from ..feature_cache import FeatureCache, Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The inputs of one encoder.

    Attributes:
        keys: of each input in the cache.
        rows: the sample of each input.
    """

    modality: str
    encoder: Encoder
    inputs: Sequence[Array]
    keys: Sequence[bytes]
    rows: Sequence[int]


class CachedEncoding:
    """One batch through the cache.

    Attributes:
        features: of each job, one row for each input.
        whole: of each sample, whether no encoder ran for it.

    Args:
        count: samples in the batch.
        tokens: also give the tokens and their mask.
    """

    def __init__(
        self,
        cache: FeatureCache,
        jobs: Sequence[Job],
        device: torch.device,
        *,
        count: int,
        tokens: bool,
    ) -> None:
        self._cache, self._device = cache, device
        self._jobs, self._tokens = jobs, tokens
        cached = [
            cache.get(job.modality, job.keys, job.encoder.width, self._token_width(job))
            for job in jobs
        ]
        self.whole = [True] * count
        for job, rows in zip(jobs, cached, strict=True):
            for at, row in zip(job.rows, rows, strict=True):
                self.whole[at] &= row is not None
        # Key -> the place of its first input.
        self._new = [_first(job.keys, rows) for job, rows in zip(jobs, cached, strict=True)]
        self._encoded = encode_each(
            [
                (job.encoder, [job.inputs[place] for place in new.values()])
                for job, new in zip(jobs, self._new, strict=True)
            ],
            device,
            tokens=tokens,
        )
        self.features = [
            self._gathered(*one) for one in zip(jobs, cached, self._new, self._encoded, strict=True)
        ]

    def keep(self) -> None:
        """Add what was encoded to the cache. Copies from the device."""
        for job, new, encoded in zip(self._jobs, self._new, self._encoded, strict=True):
            if new:
                parts = _rows(encoded, with_tokens=self._token_width(job) > 0)
                self._cache.put(dict(zip(new, parts, strict=True)))

    def _token_width(self, job: Job) -> int:
        return job.encoder.token_width if self._tokens else 0

    def _gathered(
        self, job: Job, cached: Sequence[Row | None], new: dict[bytes, int], encoded: Features
    ) -> Features:
        """The rows of the cache and of the encoder, in the order of the inputs."""
        if len(new) == len(cached):
            return encoded
        width, token_width = job.encoder.width, self._token_width(job)
        hits = {place: row for place, row in enumerate(cached) if row is not None}
        order = {key: at for at, key in enumerate(new)}
        taken = [(place, order[key]) for place, key in enumerate(job.keys) if cached[place] is None]
        places = self._index([place for place, _ in taken])
        sources = self._index([at for _, at in taken])
        at_hits = self._index(list(hits))
        pooled_BF = torch.empty(len(cached), width, device=self._device)
        pooled_BF[places] = encoded.pooled_BF[sources]
        if hits:
            pooled_BF[at_hits] = self._on_device(np.stack([row[:width] for row in hits.values()]))
        if token_width == 0:
            return Features(pooled_BF=pooled_BF)
        hit_TF = [row[width:].reshape(-1, token_width) for row in hits.values()]
        longest = max([encoded.length, *(len(one) for one in hit_TF)])
        tokens_BTF = torch.zeros(len(cached), longest, token_width, device=self._device)
        mask_BT = torch.zeros(len(cached), longest, dtype=torch.bool, device=self._device)
        if encoded.tokens_BTF is not None:
            tokens_BTF[places, : encoded.length] = encoded.tokens_BTF[sources]
            real_BT = encoded.mask_BT
            mask_BT[places, : encoded.length] = True if real_BT is None else real_BT[sources]
        if hits:
            kept_HTF = np.zeros((len(hits), longest, token_width), np.float32)
            real_HT = np.zeros((len(hits), longest), np.bool_)
            for at, one_TF in enumerate(hit_TF):
                kept_HTF[at, : len(one_TF)], real_HT[at, : len(one_TF)] = one_TF, True
            tokens_BTF[at_hits] = self._on_device(kept_HTF)
            mask_BT[at_hits] = self._on_device(real_HT)
        return Features(pooled_BF=pooled_BF, tokens_BTF=tokens_BTF, mask_BT=mask_BT)

    def _index(self, places: list[int]) -> torch.Tensor:
        return uploaded(torch.tensor(places, dtype=torch.long), self._device)

    def _on_device(self, values: np.ndarray) -> torch.Tensor:
        return uploaded(torch.from_numpy(values), self._device)


def _first(keys: Sequence[bytes], cached: Sequence[Row | None]) -> dict[bytes, int]:
    places: dict[bytes, int] = {}
    for place, (key, row) in enumerate(zip(keys, cached, strict=True)):
        if row is None:
            places.setdefault(key, place)
    return places


def _rows(encoded: Features, *, with_tokens: bool) -> list[Row]:
    """The row of each input, float32[F + n tokens]; none refers to the whole batch."""
    pooled_NF = encoded.pooled_BF.cpu().numpy()
    if not with_tokens or encoded.tokens_BTF is None:
        return [row.copy() for row in pooled_NF]
    tokens_NTF = encoded.tokens_BTF.cpu().numpy()
    if encoded.mask_BT is None:
        real_NT = np.ones(tokens_NTF.shape[:2], np.bool_)
    else:
        real_NT = encoded.mask_BT.cpu().numpy()
    return [
        np.concatenate([pooled, tokens[real].ravel()])
        for pooled, tokens, real in zip(pooled_NF, tokens_NTF, real_NT, strict=True)
    ]
