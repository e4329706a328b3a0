"""Frames made for a batch on the device are those of transformers' feature extractors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from braid.encoders.backbones.audio_frames import ast_frames, whisper_frames

pytestmark = pytest.mark.gpu


def extractor_of(name: str, **settings: Any) -> Any:
    """A feature extractor of transformers, whose import takes seconds in each process that collects
    the tests."""
    import transformers

    return getattr(transformers, name)(**settings)


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def sounds(*lengths: int) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    return [rng.uniform(-0.5, 0.5, length).astype(np.float32) for length in lengths]


def batch(waves: list[Any], behind: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = [len(wave) for wave in waves]
    wave_BN = np.zeros((len(waves), max(lengths) + behind), np.float32)
    for row, wave in enumerate(waves):
        wave_BN[row, : len(wave)] = wave
    return torch.from_numpy(wave_BN), torch.tensor(lengths)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("behind", [0, 1, 333, 5000])
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
def test_ast_frames(rate: int, behind: int, device: str) -> None:
    settings = {
        "sampling_rate": rate,
        "num_mel_bins": 32,
        "max_length": 40,
        "mean": -3.0,
        "std": 2.0,
    }
    window = int(rate * 0.025)
    # one frame, one sample short of the second, two; a little; at its limit; more than is taken
    waves = sounds(
        window,
        window + int(rate * 0.01) - 1,
        window + int(rate * 0.01),
        rate // 5,
        int(rate * 0.415),
        int(rate * 0.6),
    )
    wave_BN, lengths_B = batch(waves, behind)
    for normalize in (True, False):
        extractor = extractor_of("ASTFeatureExtractor", **settings, do_normalize=normalize)
        wanted = extractor(waves, sampling_rate=rate, return_tensors="pt")["input_values"]
        features = ast_frames(wave_BN.to(device), lengths_B.to(device), extractor)
        assert features.device.type == device
        torch.testing.assert_close(features.cpu(), wanted, atol=2e-4, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("behind", [0, 40_000])
@pytest.mark.parametrize("padding", [0.0, 0.25])
def test_whisper_frames(padding: float, behind: int, device: str) -> None:
    extractor = extractor_of(
        "WhisperFeatureExtractor", feature_size=32, chunk_length=1, padding_value=padding
    )
    waves = [*sounds(800, 5000, 16_000, 20_000), np.zeros(2000, np.float32)]
    wave_BN, lengths_B = batch(waves, behind)
    wanted = extractor(waves, sampling_rate=16_000, return_tensors="pt")["input_features"]
    features = whisper_frames(wave_BN.to(device), lengths_B.to(device), extractor)
    assert features.device.type == device
    torch.testing.assert_close(features.cpu(), wanted, atol=2e-4, rtol=0)


def test_whispers_dither_is_added_where_the_extractor_has_it() -> None:
    plain, dithered = (
        extractor_of("WhisperFeatureExtractor", chunk_length=1, dither=d) for d in (0.0, 1e-2)
    )
    wave_BN, lengths_B = batch([np.zeros(8000, np.float32)])
    assert whisper_frames(wave_BN, lengths_B, plain).unique().numel() == 1
    assert whisper_frames(wave_BN, lengths_B, dithered).unique().numel() > 1000
