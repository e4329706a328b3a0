"""A loaded version: implements `Model`, `prepare` on the CPU and `encode` on the device.

Shapes: B samples, M modalities, D the shared space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..backbones.base import Array, Encoder, uploaded
from ..backbones.sub_batches import encode_each, one_thread
from ..feature_cache import FeatureCache, content_digest
from ..manifest import Manifest
from ..types import Embedding, Prepared, Sample, TaskPrediction
from .adapter import Adapter
from .cached_encoding import CachedEncoding, Job
from .golden import check_golden
from .net import Net, prepare
from .predictions import predict

_exact: ContextVar[bool] = ContextVar("exact", default=False)
"""Whether this thread is inside `TorchModel.exact`, where no feature comes from a cache."""


class TorchModel:
    """A loaded version; implements `braid.encoders.types.Model`.

    Args:
        adapter: applied to its vectors, if it serves in the space of the version before.

    Attributes:
        bf16: whether encoders and fusion run under automatic mixed precision: on a GPU, where the
            version was trained so. Vectors are float32 either way.
        cache: of features, see `use`; None: there is none.
        engine: modality to what its encoder runs on, as "openvino bf16"; only where that is not
            torch in float32. See `run_on`.
    """

    def __init__(
        self, net: Net, manifest: Manifest, device: torch.device, adapter: Adapter | None = None
    ) -> None:
        self.net = net.to(device).eval().requires_grad_(False)
        self.manifest = manifest
        self.device = device
        self.bf16 = device.type == "cuda" and manifest.config.get("precision") == "bf16"
        self.adapter = None if adapter is None else adapter.to(device)
        self.engine: Mapping[str, str] = {}
        self._tolerance = 0.0
        self.name = manifest.name
        self.space = manifest.space
        self.dim = manifest.dim
        self.modalities = net.modalities
        self.preprocessing = manifest.preprocessing
        self.cache: FeatureCache | None = None
        self._encoder_keys: dict[str, bytes] = {}  # modality to the first part of its cache keys
        # Two calls on a CPU: a core without work of one takes the next one's sub-batches.
        self.lanes = 2 if device.type == "cpu" else 1

    def prepare(self, sample: Sample) -> Prepared:
        """See `braid.encoders.types.Model.prepare`."""
        prepared = prepare(self.net, sample, self.net.config.limits, self.preprocessing)
        if (cache := self.cache) is None:
            return prepared
        digests = {
            name: content_digest(cast(Array, value)) for name, value in prepared.inputs.items()
        }
        cache.expect([self._encoder_keys[name] + digests[name] for name in digests])
        return replace(prepared, digests=digests)

    def use(self, cache: FeatureCache) -> None:
        """Take features of inputs that were encoded before from `cache`, from here on.

        Before `run_on`, since the keys are of the weights.
        """
        # Two devices, precisions or releases of braid share no features.
        about = f"{version('braid-stream')} {self.device.type} {self.bf16}\n"
        self._encoder_keys = {
            name: sha256((about + encoder).encode()).digest()[:16]
            for name, encoder in self.net.encoder_hashes().items()
        }
        self.cache = cache

    def run_on(self, modality: str, encoder: Encoder, engine: str, tolerance: float) -> None:
        """Encode a modality by a copy of its encoder that runs on an engine.

        Args:
            engine: its name and precision.
            tolerance: of `check`, from here on.
        """
        self.net.encoders[modality] = encoder
        self.engine = {**self.engine, modality: engine}
        self._tolerance = max(self._tolerance, tolerance)
        if (key := self._encoder_keys.get(modality)) is not None:  # no features of torch's
            self._encoder_keys[modality] = sha256(key + engine.encode()).digest()[:16]

    def served(self, vectors: Tensor) -> Tensor:
        """The net's unit vectors, float[..., D], as served: mapped by the version's adapter, if it
        has one."""
        return vectors if self.adapter is None else self.adapter(vectors)

    def encode(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        """See `braid.encoders.types.Model.encode`. Sorts by size and runs sub-batches inside."""
        return self._encode(prepared, with_tasks=True)

    def encode_queries(self, prepared: Sequence[Prepared]) -> list[Embedding]:
        """As `encode`, without predictions."""
        return self._encode(prepared, with_tasks=False)

    def _encode(self, prepared: Sequence[Prepared], *, with_tasks: bool) -> list[Embedding]:
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
                # Sounds, the last, usually take longest: while a GPU encodes them, the others are
                # collated and their kernels launched.
                names = [
                    name
                    for position, name in reversed(list(enumerate(self.modalities)))
                    if bool(has_BM[:, position].any())
                ]
                inputs = [
                    [cast(Array, item.inputs[name]) for item in prepared if name in item.inputs]
                    for name in names
                ]
                cached = self._through_cache(names, inputs, prepared)
                if cached is not None:
                    encoded = cached.features
                else:
                    jobs = list(zip(map(self.net.encoder, names), inputs, strict=True))
                    encoded = encode_each(jobs, self.device, tokens=self.net.needs_tokens)
                features = dict(zip(names, encoded, strict=True))
                unit_BMD, fused_BD = self.net.align(features, present_BM)
            tasks: list[dict[str, TaskPrediction]] = [{} for _ in prepared]
            if with_tasks:
                tasks = predict(self.net, features, unit_BMD, fused_BD, present_BM)
            units = self.served(unit_BMD).cpu().numpy()
            fused = self.served(fused_BD).cpu().numpy()
        if not (np.isfinite(fused).all() and np.isfinite(units).all()):
            raise FloatingPointError(f"{self.name} made a vector that is not finite")
        if cached is not None:
            cached.keep()
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
                cached=cached is not None and cached.whole[row],
                engine={name: on for name, on in self.engine.items() if name in item.inputs},
            )
            for row, item in enumerate(prepared)
        ]

    def _through_cache(
        self, names: Sequence[str], inputs: Sequence[list[Array]], prepared: Sequence[Prepared]
    ) -> CachedEncoding | None:
        """None without a cache, or if something was prepared without one."""
        cache = None if _exact.get() else self.cache
        if cache is None or not all(item.digests for item in prepared):
            return None
        jobs = [
            Job(
                modality=name,
                encoder=self.net.encoder(name),
                inputs=values,
                keys=[
                    self._encoder_keys[name] + item.digests[name]
                    for item in prepared
                    if name in item.inputs
                ],
                rows=[row for row, item in enumerate(prepared) if name in item.inputs],
            )
            for name, values in zip(names, inputs, strict=True)
        ]
        return CachedEncoding(
            cache, jobs, self.device, count=len(prepared), tokens=self.net.needs_tokens
        )

    def check(self) -> None:
        """See `braid.encoders.types.Model.check`."""
        with self.exact():
            check_golden(self, self._tolerance)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Inside, all is computed, in float32: golden outputs are compared across devices."""
        before, self.bf16 = self.bf16, False
        token = _exact.set(True)
        try:
            yield
        finally:
            _exact.reset(token)
            self.bf16 = before
