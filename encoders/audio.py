"""The sound encoder: a CNN over log-mel, trained from scratch.

Shapes: B sounds, N samples of the waveform, T frames, F features.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from encoders.base import Array, Encoder, Features, joined, one_thread
from encoders.config import EncoderConfig, Limits
from encoders.errors import BadInput
from encoders.text import masked_mean
from encoders.types import Cost

RATES = (1_000, 384_000)
"""Sampling rates that are taken for real; a header that says otherwise is lying or broken."""
CHANNELS = 32
_BLOCK = 65_536  # frames read at once, so that a header's claims allocate nothing


def decode_audio(data: bytes, rate: int, seconds: float, limits: Limits) -> Array:
    """A sound file as one channel of int16 at `rate`, its first `seconds` only.

    The length is read from the header and refused before any sample is decoded.

    Raises:
        BadInput: not a sound that libsndfile reads, too long, empty, not finite, or broken.
    """
    import soundfile

    limit = limits.audio_seconds
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            found, frames, channels = int(sound.samplerate), int(sound.frames), int(sound.channels)
            if not RATES[0] <= found <= RATES[1]:
                raise BadInput("audio", f"{found} samples a second, allowed are {RATES}")
            if channels > CHANNELS:
                raise BadInput("audio", f"{channels} channels, the limit is {CHANNELS}")
            if frames > limit * found:
                raise BadInput("audio", f"{frames / found:.1f} s, the limit is {limit:g} s")
            wanted = int(seconds * found)
            blocks: list[Array] = []
            while wanted > 0:
                block_NC = sound.read(min(wanted, _BLOCK), dtype="float32", always_2d=True)
                if len(block_NC) == 0:
                    break
                blocks.append(block_NC.mean(axis=1))
                wanted -= len(block_NC)
    except (soundfile.SoundFileError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput("audio", f"does not decode: {type(error).__name__}: {error}") from error
    if not blocks:
        raise BadInput("audio", "holds no samples")
    wave_N = np.concatenate(blocks)
    if not np.isfinite(wave_N).all():
        raise BadInput("audio", "holds samples that are not finite")
    wave_N = _resampled(np.clip(wave_N, -1.0, 1.0), found, rate)
    whole_N: Array = np.round(np.clip(wave_N, -1.0, 1.0) * 32767.0).astype(np.int16)
    return whole_N


def _resampled(wave_N: Array, found: int, rate: int) -> Array:
    # Rates are taken to the nearest 50 (0.3 % at the worst): the filter of a rate that shares no
    # factor with ours, such as 44,101, would take gigabytes.
    nearest = max(50, round(found / 50) * 50)
    if nearest == rate:
        return wave_N
    with torch.inference_mode(), one_thread():
        resampled: Tensor = _resampler(nearest, rate)(torch.from_numpy(wave_N))
        return resampled.numpy()


@lru_cache(maxsize=32)
def _resampler(found: int, rate: int) -> nn.Module:
    from torchaudio.transforms import Resample

    resampler: nn.Module = Resample(found, rate)
    return resampler


class LogMelCnn(Encoder):
    """Log-mel spectrogram, strided convolutions, attention-free pooling (mean and maximum in time).

    Options:
        rate: samples a second that sounds are resampled to.
        seconds: longer sounds are cut.
        mels, window, hop: the spectrogram's bands and its window and step, in samples.
        channels: width of the first layer; it doubles at each of `depth` layers.
    """

    modality = "audio"

    def __init__(
        self, rate: int = 16_000, seconds: float = 6.0, mels: int = 64, window: int = 512,
        hop: int = 256, channels: int = 32, depth: int = 4, dropout: float = 0.2,
    ) -> None:  # fmt: skip
        from torchaudio.transforms import MelSpectrogram

        super().__init__()
        self.rate, self.seconds, self.window, self.hop = rate, seconds, window, hop
        self.settings = {
            "rate": rate, "seconds": seconds, "mels": mels, "window": window, "hop": hop,
            "channels": "mean", "scale": "int16",
        }  # fmt: skip
        self.mel = MelSpectrogram(
            rate, n_fft=window, hop_length=hop, n_mels=mels, center=True, power=2.0
        )
        widths = [1, *(channels * 2**i for i in range(depth))]
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()
            )
            for a, b in pairwise(widths)
        )
        self.dropout = nn.Dropout(dropout)
        bands = mels
        for _ in range(depth):
            bands = -(-bands // 2)
        self.depth = depth
        self.squeeze = nn.Linear(widths[-1] * bands, 2 * widths[-1])
        self.token_width = self.squeeze.out_features
        self.width = 2 * self.token_width

    @classmethod
    def create(cls, config: EncoderConfig) -> LogMelCnn:
        return cls(**config.options)

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> LogMelCnn:
        return cls(**config.options)

    def trainable_blocks(self) -> list[nn.Module]:
        return [*self.layers, self.squeeze]

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        if not isinstance(value, bytes):
            raise BadInput("audio", f"must be bytes, is {type(value).__name__}")
        wave_N = decode_audio(value, self.rate, self.seconds, limits)
        return wave_N, Cost(seconds=len(wave_N) / self.rate)

    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        # A window of silence follows even the longest, so that the last frame of a sound is the
        # same whatever it is batched with.
        longest = self.window + max(len(wave_N) for wave_N in inputs)
        wave_BN = np.zeros((len(inputs), longest), dtype=np.int16)
        for row, wave_N in enumerate(inputs):
            wave_BN[row, : len(wave_N)] = wave_N
        lengths_B = np.array([len(wave_N) for wave_N in inputs], dtype=np.int64)
        return torch.from_numpy(wave_BN), torch.from_numpy(lengths_B)

    @property
    def budget(self) -> int:
        return int(16 * self.seconds * self.rate)

    def vary(self, value: Array, rng: np.random.Generator) -> Array:
        """Another start, another loudness, another speed (0.85 to 1.15), white noise 8 to 40 dB
        below the sound, and up to two short silences."""
        wave_N: Array = value.astype(np.float64)
        speed = rng.uniform(0.85, 1.15)
        wave_N = np.interp(np.arange(0, len(wave_N) - 1, speed), np.arange(len(wave_N)), wave_N)
        wave_N = np.concatenate([np.zeros(rng.integers(0, self.rate // 4)), wave_N])
        loudness = float(np.sqrt(np.mean(wave_N**2)) + 1.0)
        noise = loudness * 10.0 ** (-rng.uniform(8.0, 40.0) / 20.0)
        wave_N = wave_N * rng.uniform(0.5, 1.2) + rng.normal(0.0, noise, len(wave_N))
        for _ in range(rng.integers(0, 3)):
            start = int(rng.integers(0, max(1, len(wave_N))))
            wave_N[start : start + self.rate // 8] = 0.0
        kept = wave_N[: int(self.seconds * self.rate)]
        return np.clip(kept, -32767, 32767).astype(np.int16)

    def forward(self, *batch: Tensor) -> Features:
        wave_BN, lengths_B = batch
        mel_BMT = torch.log(self.mel(wave_BN.float() / 32768.0) + 1e-5)
        frames_B = 1 + lengths_B // self.hop
        mask_BT = torch.arange(mel_BMT.shape[2], device=mel_BMT.device) < frames_B[:, None]
        # Each sound is standardised over its own real frames: loudness and microphone go.
        weight_B1T = mask_BT[:, None].float()
        count_B11 = weight_B1T.sum(2, keepdim=True) * mel_BMT.shape[1]
        mean_B11 = (mel_BMT * weight_B1T).sum((1, 2), keepdim=True) / count_B11
        centred_BMT = (mel_BMT - mean_B11) * weight_B1T
        spread_B11 = (centred_BMT.square().sum((1, 2), keepdim=True) / count_B11).sqrt()
        x_BCMT = (centred_BMT / (spread_B11 + 1e-3))[:, None]
        for layer in self.layers:
            # Padding is set to zero after each layer, so that a sound's features do not depend on
            # the company it keeps in the batch.
            mask_BT = mask_BT[:, ::2]
            x_BCMT = layer(x_BCMT) * mask_BT[:, None, None].float()
        tokens_BTF = torch.relu(self.squeeze(self.dropout(x_BCMT.flatten(1, 2).transpose(1, 2))))
        longest_BF = tokens_BTF.masked_fill(~mask_BT[:, :, None], 0.0).amax(1)
        pooled_BF = joined(masked_mean(tokens_BTF, mask_BT), longest_BF)
        return Features(pooled_BF=pooled_BF, tokens_BTF=tokens_BTF, mask_BT=mask_BT)
