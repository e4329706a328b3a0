"""Sound encoders from `transformers`: AST, Whisper's encoder, CLAP's audio tower.

A checkpoint's `preprocessor_config.json` sets the sampling rate, mel settings and normalisation.
They become part of the version and of its preprocessing hash, and an option that contradicts them
is an error. The mel frames are those of transformers' feature extractor, on which the weights were
trained: for AST and Whisper computed on the device (`braid.encoders.backbones.audio_frames`), for
CLAP by the extractor.

Shapes: B sounds, N samples of the waveform, M mel bands, T tokens, F features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import EncoderConfig, Limits
from ..errors import CheckpointError
from ..types import Cost
from .audio import decode_exact, padded, prepared_audio
from .audio_augment import WaveAugmentation
from .audio_frames import ast_frames, whisper_frames
from .base import Array, Encoder, Features, joined, masked_mean
from .hf import locate, make, read

CONFIG, EXTRACTOR = "config.json", "preprocessor_config.json"
SHORTEST_S = 0.05
"""Shorter sounds are padded with silence to this length, at least a spectrogram's window."""
DERIVED = frozenset({"mel_filters", "mel_filters_slaney", "window", "processor_class"})


@dataclass(frozen=True, kw_only=True)
class Tower:
    """The differences between the three models.

    Attributes:
        config, model, extractor: names of the classes in `transformers`.
        whole: (model type, class, attribute) of the model that has this one as an attribute, where
            checkpoints hold that.
        extractor_for: settings of the extractor that a random network of this configuration takes.
        run: (network, extracted, samples of each) to the last states float[B, T, F] and the mask of
            those that are real.
        blocks: the network's blocks from input to output.
        longest_s: the longest sound that the extractor takes, in seconds.
        frames: (waveforms float32[B, N], samples of each, extractor) to what the extractor makes of
            them, on their device; None: the extractor does.
    """

    config: str
    model: str
    extractor: str
    extractor_for: Callable[[Any], dict[str, Any]]
    run: Callable[[nn.Module, Tensor, Tensor, Any], tuple[Tensor, Tensor]]
    blocks: Callable[[nn.Module], Sequence[nn.Module]]
    longest_s: Callable[[Any], float]
    frames: Callable[[Tensor, Tensor, Any], Tensor] | None = None
    whole: tuple[str, str, str] = ("", "", "")

    def read(self, source: str) -> tuple[nn.Module, Any]:
        """The network and the extractor at `source`. Raises CheckpointError."""
        import transformers

        place, local = locate(source)
        try:
            extractor = getattr(transformers, self.extractor).from_pretrained(
                place, local_files_only=local
            )
            config = transformers.AutoConfig.from_pretrained(place, local_files_only=local)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"no {self.config} at {source!r}: {error}") from error
        kind, model, attribute = self.whole
        if config.model_type == kind:
            return getattr(read(model, source), attribute), extractor
        return read(self.model, source), extractor


class AudioTower(Encoder):
    """A sound encoder in the layout of `transformers`.

    `pooled_BF` is the mean of the states over the real tokens.

    Options:
        config: fields of the transformers configuration, for random weights (no source).
        extractor: settings of the feature extractor; with a source they must agree with it.
        seconds: longer sounds are cut; at most, and by default, what the tower takes.
        noise_db, noise_share, speed, lead, gaps, cut: of the waveform while training, see
            `braid.encoders.backbones.audio_augment.WaveAugmentation`. Without any of them the
            waveform stays as it is.

    `source` is a hub name or a local folder (then nothing is looked up on the network).
    """

    modality = "audio"
    tower: Tower

    def __init__(
        self, net: nn.Module, extractor: Any, seconds: float | None = None, **waves: Any
    ) -> None:
        super().__init__()
        self.net, self.extractor = net, extractor
        self.rate = int(extractor.sampling_rate)
        self.shortest = int(SHORTEST_S * self.rate)
        side = getattr(extractor, "padding_side", "right")
        if side != "right":  # masks are counted from the left
            raise CheckpointError(f"extractor.padding_side must be 'right', is {side!r}")
        longest = self.tower.longest_s(extractor)
        if seconds is not None and not 0 < seconds <= longest:
            raise CheckpointError(f"seconds must be above 0 and at most {longest:g}, is {seconds}")
        self.seconds = float(seconds or longest)
        self.waves = (
            WaveAugmentation(rate=self.rate, seconds=self.seconds, **waves) if waves else None
        )
        self.settings = {"extractor": described(extractor), "seconds": self.seconds}
        config: Any = net.config
        self.token_width = int(config.hidden_size)
        self.width = self.token_width

    @classmethod
    def create(cls, config: EncoderConfig) -> AudioTower:
        """Weights and extractor from `config.source`; random ones from `options["config"]`.

        Raises:
            CheckpointError: nothing usable there, or an option that contradicts it.
        """
        import transformers

        options = dict(config.options)
        fields, extractor_options = options.pop("config", {}), options.pop("extractor", {})
        extractor_class = getattr(transformers, cls.tower.extractor)
        if config.source is None:
            tower_config = getattr(transformers, cls.tower.config)(**fields)
            extractor_settings = {**cls.tower.extractor_for(tower_config), **extractor_options}
            net = make(cls.tower.model, tower_config)
            return cls(net, extractor_class(**extractor_settings), **options)
        net, extractor = cls.tower.read(config.source)
        for part, asked, stored in (
            ("extractor", extractor_options, extractor),
            ("config", fields, net.config),
        ):
            for name, value in asked.items():
                if (actual := getattr(stored, name, None)) != value:
                    raise CheckpointError(
                        f"{part}.{name} is {value!r} in the options, "
                        f"{actual!r} in {config.source!r}"
                    )
        return cls(net, extractor, **options)

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> AudioTower:
        import transformers

        fields = json.loads((assets / CONFIG).read_text(encoding="utf-8"))
        extractor = json.loads((assets / EXTRACTOR).read_text(encoding="utf-8"))
        net = make(cls.tower.model, getattr(transformers, cls.tower.config)(**fields))
        kept = {k: v for k, v in config.options.items() if k not in ("config", "extractor")}
        return cls(net, getattr(transformers, cls.tower.extractor)(**extractor), **kept)

    def save_assets(self, folder: Path) -> None:
        fields = json.loads(self.net.config.to_json_string(use_diff=True))  # type: ignore[union-attr,operator]
        (folder / CONFIG).write_text(json.dumps(fields, indent=1), encoding="utf-8")
        written = json.dumps(described(self.extractor), indent=1)
        (folder / EXTRACTOR).write_text(written, encoding="utf-8")

    def trainable_blocks(self) -> list[nn.Module]:
        return list(self.tower.blocks(self.net))

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        return prepared_audio(value, self.rate, self.seconds, limits)

    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        longest = max(self.shortest, *(len(wave_N) for wave_N in inputs))
        wave_BN, lengths_B = padded(inputs, longest)
        if self.tower.frames is not None:
            return wave_BN, lengths_B
        waves = [
            wave_N[: max(self.shortest, length)].numpy().astype(np.float32) / 32768.0
            for wave_N, length in zip(wave_BN, lengths_B.tolist(), strict=True)
        ]
        with torch.autocast("cpu", enabled=False):  # numpy has no bf16
            extracted = self.extractor(waves, sampling_rate=self.rate, return_tensors="pt")
        first = extracted["input_values" if "input_values" in extracted else "input_features"]
        return first.float(), lengths_B

    def size(self, value: Array) -> int:
        return 1  # every sound is padded to the same length

    @property
    def budget(self) -> int:
        return 4

    def vary(self, value: Array, rng: np.random.Generator) -> Array:
        return value if self.waves is None else self.waves(value, rng)

    def forward(self, *batch: Tensor) -> Features:
        frames, lengths_B = batch
        if self.tower.frames is not None:
            with torch.autocast(frames.device.type, enabled=False), torch.no_grad():
                wave_BN = frames.float() / 32768.0
                heard_B = lengths_B.clamp(min=self.shortest)
                frames = self.tower.frames(wave_BN, heard_B, self.extractor)
        tokens_BTF, mask_BT = self.tower.run(self.net, frames, lengths_B, self.extractor)
        pooled_BF = joined(masked_mean(tokens_BTF, mask_BT))
        return Features(pooled_BF=pooled_BF, tokens_BTF=tokens_BTF, mask_BT=mask_BT)


def described(extractor: Any) -> dict[str, Any]:
    """An extractor's settings as JSON values, without the tables that follow from them."""
    raw = {k: v for k, v in extractor.to_dict().items() if k not in DERIVED}
    raw.pop("feature_extractor_type", None)
    return {k: v for k, v in raw.items() if isinstance(v, (str, int, float, bool, type(None)))}


def _tokens(lengths_B: Tensor, samples: float, places: int) -> Tensor:
    """Which of `places` tokens, of `samples` each, begin within the sound; bool[B, places]."""
    real_B = torch.ceil(lengths_B / samples).clamp(min=1, max=places)
    return torch.arange(places, device=lengths_B.device) < real_B[:, None].to(lengths_B.device)


def _run_ast(
    net: nn.Module, frames_BTM: Tensor, lengths_B: Tensor, extractor: Any
) -> tuple[Tensor, Tensor]:
    """AST's patches, frequency by frequency; its two class tokens are left out."""
    config: Any = net.config
    states_BTF = net(input_values=frames_BTM).last_hidden_state[:, 2:]
    down = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    along = (config.max_length - config.patch_size) // config.time_stride + 1
    hop = 0.01 * extractor.sampling_rate  # Kaldi's frame shift of 10 ms
    return states_BTF, _tokens(lengths_B, hop * config.time_stride, along).repeat(1, down)


def _run_whisper(
    net: nn.Module, frames: Tensor, lengths_B: Tensor, extractor: Any
) -> tuple[Tensor, Tensor]:
    """Whisper's encoder: two frames a token, by the stride of its second convolution."""
    states_BTF = net(frames).last_hidden_state
    return states_BTF, _tokens(lengths_B, 2 * extractor.hop_length, states_BTF.shape[1])


def _run_clap(
    net: nn.Module, frames: Tensor, lengths_B: Tensor, extractor: Any
) -> tuple[Tensor, Tensor]:
    """CLAP's last map. Short sounds were repeated to full length, so every place is real."""
    longer_B1 = torch.zeros(len(frames), 1, dtype=torch.bool, device=frames.device)
    states_BFHW = net(input_features=frames, is_longer=longer_B1).last_hidden_state
    states_BTF = states_BFHW.flatten(2).transpose(1, 2)
    return states_BTF, torch.ones(states_BTF.shape[:2], dtype=torch.bool, device=frames.device)


class Ast(AudioTower):
    """The Audio Spectrogram Transformer (Gong et al. 2021, arXiv 2104.01778)."""

    tower = Tower(
        config="ASTConfig",
        extractor="ASTFeatureExtractor",
        model="ASTModel",
        extractor_for=lambda config: {
            "num_mel_bins": config.num_mel_bins,
            "max_length": config.max_length,
        },
        run=_run_ast,
        blocks=lambda net: net.layers,  # type: ignore[arg-type,return-value]
        longest_s=lambda extractor: 0.01 * extractor.max_length,
        frames=ast_frames,
    )


class Whisper(AudioTower):
    """The encoder of Whisper (Radford et al. 2022, arXiv 2212.04356)."""

    tower = Tower(
        config="WhisperConfig",
        extractor="WhisperFeatureExtractor",
        model="models.whisper.modeling_whisper.WhisperEncoder",
        whole=("whisper", "WhisperModel", "encoder"),
        extractor_for=lambda config: {
            "feature_size": config.num_mel_bins,
            "chunk_length": config.max_source_positions // 50,  # 50 tokens a second
        },
        run=_run_whisper,
        blocks=lambda net: net.layers,  # type: ignore[arg-type,return-value]
        longest_s=lambda extractor: float(extractor.chunk_length),
        frames=whisper_frames,
    )


class ClapAudio(AudioTower):
    """The audio tower of CLAP (Wu et al. 2022, arXiv 2211.06687), an HTS-AT."""

    tower = Tower(
        config="ClapAudioConfig",
        extractor="ClapFeatureExtractor",
        model="ClapAudioModel",
        whole=("clap", "ClapModel", "audio_model"),
        extractor_for=lambda config: {
            "feature_size": config.num_mel_bins,
            "truncation": "fusion" if config.enable_fusion else "rand_trunc",
        },
        run=_run_clap,
        blocks=lambda net: net.audio_encoder.layers,  # type: ignore[union-attr,arg-type,return-value]
        longest_s=lambda extractor: float(extractor.max_length_s),
    )

    def __init__(
        self, net: nn.Module, extractor: Any, seconds: float | None = None, **waves: Any
    ) -> None:
        super().__init__(net, extractor, seconds, **waves)
        config: Any = net.config
        self.token_width = int(config.patch_embeds_hidden_size * 2 ** (len(config.depths) - 1))
        self.width = self.token_width


class ClapProjectedAudio(ClapAudio):
    """CLAP's audio tower into the space that its two towers share, on what its extractor makes of
    the waveform as it was decoded.

    A model with fusion sees a sound as transformers shows it one alone: as a longer one. Of sounds
    that are longer than it takes, the beginning is heard; transformers draws a part.

    Options:
        seconds: longer sounds are cut; at most, and by default, what the extractor takes.
    """

    tower = replace(ClapAudio.tower, model="ClapAudioModelWithProjection", whole=("", "", ""))

    def __init__(self, net: nn.Module, extractor: Any, seconds: float | None = None) -> None:
        super().__init__(net, extractor, seconds)
        config: Any = net.config
        self.width = int(config.projection_dim)
        self.fused = extractor.truncation == "fusion"
        self.settings = {**self.settings, "scale": "float32"}

    def trainable_blocks(self) -> list[nn.Module]:
        net: Any = self.net
        return list(net.audio_model.audio_encoder.layers)

    def prepare(self, value: Any, limits: Limits) -> tuple[Array, Cost]:
        return prepared_audio(value, self.rate, self.seconds, limits, decode_exact)

    def collate(self, inputs: Sequence[Array]) -> tuple[Tensor, ...]:
        extracted = self.extractor(list(inputs), sampling_rate=self.rate, return_tensors="pt")
        return (extracted["input_features"].float(),)

    def forward(self, *batch: Tensor) -> Features:
        (frames,) = batch
        longer_B1 = torch.full((len(frames), 1), self.fused, device=frames.device)
        out = self.net(input_features=frames, is_longer=longer_B1)
        return Features(
            pooled_BF=joined(out.audio_embeds),
            tokens_BTF=out.last_hidden_state.flatten(2).transpose(1, 2),
        )
