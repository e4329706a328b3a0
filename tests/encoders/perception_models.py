"""Tiny checkpoints of the Perception Encoder Audiovisual of transformers, of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.encoders.checkpoints import LAYERS, SIDE, write_model
from tests.encoders.dual_models import write_words

HEADS: dict[str, Any] = {**LAYERS, "head_dim": 16}
SOUNDS: dict[str, Any] = {
    **HEADS,
    "dac_config": {
        "encoder_hidden_size": 4,
        "downsampling_ratios": [2, 8, 10, 12],
        "codebook_dim": 8,
    },
}
FRAMES = 4


def films(folder: Path) -> dict[str, Any]:
    """The fields of a video config; its processor is written."""
    from transformers import PeVideoVideoProcessor

    size = {"height": SIDE, "width": SIDE}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    steps = dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_sample_frames"), True)
    PeVideoVideoProcessor(size=size, num_frames=FRAMES, **steps, **half).save_pretrained(folder)
    return {
        **HEADS,
        "vision_config": {
            "architecture": "test_vit",
            "num_classes": 24,
            "model_args": {"img_size": SIDE},
        },
    }


def texts(folder: Path) -> dict[str, Any]:
    """The fields of a text config; its tokeniser is written."""
    return {**write_words(folder), "cls_token_id": 2, "sep_token_id": 3}


def write_pe_audio(folder: Path, model: str = "PeAudioModel") -> None:
    from transformers import PeAudioConfig, PeAudioFeatureExtractor

    config = PeAudioConfig(text_config=texts(folder), audio_config=SOUNDS)
    PeAudioFeatureExtractor().save_pretrained(folder)
    write_model(model, config, folder)


def write_pe_video(folder: Path) -> None:
    from transformers import PeVideoConfig

    config = PeVideoConfig(text_config=texts(folder), video_config=films(folder))
    write_model("PeVideoModel", config, folder)


def write_pe_av(folder: Path) -> None:
    """Both, with one text model; the preprocessing is in one file, as a processor writes it."""
    from transformers import (
        AutoTokenizer,
        AutoVideoProcessor,
        PeAudioFeatureExtractor,
        PeAudioVideoConfig,
        PeAudioVideoProcessor,
    )

    text, video = texts(folder), films(folder)
    config = PeAudioVideoConfig(
        text_config=text,
        audio_video_config={**HEADS, "audio_config": SOUNDS, "video_config": video},
    )
    write_model("PeAudioVideoModel", config, folder)
    PeAudioVideoProcessor(
        PeAudioFeatureExtractor(),
        AutoVideoProcessor.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    ).save_pretrained(folder)
    (folder / "video_preprocessor_config.json").unlink()
