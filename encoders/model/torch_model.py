"""A loaded version: implements `Model`, `prepare` on the CPU and `encode` on the device.

Shapes: B samples, M modalities, D the shared space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..backbones.base import Array, encode_all, one_thread, uploaded
from ..manifest import Manifest
from ..types import Embedding, Prepared, Sample
from .adapter import Adapter
from .golden import check_golden
from .net import Net, prepare
from .predictions import predict


class TorchModel:
    """A loaded version; implements `braid.encoders.types.Model`.

    Args:
        adapter: applied to its vectors, if it serves in the space of the version before.

    Attributes:
        bf16: whether encoders and fusion run under automatic mixed precision: on a GPU, where the
            version was trained so. Vectors are float32 either way.
    """

    def __init__(
        self, net: Net, manifest: Manifest, device: torch.device, adapter: Adapter | None = None
    ) -> None:
        self.net = net.to(device).eval().requires_grad_(False)
        self.manifest = manifest
        self.device = device
        self.bf16 = device.type == "cuda" and manifest.config.get("precision") == "bf16"
        self.adapter = None if adapter is None else adapter.to(device)
        self.name = manifest.name
        self.space = manifest.space
        self.dim = manifest.dim
        self.modalities = net.modalities
        self.preprocessing = manifest.preprocessing

    def prepare(self, sample: Sample) -> Prepared:
        """See `braid.encoders.types.Model.prepare`."""
        return prepare(self.net, sample, self.net.config.limits, self.preprocessing)

    def served(self, vectors: Tensor) -> Tensor:
        """The net's unit vectors, float[..., D], as served: mapped by the version's adapter, if it
        has one."""
        return vectors if self.adapter is None else self.adapter(vectors)

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        """See `braid.encoders.types.Model.encode`. Sorts by size and runs sub-batches inside."""
        if not prepared:
            return []
        for item in prepared:
            if item.preprocessing != self.preprocessing:
                raise ValueError(f"prepared by {item.preprocessing}, not by {self.preprocessing}")
        has_BM = torch.tensor(
            [[name in item.inputs for name in self.modalities] for item in prepared]
        )
        present_BM = uploaded(has_BM, self.device)
        with torch.inference_mode(), one_thread(self.device.type == "cpu"):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                features = {}
                # Sounds, the last, usually take longest: while a GPU encodes them, the others are
                # collated and their kernels launched.
                for position, name in reversed(list(enumerate(self.modalities))):
                    if not bool(has_BM[:, position].any()):
                        continue
                    inputs = [item.inputs[name] for item in prepared if name in item.inputs]
                    features[name] = encode_all(
                        self.net.encoder(name),
                        cast(list[Array], inputs),
                        self.device,
                        tokens=self.net.needs_tokens,
                    )
                unit_BMD, fused_BD = self.net.align(features, present_BM)
            tasks = predict(self.net, features, unit_BMD, fused_BD, present_BM)
            units = self.served(unit_BMD).cpu().numpy()
            fused = self.served(fused_BD).cpu().numpy()
        if not (np.isfinite(fused).all() and np.isfinite(units).all()):
            raise FloatingPointError(f"{self.name} made a vector that is not finite")
        return [
            Embedding(
                id=item.id,
                # Copies: a reference to one vector would keep the whole batch in memory.
                fused=fused[row].copy(),
                by={
                    name: units[row, position].copy()
                    for position, name in enumerate(self.modalities)
                    if name in item.inputs
                },
                tasks=tasks[row],
            )
            for row, item in enumerate(prepared)
        ]

    def check(self) -> None:
        """See `braid.encoders.types.Model.check`."""
        with self.exact():
            check_golden(self)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Inside, everything runs in float32: golden outputs are compared across devices."""
        before, self.bf16 = self.bf16, False
        try:
            yield
        finally:
            self.bf16 = before
