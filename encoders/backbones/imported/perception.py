"""The Perception Encoder Audiovisual of `transformers` (Vyas et al. 2025, arXiv 2512.19687): texts
with sounds, or texts with videos.

PE-AV is a model of each, PE-A and PE-V, with one text model and a text head for each. A class here
reads PE-AV or its own part of it.

Shapes: B values, T tokens or frames, N samples of the waveform, C channels, H and W sides, F
features.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from ..base import Array, Features, joined
from .sounds import SoundNetwork
from .texts import JointText
from .videos import VideoNetwork

SOUNDS, VIDEOS = "audio_model", "video_model"
"""The parts of PE-AV."""


class SoundCaption(JointText):
    """Texts for sounds: the state of the first token, through the text head for sounds."""

    part = SOUNDS
    head: ClassVar[str] = "text_audio_head"
    parts = ("text_model", head)

    def forward(self, *batch: Tensor) -> Features:
        ids_BT, mask_BT = batch
        net: Any = self.net
        states_BTF = net.text_model(ids_BT, attention_mask=mask_BT.long()).last_hidden_state
        pooled_BF = getattr(net, self.head)(states_BTF[:, 0])
        return Features(pooled_BF=joined(pooled_BF), tokens_BTF=states_BTF, mask_BT=mask_BT)


class VideoCaption(SoundCaption):
    """Texts for videos: the state of the first token, through the text head for videos."""

    part = VIDEOS
    head = "text_video_head"
    parts = ("text_model", head)


class PerceptionSound(SoundNetwork):
    """Sounds as PE-A embeds them whole."""

    part = SOUNDS
    parts = ("audio_encoder", "audio_head")

    def trainable_blocks(self) -> list[nn.Module]:
        net: Any = self.net
        return list(net.audio_encoder.layers)

    def extracted(self, wave_N: Array) -> Array:
        channels_1N = super().extracted(wave_N)
        array: Array = channels_1N[0]
        return array

    def hear(self, sounds_BN: Tensor) -> Tensor:
        net: Any = self.net
        vectors_BF: Tensor = net.audio_head(net.audio_encoder(sounds_BN[:, None]).pooler_output)
        return vectors_BF


class PerceptionVideo(VideoNetwork):
    """Videos as PE-V embeds them: as many frames as the checkpoint's video processor takes, from
    the first to the last.

    `source` is a hub name or a local folder with `video_preprocessor_config.json`.
    """

    part = VIDEOS
    parts = ("video_encoder", "video_head")
    preprocessing = "video processor"
    of = "ends"

    def trainable_blocks(self) -> list[nn.Module]:
        net: Any = self.net
        return list(net.video_encoder.layers)

    def count(self) -> int:
        if not self.processor.num_frames:
            raise CheckpointError(
                "this PE-AV takes every frame of a video; computed are those of a fixed number "
                "(num_frames of its video processor), as in facebook/pe-av-large-16-frame"
            )
        return int(self.processor.num_frames)

    def transform(self, frame_HWC: Array) -> Tensor:
        batch = self.processor(
            [torch.tensor(frame_HWC).permute(2, 0, 1)[None]],
            input_data_format="channels_first",
            do_sample_frames=False,
            return_tensors="pt",
        )
        pixels_CHW: Tensor = batch["pixel_values_videos"][0, 0]
        return pixels_CHW

    def see(self, pixels_BTCHW: Tensor) -> Tensor:
        net: Any = self.net
        vectors_BF: Tensor = net.video_head(net.video_encoder(pixels_BTCHW).pooler_output)
        return vectors_BF
