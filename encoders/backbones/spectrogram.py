"""Log-mel spectrograms on the device, and their augmentation in training.

Shapes: B sounds, N samples of the waveform, M mel bands, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

NORMS = ("sound", "band")


class LogMel(nn.Module):
    """Waveforms to standardised log-mel frames and a mask; independent of padding.

    Args:
        rate: samples a second.
        mels, window, hop: bands; window and step in samples.
        floor: added to the power before the logarithm, as a share of the sound's largest power, so
            that the noise of quieter microphones is equal. 0 adds the absolute 1e-5.
        norm: the mean that is subtracted: "sound", one over bands and frames, or "band", each
            band's own over time, which also removes a microphone's frequency response. Either way
            the standard deviation becomes 1.
        variation: see `SpectrogramAugmentation`; only while training.
        filters: further arguments of torchaudio's `MelSpectrogram`.
    """

    def __init__(
        self,
        rate: int,
        mels: int,
        window: int,
        hop: int,
        *,
        floor: float = 0.0,
        norm: str = "sound",
        variation: Mapping[str, Any] | None = None,
        filters: Mapping[str, Any] | None = None,
    ) -> None:
        from torchaudio.transforms import MelSpectrogram

        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, is {norm!r}")
        self.hop, self.floor, self.norm = hop, floor, norm
        self.mel = MelSpectrogram(
            rate,
            n_fft=window,
            hop_length=hop,
            n_mels=mels,
            center=True,
            power=2.0,
            **(filters or {}),
        )
        self.variation = SpectrogramAugmentation(**(variation or {}))

    def forward(self, wave_BN: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, M, T] and bool[B, T], True where a frame is real.

        Args:
            wave_BN: int16, padded with zeros by a window or more.
            lengths_B: samples of each.
        """
        with torch.autocast(wave_BN.device.type, enabled=False):
            log_BMT = self._log(self.mel(wave_BN.float() / 32768.0))
            frames_B = 1 + lengths_B // self.hop
            if self.training:
                log_BMT, frames_B = self.variation.warp(log_BMT, frames_B)
            mask_BT = torch.arange(log_BMT.shape[2], device=log_BMT.device) < frames_B[:, None]
            if self.training:
                log_BMT = self.variation.mix_statistics(log_BMT, mask_BT[:, None].float())
            standard_BMT = self._standardised(log_BMT, mask_BT[:, None].float())
            if self.training:
                standard_BMT = self.variation.mask_spans(standard_BMT, frames_B)
        return standard_BMT, mask_BT

    def _log(self, power_BMT: Tensor) -> Tensor:
        if self.floor == 0:
            return torch.log(power_BMT + 1e-5)
        loudest_B11 = power_BMT.amax((1, 2), keepdim=True).clamp(min=1e-10)
        return torch.log(power_BMT / loudest_B11 + self.floor)

    def _standardised(self, log_BMT: Tensor, weight_B1T: Tensor) -> Tensor:
        """Standardised over each sound's real frames, which removes differences in loudness."""
        frames_B11 = weight_B1T.sum(2, keepdim=True)
        count_B11 = frames_B11 * log_BMT.shape[1]
        if self.norm == "band":
            mean = (log_BMT * weight_B1T).sum(2, keepdim=True) / frames_B11
        else:
            mean = (log_BMT * weight_B1T).sum((1, 2), keepdim=True) / count_B11
        centred_BMT = (log_BMT - mean) * weight_B1T
        spread_B11 = (centred_BMT.square().sum((1, 2), keepdim=True) / count_B11).sqrt()
        return centred_BMT / (spread_B11 + 1e-3)


class SpectrogramAugmentation:
    """Augmentation of frames: pitch, tempo, tilt, masks, mixed statistics. All off by default.

    Args:
        pitch: the bands are stretched by e^u, u uniform in +-pitch: another vocal tract (vocal
            tract length perturbation, Jaitly and Hinton 2013).
        tempo: the frames likewise: slower or faster speech.
        tilt: a smooth random curve over the bands of this standard deviation (in nepers of power)
            is added: another microphone.
        masks: the number of spans of bands and of frames (up to a fifth each) that are masked
            (SpecAugment, Park et al. 2019, arXiv 1904.08779).
        mix: this share of the sounds gets, band by band, a mean and a spread between its own and
            those of another sound of the batch, which simulates other speakers and microphones
            (MixStyle, Zhou et al. 2021, arXiv 2104.02008, on bands as Kim et al. 2022, arXiv
            2206.12513).
        mix_alpha: the own part is drawn from Beta(mix_alpha, mix_alpha).
    """

    def __init__(
        self,
        pitch: float = 0.0,
        tempo: float = 0.0,
        tilt: float = 0.0,
        masks: int = 0,
        mix: float = 0.0,
        mix_alpha: float = 0.6,
    ) -> None:
        self.pitch, self.tempo, self.tilt, self.masks = pitch, tempo, tilt, masks
        self.mix, self.mix_alpha = mix, mix_alpha

    def warp(self, log_BMT: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
        """Before standardising: the frames at another pitch, tempo and tilt, and their numbers."""
        batch, bands, frames = log_BMT.shape
        device = log_BMT.device
        if self.pitch > 0 or self.tempo > 0:
            pitch_B1 = torch.exp((torch.rand(batch, 1, device=device) * 2 - 1) * self.pitch)
            tempo_B1 = torch.exp((torch.rand(batch, 1, device=device) * 2 - 1) * self.tempo)
            frames_B = (frames_B * tempo_B1[:, 0]).round().clamp(min=2).long()
            longest = int(frames_B.max())
            row_BM = torch.arange(bands, device=device) * pitch_B1
            column_BT = torch.arange(longest, device=device) / tempo_B1
            grid_BMT2 = torch.stack(
                torch.broadcast_tensors(
                    (2 * column_BT / max(frames - 1, 1) - 1)[:, None],
                    (2 * row_BM / max(bands - 1, 1) - 1)[:, :, None],
                ),
                dim=3,
            )
            log_BMT = F.grid_sample(
                log_BMT[:, None], grid_BMT2, padding_mode="border", align_corners=True
            )[:, 0]
        if self.tilt > 0:
            knots_B15 = torch.randn(batch, 1, 5, device=device) * self.tilt
            curve_B1M = F.interpolate(knots_B15, size=bands, mode="linear", align_corners=True)
            log_BMT = log_BMT + curve_B1M.transpose(1, 2)
        return log_BMT, frames_B

    def mix_statistics(self, log_BMT: Tensor, weight_B1T: Tensor) -> Tensor:
        """Before standardising: the bands' means and spreads drawn towards another sound's."""
        if self.mix <= 0:
            return log_BMT
        batch, device = len(log_BMT), log_BMT.device
        frames_B11 = weight_B1T.sum(2, keepdim=True)
        mean_BM1 = (log_BMT * weight_B1T).sum(2, keepdim=True) / frames_B11
        squares_BMT = ((log_BMT - mean_BM1) * weight_B1T).square()
        spread_BM1 = (squares_BMT.sum(2, keepdim=True) / frames_B11 + 1e-4).sqrt()
        alpha = torch.tensor(self.mix_alpha, device=device)
        own_B = torch.distributions.Beta(alpha, alpha).sample((batch,))
        own_B = torch.where(torch.rand(batch, device=device) < self.mix, own_B, 1.0)
        other_B = torch.randperm(batch, device=device)
        own_B11 = own_B[:, None, None]
        new_mean_BM1 = torch.lerp(mean_BM1[other_B], mean_BM1, own_B11)
        new_spread_BM1 = torch.lerp(spread_BM1[other_B], spread_BM1, own_B11)
        return (log_BMT - mean_BM1) / spread_BM1 * new_spread_BM1 + new_mean_BM1

    def mask_spans(self, standard_BMT: Tensor, frames_B: Tensor) -> Tensor:
        """After standardising: spans become 0, the mean."""
        batch, bands, frames = standard_BMT.shape
        device = standard_BMT.device
        for _ in range(self.masks):
            across_B11 = _spans(torch.full((batch,), bands, device=device), bands)[:, :, None]
            along_B1T = _spans(frames_B, frames)[:, None]
            standard_BMT = standard_BMT.masked_fill(across_B11 | along_B1T, 0.0)
        return standard_BMT


def _spans(sizes_B: Tensor, places: int) -> Tensor:
    """A random span of up to a fifth of each size, bool[B, places]."""
    width_B = (torch.rand(len(sizes_B), device=sizes_B.device) * 0.2 * sizes_B).long()
    start_B = (torch.rand(len(sizes_B), device=sizes_B.device) * (sizes_B - width_B)).long()
    place = torch.arange(places, device=sizes_B.device)
    return (place >= start_B[:, None]) & (place < (start_B + width_B)[:, None])


def strided(mask_BT: Tensor, strides: Sequence[int]) -> Tensor:
    """The mask after convolutions of these strides with "same" padding."""
    for stride in strides:
        mask_BT = mask_BT[:, ::stride]
    return mask_BT
