"""Sound encoders trained from scratch: a CNN and an RNN over log-mel; resampling, batching.

`braid.encoders.decoding.waves` decodes.

Shapes: B sounds, N samples of the waveform, T frames, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import EncoderConfig, Limits
from ..decoding.isolation import wave
from ..errors import BadInput
from ..types import Cost
from .audio_augment import WaveAugmentation
from .base import Array, Encoder, Features, joined, masked_mean, no_source
from .spectrogram import LogMel, strided
from .sub_batches import one_thread

Decode = Callable[[bytes, int, float, Limits], Array]


def decode_audio(data: bytes, rate: int, seconds: float, limits: Limits) -> Array:
    """A sound file as one channel of int16 at `rate`, its first `seconds` only.

    Raises:
        BadInput: as `braid.encoders.decoding.waves.decode_wave`.
    """
    wave_N, recorded = wave(data, seconds, limits)
    wave_N = _resampled(wave_N, recorded, rate)
    whole_N: Array = np.round(np.clip(wave_N, -1.0, 1.0) * 32767.0).astype(np.int16)
    return whole_N


def decode_exact(data: bytes, rate: int, seconds: float, limits: Limits) -> Array:
    """As `decode_audio`, as float32, without the noise of rounding."""
    wave_N, recorded = wave(data, seconds, limits)
    return _resampled(wave_N, recorded, rate)[: int(seconds * rate)]


def prepared_audio(
    value: Any, rate: int, seconds: float, limits: Limits, decode: Decode = decode_audio
) -> tuple[Array, Cost]:
    """As `decode`, with its cost; also raises BadInput if the value is not bytes."""
    if not isinstance(value, bytes):
        raise BadInput("audio", f"must be bytes, is {type(value).__name__}")
    wave_N = decode(value, rate, seconds, limits)
    return wave_N, Cost(seconds=len(wave_N) / rate)


def _resampled(wave_N: Array, recorded_rate: int, rate: int) -> Array:
    # Rates are rounded to a multiple of 50 (an error of 0.3 % at most): without a common factor,
    # such as for 44,101, the filter would take gigabytes.
    nearest = max(50, round(recorded_rate / 50) * 50)
    if nearest == rate:
        return wave_N
    with torch.inference_mode(), one_thread():
        resampled: Tensor = _resampler(nearest, rate)(torch.from_numpy(wave_N))
        return resampled.numpy()


@lru_cache(maxsize=32)
def _resampler(recorded_rate: int, rate: int) -> nn.Module:
    from torchaudio.transforms import Resample

    resampler: nn.Module = Resample(recorded_rate, rate)
    return resampler


def padded(waves: Sequence[Array], length: int) -> tuple[Tensor, Tensor]:
    """int16[B, length], padded with silence at the end, and the samples of each, int64[B]."""
    wave_BN = np.zeros((len(waves), length), dtype=np.int16)
    for row, wave_N in enumerate(waves):
        wave_BN[row, : len(wave_N)] = wave_N
    return torch.from_numpy(wave_BN), torch.tensor([len(wave_N) for wave_N in waves])


class WaveEncoder(Encoder):
    """Base class of the encoders over log-mel: waveforms, their augmentation, batches.

    Options:
        rate: samples a second that sounds are resampled to.
        seconds: longer sounds are cut.
        mels, window, hop, floor, norm: see `braid.encoders.backbones.spectrogram.LogMel`.
        variation: of the frames while training, see
            `braid.encoders.backbones.spectrogram.SpectrogramAugmentation`.
        noise_db, noise_share, speed, lead, gaps, cut: of the waveform while training, see
            `braid.encoders.backbones.audio_augment.WaveAugmentation`.
    """

    modality = "audio"
    front: type[LogMel] = LogMel
    """Computes the frames of the waveforms."""

    def __init__(
        self,
        rate: int = 16_000,
        seconds: float = 6.0,
        mels: int = 64,
        window: int = 512,
        hop: int = 256,
        floor: float = 0.0,
        norm: str = "sound",
        variation: Mapping[str, Any] | None = None,
        **waves: Any,
    ) -> None:
        super().__init__()
        self.rate, self.seconds, self.window, self.hop = rate, seconds, window, hop
        self.settings = {
            "rate": rate,
            "seconds": seconds,
            "mels": mels,
            "window": window,
            "hop": hop,
            "floor": floor,
            "norm": norm,
            "channels": "mean",
            "scale": "int16",
        }
        self.spectrogram = self.front(
            rate, mels, window, hop, floor=floor, norm=norm, variation=variation
        )
        self.waves = WaveAugmentation(rate=rate, seconds=seconds, **waves)

    @classmethod
    def create(cls, config: EncoderConfig) -> WaveEncoder:
        no_source(config)
        return cls(**config.options)

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> WaveEncoder:
        return cls(**config.options)

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        return prepared_audio(value, self.rate, self.seconds, limits)

    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        # A window of silence follows even the longest sound, so that the last frame of a sound does
        # not depend on its batch.
        return padded(inputs, self.window + max(len(wave_N) for wave_N in inputs))

    @property
    def budget(self) -> int:
        return int(16 * self.seconds * self.rate)

    def vary(self, value: Array, rng: np.random.Generator) -> Array:
        return self.waves(value, rng)


class LogMelCnn(WaveEncoder):
    """Log-mel spectrogram, strided convolutions, pooling by mean and maximum in time.

    Options, beside those of `WaveEncoder`:
        channels: width of the first layer; it doubles at each of `depth` layers, up to `widest`
            times that.
        strides: [bands, frames] of each layer; 2 and 2 everywhere if None.
        dropout: in front of the last map.
    """

    def __init__(
        self,
        *,
        channels: int = 32,
        depth: int = 4,
        widest: int | None = None,
        strides: Sequence[Sequence[int]] | None = None,
        dropout: float = 0.2,
        **wave: Any,
    ) -> None:
        super().__init__(**wave)
        steps = [(int(a), int(b)) for a, b in strides or [(2, 2)] * depth]
        most = widest or 2**depth
        widths = [1, *(channels * min(2**i, most) for i in range(len(steps)))]
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, stride=step, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()
            )
            for (a, b), step in zip(pairwise(widths), steps, strict=True)
        )
        self.dropout = nn.Dropout(dropout)
        bands = int(self.settings["mels"])
        for step in steps:
            bands = -(-bands // step[0])
        self.steps = steps
        self.squeeze = nn.Linear(widths[-1] * bands, 2 * widths[-1])
        self.token_width = self.squeeze.out_features
        self.width = 2 * self.token_width

    def trainable_blocks(self) -> list[nn.Module]:
        return [*self.layers, self.squeeze]

    def forward(self, *batch: Tensor) -> Features:
        mel_BMT, mask_BT = self.spectrogram(*batch)
        x_BCMT = mel_BMT[:, None]
        for layer, step in zip(self.layers, self.steps, strict=True):
            # Padding is set to zero after each layer, so that a sound's features do not depend on
            # the others of its batch.
            mask_BT = strided(mask_BT, step[1:])
            x_BCMT = layer(x_BCMT) * mask_BT[:, None, None].float()
        tokens_BTF = torch.relu(self.squeeze(self.dropout(x_BCMT.flatten(1, 2).transpose(1, 2))))
        longest_BF = tokens_BTF.masked_fill(~mask_BT[:, :, None], 0.0).amax(1)
        pooled_BF = joined(masked_mean(tokens_BTF, mask_BT), longest_BF)
        return Features(pooled_BF=pooled_BF, tokens_BTF=tokens_BTF, mask_BT=mask_BT)


CELLS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class LogMelRnn(WaveEncoder):
    """Log-mel spectrogram, a bidirectional GRU or LSTM, attention pooling over the frames.

    Each frame gets a weight softmax_t(v . tanh(W h_t)); the sound is the weighted mean, beside the
    plain one (Yang et al. 2016, "Hierarchical Attention Networks", equations 5 to 7).

    Options, beside those of `WaveEncoder`:
        cell: "gru" or "lstm"; `hidden`: its width, in each direction; `layers`: how many.
        stack: frames that are concatenated to one step, which shortens the sequence.
    """

    def __init__(
        self,
        *,
        cell: str = "gru",
        hidden: int = 128,
        layers: int = 2,
        stack: int = 2,
        dropout: float = 0.2,
        **wave: Any,
    ) -> None:
        super().__init__(**wave)
        if cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}, is {cell!r}")
        self.stack = stack
        self.rnn = CELLS[cell](
            int(self.settings["mels"]) * stack,
            hidden,
            layers,
            batch_first=True,
            bidirectional=True,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.key, self.query = nn.Linear(2 * hidden, hidden), nn.Linear(hidden, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.token_width = 2 * hidden
        self.width = 2 * self.token_width

    def trainable_blocks(self) -> list[nn.Module]:
        return [self.rnn]

    def forward(self, *batch: Tensor) -> Features:
        mel_BMT, mask_BT = self.spectrogram(*batch)
        missing = -mel_BMT.shape[2] % self.stack
        frames_BTM = nn.functional.pad(mel_BMT, (0, missing)).transpose(1, 2)
        steps_BTF = frames_BTM.reshape(len(mel_BMT), -1, self.stack * mel_BMT.shape[1])
        mask_BT = mask_BT[:, :: self.stack]
        # Packed, so that the backward direction starts at each sound's own end.
        packed = nn.utils.rnn.pack_padded_sequence(
            steps_BTF, mask_BT.sum(1).cpu(), batch_first=True, enforce_sorted=False
        )
        out, _ = self.rnn(packed)
        tokens_BTF, _ = nn.utils.rnn.pad_packed_sequence(
            out, batch_first=True, total_length=mask_BT.shape[1]
        )
        weight_BT = self.query(torch.tanh(self.key(tokens_BTF)))[:, :, 0]
        weight_BT = weight_BT.masked_fill(~mask_BT, float("-inf")).softmax(1)
        looked_BF = torch.einsum("bt,btf->bf", weight_BT, self.dropout(tokens_BTF))
        pooled_BF = joined(looked_BF, masked_mean(tokens_BTF, mask_BT))
        return Features(pooled_BF=pooled_BF, tokens_BTF=tokens_BTF, mask_BT=mask_BT)
