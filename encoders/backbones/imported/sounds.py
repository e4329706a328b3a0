"""Networks of `transformers` for sounds alone: AST, and those on the waveform such as Wav2Vec2.

Shapes: B sounds, N samples of the waveform, T frames, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...config import EncoderConfig, Limits
from ...errors import CheckpointError
from ...types import Cost
from ..audio import decode_exact, prepared_audio
from ..audio_towers import SHORTEST_S, described
from ..base import Array, Encoder, Features, joined
from ..hf import folder_of
from ..sub_batches import one_thread
from .networks import Blueprint, blocks_of, keep_parts, measured, preprocessor, pretrained

SECONDS = 30.0
"""Of a longer sound the beginning is heard: the attention of these networks is quadratic."""


class SoundNetwork(Encoder):
    """A network for sounds alone behind the checkpoint's own feature extractor: its pooler's
    output; without a pooler the mean of its last states.

    Every sound is computed as if it was alone: those of one length together, others one after the
    other. In a batch with padding some of these networks give other vectors.

    Options:
        seconds: longer sounds are cut.

    `source` is a hub name or a local folder with `preprocessor_config.json`.
    """

    modality = "audio"
    part: ClassVar[str | None] = None
    """Where a larger model has this one."""
    parts: ClassVar[Sequence[str]] = ()
    """Of a joint model: the parts that are kept."""

    def __init__(
        self, net: nn.Module, blueprint: Blueprint, folder: Path, *, seconds: float = SECONDS
    ) -> None:
        super().__init__()
        self.net, self.blueprint, self.seconds = net, blueprint, seconds
        self.extractor = preprocessor("feature extractor", folder)
        self.rate = int(self.extractor.sampling_rate)
        self.settings = {
            "extractor": described(self.extractor),
            "scale": "float32",
            "seconds": seconds,
        }
        self.width = blueprint.width

    @classmethod
    def create(cls, config: EncoderConfig) -> Self:
        """The network and the extractor at `config.source`.

        Raises:
            CheckpointError: nothing there, a weight is missing, or there is no extractor.
        """
        if config.source is None:
            raise CheckpointError(f"a {config.kind} needs a source")
        folder = folder_of(config.source)
        net, blueprint = pretrained(folder, cls.part)
        encoder = cls(keep_parts(net, cls.parts), blueprint, folder, **config.options)
        silence = encoder.extracted(np.zeros(encoder.rate, dtype=np.float32))
        with torch.no_grad():
            width, _ = measured(encoder(*encoder.collate([silence])))
        return cls(net, replace(blueprint, width=width), folder, **config.options)

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> Self:
        blueprint = Blueprint.at(assets)
        net = keep_parts(blueprint.make(), cls.parts)
        return cls(net, blueprint, assets, **config.options)

    def save_assets(self, folder: Path) -> None:
        self.blueprint.write(folder)
        self.extractor.save_pretrained(folder)

    def trainable_blocks(self) -> list[nn.Module]:
        return blocks_of(self.net)

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        wave_N, cost = prepared_audio(value, self.rate, self.seconds, limits, decode_exact)
        return self.extracted(wave_N), cost

    def extracted(self, wave_N: Array) -> Array:
        """What the extractor makes of one sound, float32[N], or float32[T, M] where that is
        frames. A sound too short for a frame gets silence behind it."""
        missing = max(0, int(SHORTEST_S * self.rate) - len(wave_N))
        with torch.inference_mode(), one_thread():
            batch = self.extractor(
                np.pad(wave_N, (0, missing)), sampling_rate=self.rate, return_tensors="np"
            )
        name = self.extractor.model_input_names[0]
        array: Array = np.asarray(batch[name][0], dtype=np.float32)
        return array

    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        longest = max(len(one) for one in inputs)
        padded_BN = torch.zeros(len(inputs), longest, *inputs[0].shape[1:])
        for row, one in enumerate(inputs):
            padded_BN[row, : len(one)] = torch.from_numpy(one)
        return padded_BN, torch.tensor([len(one) for one in inputs])

    def size(self, value: Array) -> int:
        return len(value) if value.ndim == 1 else int(self.seconds * self.rate)

    @property
    def budget(self) -> int:
        return int(4 * self.seconds * self.rate)

    def forward(self, *batch: Tensor) -> Features:
        padded_BN, lengths_B = batch
        rows: list[tuple[Tensor, Tensor]] = []
        for length in lengths_B.unique().tolist():
            (own_R,) = torch.where(lengths_B == length)
            rows.append((own_R, self.hear(padded_BN[own_R, :length])))
        order_B = torch.cat([own_R for own_R, _ in rows]).argsort()
        return Features(pooled_BF=joined(torch.cat([pooled for _, pooled in rows])[order_B]))

    def hear(self, sounds_BN: Tensor) -> Tensor:
        """The vectors of sounds of one length, float32[B, F]."""
        out = self.net(sounds_BN)
        pooled: Tensor | None = getattr(out, "pooler_output", None)
        if pooled is not None:
            return pooled
        states_BTF: Tensor = out.last_hidden_state
        return states_BTF.mean(1)
