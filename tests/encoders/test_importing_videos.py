"""Imported networks for videos: vectors as transformers gives them for the same frames."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from braid.encoders import CheckpointError, load
from braid.encoders.importing import VIDEOS, import_model
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


def write_videomae(folder: Path) -> None:
    from transformers import VideoMAEConfig

    config = VideoMAEConfig(**{**LAYERS, "image_size": SIDE}, num_frames=FRAMES, tubelet_size=2)
    write_model("VideoMAEModel", config, folder)
    write_processor(folder)


@cache
def films() -> dict[str, bytes]:
    """They are made once: an encoder with several threads may make others of the same frames."""
    return {f"{shape[0]} {shape[1]} {shape[5]}": filmed(*shape) for shape in SHAPES}


def watched(folder: Path, film: bytes) -> np.ndarray:
    """What the model at `folder` gives for the middles of as many parts as it takes, float32[D]."""
    from transformers import AutoImageProcessor, AutoModel

    frames = all_frames(film)
    middles = [frames[int((part + 0.5) * len(frames) / FRAMES)] for part in range(FRAMES)]
    net = AutoModel.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder)(middles, return_tensors="pt")
    with torch.no_grad():
        if hasattr(net, "get_video_features"):
            row_1D = net.get_video_features(**pixels).pooler_output
        else:
            row_1D = net(**pixels).last_hidden_state.mean(1)
    row_D: np.ndarray = row_1D[0].numpy()
    return row_D


def test_every_type_is_compared() -> None:
    assert set(VIDEOS) == {"videomae"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "modalities"), [(write_xclip, ["text", "video"]), (write_videomae, ["video"])]
)
def test_videos_equal_those_of_transformers(
    tmp_path: Path, write: Callable[[Path], None], modalities: list[str]
) -> None:
    write(tmp_path / "source")
    manifest = imported(tmp_path / "source", tmp_path / "v")
    assert list(manifest.modalities) == modalities
    ours_BD = vectors(tmp_path / "v", "video", list(films().values()))
    for (name, film), ours_D in zip(films().items(), ours_BD, strict=True):
        theirs_D = watched(tmp_path / "source", film)
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
    theirs_D = watched(tmp_path / "source", film)
    assert cosines(ours_D[None], theirs_D[None]) >= COSINE


def test_frames_that_differ_in_shape_are_refused(tmp_path: Path) -> None:
    from transformers import VideoMAEImageProcessor

    write_videomae(tmp_path / "source")
    size = {"size": {"shortest_edge": 36}, "do_center_crop": False}
    VideoMAEImageProcessor(**size).save_pretrained(tmp_path / "source")
    with pytest.raises(CheckpointError, match="those of one shape"):
        import_model(str(tmp_path / "source"), tmp_path / "v", name="v", version=1)
