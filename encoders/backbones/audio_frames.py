"""Mel frames of AST and Whisper for a batch of sounds, computed on the batch's device.

The feature extractors of `transformers` compute the same frames on the CPU, for which a GPU would
have to wait; tests compare the two.

Shapes: B sounds, N samples, T frames, M mel bands.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

WINDOW_MS, SHIFT_MS = 25.0, 10.0
"""Kaldi's defaults, as in `kaldi.fbank`."""


def ast_frames(wave_BN: Tensor, lengths_B: Tensor, extractor: Any) -> Tensor:
    """Kaldi's log-mel filter bank (torchaudio's), cut or padded with zeros to `max_length`, then
    normalised; float[B, T, M].

    Kaldi computes each frame independently, so the sounds are concatenated, each starting at the
    start of a frame, and the frames that overlap the following sound are dropped.

    Args:
        wave_BN: float32, -1 to 1, zeros behind each sound.
        lengths_B: samples of each sound.
        extractor: an `ASTFeatureExtractor`.
    """
    from torchaudio.compliance import kaldi

    rate = float(extractor.sampling_rate)
    window, shift = int(rate * WINDOW_MS * 0.001), int(rate * SHIFT_MS * 0.001)
    count = len(wave_BN)
    each = -(-max(wave_BN.shape[1], window) // shift)  # frames that start within a sound's slot
    row_1N = F.pad(wave_BN, (0, each * shift - wave_BN.shape[1])).reshape(1, -1)
    row_1N = F.pad(row_1N, (0, window))  # for the last sound's last frames
    all_TM: Tensor = kaldi.fbank(
        row_1N,
        sample_frequency=rate,
        window_type="hanning",
        num_mel_bins=int(extractor.num_mel_bins),
    )
    frames_BTM = all_TM[: count * each].reshape(count, each, -1)
    real_B = (lengths_B - window).div(shift, rounding_mode="floor") + 1
    real_BT = torch.arange(each, device=wave_BN.device) < real_B[:, None]
    frames_BTM = frames_BTM.masked_fill(~real_BT[:, :, None], 0.0)
    frames_BTM = F.pad(frames_BTM, (0, 0, 0, max(0, int(extractor.max_length) - each)))
    frames_BTM = frames_BTM[:, : int(extractor.max_length)]
    if extractor.do_normalize:
        frames_BTM = (frames_BTM - extractor.mean) / (2 * extractor.std)
    return frames_BTM


def whisper_frames(wave_BN: Tensor, lengths_B: Tensor, extractor: Any) -> Tensor:
    """Whisper's log-mel spectrogram of `n_samples`, padding behind what is shorter; float[B, M, T].

    Powers of a Hann window's transform, in mel bands, as log10, at most 8 below the sound's own
    maximum, over 4 and plus 1 (Radford et al. 2022, arXiv 2212.04356, section 2.2, and their code).

    Args:
        wave_BN: float32, -1 to 1, zeros behind each sound.
        lengths_B: samples of each sound.
        extractor: a `WhisperFeatureExtractor`.
    """
    whole = int(extractor.n_samples)
    wave_BN = F.pad(wave_BN, (0, max(0, whole - wave_BN.shape[1])))[:, :whole]
    if extractor.padding_value:
        real_BN = torch.arange(whole, device=wave_BN.device) < lengths_B[:, None]
        wave_BN = wave_BN.masked_fill(~real_BN, extractor.padding_value)
    if extractor.dither:
        wave_BN = wave_BN + extractor.dither * torch.randn_like(wave_BN)
    window = torch.hann_window(extractor.n_fft, device=wave_BN.device)
    spectrum_BFT = torch.stft(
        wave_BN, extractor.n_fft, extractor.hop_length, window=window, return_complex=True
    )
    power_BFT = spectrum_BFT[:, :, :-1].abs().square()
    bank_FM = torch.as_tensor(extractor.mel_filters, dtype=torch.float32, device=wave_BN.device)
    frames_BMT = (bank_FM.T @ power_BFT).clamp(min=1e-10).log10()
    loudest_B11 = frames_BMT.amax((1, 2), keepdim=True)
    return torch.maximum(frames_BMT, loudest_B11 - 8.0) / 4.0 + 1.0
