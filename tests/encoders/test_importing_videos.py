"""X-CLIP, imported: vectors as transformers gives them for the same frames."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from braid.encoders import CheckpointError, load
from braid.encoders.backbones.image_towers import processing
from braid.encoders.config import Limits
from braid.encoders.decoding.videos import decode_video
from tests.encoders.checkpoints import LAYERS, PICTURES, SIDE, write_model
from tests.encoders.joint_models import DIM, write_clip
from tests.encoders.test_importing import COSINE, cosines, imported
from tests.encoders.test_importing_joint import TEXTS, theirs_of, vectors
from tests.encoders.test_video import SHAPES, all_frames, filmed

FRAMES = 4


def write_processor(folder: Path) -> None:
    from transformers import VideoMAEImageProcessor

    size = {"size": {"shortest_edge": 36}, "crop_size": {"height": SIDE, "width": SIDE}}
    VideoMAEImageProcessor(**size).save_pretrained(folder)


def write_xclip(folder: Path) -> None:
    """X-CLIP, with the tokeniser of CLIP."""
    from transformers import AutoConfig, XCLIPConfig

    write_clip(folder)
    for name in ("processor_config.json", "preprocessor_config.json"):  # of pictures
        (folder / name).unlink(missing_ok=True)
    text = AutoConfig.from_pretrained(folder).text_config.to_dict()
    integrated = {
        "mit_hidden_size": DIM,
        "mit_intermediate_size": 48,
        "mit_num_hidden_layers": 1,
        "mit_num_attention_heads": 2,
    }
    fields = [*LAYERS, "vocab_size", "max_position_embeddings", "eos_token_id", "bos_token_id"]
    config = XCLIPConfig(
        text_config={name: text[name] for name in [*fields, "pad_token_id"]},
        vision_config={**PICTURES, **integrated, "num_frames": FRAMES},
        projection_dim=DIM,
        prompt_num_attention_heads=2,
    )
    write_model("XCLIPModel", config, folder)
    write_processor(folder)


def films() -> dict[str, bytes]:
    return {f"{shape[0]} {shape[1]} {shape[5]}": filmed(*shape) for shape in SHAPES}


def watched(folder: Path, frames_THWC: np.ndarray) -> np.ndarray:
    """What the model at `folder` gives for frames of its side, float32[D]."""
    from transformers import AutoModel

    net = AutoModel.from_pretrained(folder).eval()
    pixels_1TCHW = processed(folder, list(frames_THWC), do_resize=False, do_center_crop=False)
    with torch.no_grad():
        row_D: np.ndarray = net.get_video_features(pixels_1TCHW).pooler_output[0].numpy()
    return row_D


def processed(folder: Path, frames: list[Any], **options: Any) -> torch.Tensor:
    """What the image processor at `folder` makes of frames, float32[1, T, C, H, W]."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    pixels: torch.Tensor = processor(frames, return_tensors="pt", **options)["pixel_values"]
    return pixels


def seen(folder: Path, film: bytes) -> np.ndarray:
    """The frames that X-CLIP sees, uint8[T, H, W, C], which are those that its processor makes of
    the middles of as many parts as it takes, but for how torchvision rounds."""
    fit, mean, std = processing(str(folder))
    ours_TCHW = decode_video(film, FRAMES, fit, Limits())
    frames = all_frames(film)
    middles = [frames[int((part + 0.5) * len(frames) / FRAMES)] for part in range(FRAMES)]
    theirs_TCHW = processed(folder, middles)[0]
    for channel in range(3):
        theirs = 255 * (theirs_TCHW[:, channel] * std[channel] + mean[channel])
        off = np.abs(ours_TCHW[:, channel] - theirs.numpy())
        assert off.max() < 2.1
        assert off.mean() < 0.1
    return ours_TCHW.transpose(0, 2, 3, 1)


@pytest.mark.slow
def test_videos_equal_those_of_transformers(tmp_path: Path) -> None:
    write_xclip(tmp_path / "source")
    manifest = imported(tmp_path / "source", tmp_path / "v")
    assert list(manifest.modalities) == ["text", "video"]
    ours_BD = vectors(tmp_path / "v", "video", list(films().values()))
    for (name, film), ours_D in zip(films().items(), ours_BD, strict=True):
        theirs_D = watched(tmp_path / "source", seen(tmp_path / "source", film))
        assert cosines(ours_D[None], theirs_D[None]) >= COSINE, name
    assert float((ours_BD @ ours_BD.T).min()) < 0.999, "all videos look the same"
    load(tmp_path / "v", device="cpu").check()


def test_texts_of_x_clip_and_its_classes(tmp_path: Path) -> None:
    write_xclip(tmp_path / "source")
    manifest = imported(tmp_path / "source", tmp_path / "v", classes={"kind": ["red", "green"]})
    ours_BD = vectors(tmp_path / "v", "text", TEXTS)
    assert cosines(ours_BD, theirs_of(tmp_path / "source", {"text": TEXTS})) >= COSINE
    assert set(manifest.metrics["zero_shot"]["scale"]) == {"text", "video", "fused"}


def test_a_missing_decoder_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_xclip(tmp_path / "source")
    imported(tmp_path / "source", tmp_path / "v")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CheckpointError, match=r"braid-stream\[video\]"):
        load(tmp_path / "v", device="cpu")


def test_a_film_shorter_than_the_frames_repeats_some(tmp_path: Path) -> None:
    write_xclip(tmp_path / "source")
    imported(tmp_path / "source", tmp_path / "v")
    film = filmed("mp4", "mpeg4", Fraction(12), 64, 48, 2)
    (ours_D,) = vectors(tmp_path / "v", "video", [film])
    theirs_D = watched(tmp_path / "source", seen(tmp_path / "source", film))
    assert cosines(ours_D[None], theirs_D[None]) >= COSINE
