"""Google's speech embedding: a small CNN pretrained on keyword spotting, read from a package.

Network and training: Lin et al. 2020 (arXiv 2002.01322). The package `openwakeword` ships it as
ONNX, with batch norm folded into all but one layer, and defines its input frames. Here it runs over
a whole sound at once. Two licences claim the weights: see `docs/licences.md`.

Shapes: B sounds, N samples of the waveform, M mel bands, T frames, C channels, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..config import EncoderConfig
from ..errors import CheckpointError
from .audio import WaveEncoder
from .base import Array, Features, channels_last, joined, masked_mean
from .packages import PREFIX, verified_files
from .spectrogram import LogMel

PACKAGE = "openwakeword"
RATE, MELS, WINDOW, HOP = 16_000, 32, 512, 160
WIDTHS = (24, 24, 48, 72, 96, 96)  # of the stem and of the five blocks
POOLS = ((2, 2), (1, 2), (2, 2), (1, 2), (2, 2))  # frames and bands, after each block
FIELD, STRIDE = 76, 8  # frames that one token sees, and from one token to the next
LEVEL = 11.25
"""The level of a sound's loudest band, in bels: that of speech with a peak at a quarter of full
scale, in the weights' training scale (log10 of the int16 samples' power, plus 2)."""
RANGE = 8.0  # bels below the loudest; anything quieter is silence
LOW_HZ, HIGH_HZ = 60.0, 3800.0
FILTERS = {
    "win_length": 400,
    "f_min": LOW_HZ,
    "f_max": HIGH_HZ,
    "norm": "slaney",
    "mel_scale": "slaney",
}
OWN = {"rate": RATE, "mels": MELS, "window": WINDOW, "hop": HOP, "floor": 0.0, "norm": "sound"}


class SpeechMel(LogMel):
    """25 ms every 10 ms in 32 bands from 60 to 3,800 Hz, in bels, the loudest at `LEVEL`."""

    def __init__(self, *sizes: int, **more: Any) -> None:
        super().__init__(*sizes, filters=FILTERS, **more)

    def _log(self, power_BMT: Tensor) -> Tensor:
        loudest_B11 = power_BMT.amax((1, 2), keepdim=True).clamp(min=1e-10)
        return torch.log10((power_BMT / loudest_B11).clamp(min=10.0**-RANGE))

    def _standardised(self, log_BMT: Tensor, weight_B1T: Tensor) -> Tensor:
        return log_BMT + LEVEL


class AxisConv(nn.Module):
    """A convolution along one axis, and a leaky ReLU that gives at least -0.4."""

    def __init__(self, inside: int, outside: int, *, along_time: bool) -> None:
        super().__init__()
        # Along the bands the edges are padded, along time they are not: a token sees no more than
        # its own frames.
        kernel, padding = ((3, 1), (0, 0)) if along_time else ((1, 3), (0, 1))
        self.conv = nn.Conv2d(inside, outside, kernel, padding=padding)

    def forward(self, x_BCTM: Tensor) -> Tensor:
        return squashed(self.conv(x_BCTM))


def squashed(x_BCTM: Tensor) -> Tensor:
    return F.leaky_relu(x_BCTM, 0.2).clamp(min=-0.4)


class SpeechEmbedding(WaveEncoder):
    """Speech to tokens of 0.76 s, one every 80 ms; pooled by mean, maximum and spread in time.

    A sound is padded with half a token's silence at either end, so that its first and last sample
    are in the middle of a token too. Options are those of `WaveEncoder`. The weights fix those in
    `OWN`; other values are an error.
    """

    front = SpeechMel

    def __init__(self, **wave: Any) -> None:
        for name in OWN.keys() & wave.keys():
            if wave[name] != OWN[name]:
                raise CheckpointError(
                    f"{name} is {wave[name]!r} in the options, {OWN[name]!r} in the weights"
                )
        super().__init__(**{**wave, **OWN})
        self.settings = {
            **self.settings,
            "norm": "loudest",
            "level": LEVEL,
            "range": RANGE,
            "mel": "slaney",
            "hz": [LOW_HZ, HIGH_HZ],
        }
        self.stem = nn.Conv2d(1, WIDTHS[0], 3, padding=(0, 1), bias=False)
        self.scale = nn.Parameter(torch.ones(WIDTHS[0], 1, 1))
        self.shift = nn.Parameter(torch.zeros(WIDTHS[0], 1, 1))
        halves: list[nn.Module] = [
            AxisConv(WIDTHS[0], WIDTHS[0], along_time=False),
            AxisConv(WIDTHS[0], WIDTHS[0], along_time=True),
        ]
        self.layers = nn.ModuleList([nn.Sequential(*halves)])
        for inside, outside in pairwise(WIDTHS[1:]):
            self.layers.append(
                nn.Sequential(
                    AxisConv(inside, outside, along_time=False),
                    AxisConv(outside, outside, along_time=True),
                    AxisConv(outside, outside, along_time=False),
                    AxisConv(outside, outside, along_time=True),
                )
            )
        self.last = nn.Conv2d(WIDTHS[-1], WIDTHS[-1], (3, 1), bias=False)
        self.token_width = WIDTHS[-1]
        self.width = 3 * self.token_width
        for module in (
            self.modules()
        ):  # with torch's default, activations of a network this deep would vanish
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.2)
        # Half as fast again on a CPU.
        self.register_load_state_dict_post_hook(channels_last)

    @classmethod
    def create(cls, config: EncoderConfig) -> SpeechEmbedding:
        """From the package `openwakeword` (`source` "package:openwakeword"), from an ONNX file of
        the same layout, or random weights if `source` is None.

        Raises:
            CheckpointError: no such package or file, or another network is in it.
        """
        encoder = cls(**config.options)
        if config.source is not None:
            weights = read(weights_file(config.source), encoder)
            encoder.load_state_dict(weights, strict=False)  # all but the mel filters
        channels_last(encoder)
        return encoder

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> SpeechEmbedding:
        return cls(**config.options)

    def trainable_blocks(self) -> list[nn.Module]:
        return [*self.layers, self.last]

    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        silence = np.zeros(FIELD // 2 * HOP, dtype=np.int16)
        return super().collate([np.concatenate([silence, wave, silence]) for wave in inputs])

    def forward(self, *batch: Tensor) -> Features:
        mel_BMT, mask_BT = self.spectrogram(*batch)
        # A sound that training made shorter than one token still is one, silence behind it.
        short = max(0, FIELD - mel_BMT.shape[2])
        mel_BMT = F.pad(mel_BMT, (0, short), value=LEVEL - RANGE)
        x_BCTM = mel_BMT.transpose(1, 2)[:, None].contiguous(memory_format=torch.channels_last)
        x_BCTM = torch.relu(self.stem(x_BCTM))
        x_BCTM = squashed(x_BCTM * self.scale + self.shift)
        for layer, pool in zip(self.layers, POOLS, strict=True):
            x_BCTM = F.max_pool2d(layer(x_BCTM), pool)
        tokens_BTF = self.last(x_BCTM)[:, :, :, 0].transpose(1, 2)
        # A token is real if all frames that it sees are.
        mask_BT = F.pad(mask_BT, (0, short))[:, FIELD - 1 :: STRIDE][:, : tokens_BTF.shape[1]]
        mask_BT[:, 0] = True
        mean_BF = masked_mean(tokens_BTF, mask_BT)
        real_BT1 = mask_BT[:, :, None]
        longest_BF = tokens_BTF.masked_fill(~real_BT1, float("-inf")).amax(1)
        away_BTF = (tokens_BTF - mean_BF[:, None]).square()
        spread_BF = (masked_mean(away_BTF, mask_BT) + 1e-6).sqrt()
        pooled_BF = joined(mean_BF, longest_BF, spread_BF)
        return Features(pooled_BF=pooled_BF, tokens_BTF=tokens_BTF, mask_BT=mask_BT)


def weights_file(source: str) -> Path:
    """The ONNX file of a source. Raises CheckpointError."""
    if not source.startswith(PREFIX):
        return Path(source)
    package = source.removeprefix(PREFIX)
    if package != PACKAGE:
        raise CheckpointError(f"source: {package!r} holds no speech embedding; {PACKAGE!r} does")
    (file,) = verified_files(package)
    return file


def read(path: Path, encoder: SpeechEmbedding) -> dict[str, Tensor]:
    """The weights of an ONNX file under this module's names, layer by layer in the file's order.

    Raises:
        CheckpointError: no such file, or it holds another network.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper
    except ImportError as error:
        raise CheckpointError("install 'onnx' (extra [demo])") from error
    try:
        graph = onnx.load(str(path)).graph
    except (OSError, DecodeError) as error:
        raise CheckpointError(f"no speech embedding at {path}: {error}") from error
    arrays = {
        one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer
    }
    conv_weights = [
        [arrays[name] for name in node.input[1:] if name in arrays]
        for node in graph.node
        if node.op_type == "Conv"
    ]
    norms = [node for node in graph.node if node.op_type == "BatchNormalization"]
    convs = {
        name: module for name, module in encoder.named_modules() if isinstance(module, nn.Conv2d)
    }
    shapes = [[item.shape for item in conv.parameters()] for conv in convs.values()]
    if [[one.shape for one in weights] for weights in conv_weights] != shapes or len(norms) != 1:
        raise CheckpointError(f"{path} holds another network than the speech embedding")
    gain, bias, mean, variance = (arrays[name] for name in norms[0].input[1:])
    epsilon = next(item.f for item in norms[0].attribute if item.name == "epsilon")
    gain = gain * (variance + epsilon).rsqrt()
    result = {"scale": gain[:, None, None], "shift": (bias - mean * gain)[:, None, None]}
    for name, weights in zip(convs, conv_weights, strict=True):
        for leaf, value in zip(("weight", "bias"), weights, strict=False):
            result[f"{name}.{leaf}"] = value
    return result
