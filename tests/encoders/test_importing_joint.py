"""Imported joint models: texts, pictures and sounds as transformers embeds them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torchaudio.functional import resample

from braid.encoders import CheckpointError, Embedder, Sample
from braid.encoders.importing import KINDS, import_model
from tests.encoders.joint_models import DIM, write_clap, write_clip, write_siglip
from tests.encoders.test_importing import COSINE, cosines, imported

Embed = Callable[[str, Any], np.ndarray]
TEXTS = ["A red bird.", "green", "a bird sings on a green branch, 2 times", "RED", "bird " * 60]


def vectors(folder: Path, modality: str, values: list[Any]) -> np.ndarray:
    """float32[B, D] of the version in `folder`."""
    samples = [Sample(id=str(i), **{modality: value}) for i, value in enumerate(values)]
    with Embedder.load(folder, device="cpu") as embedder:
        return np.stack([one.by[modality] for one in embedder.embed(samples)])


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    """Blocks of colour with noise, as photographs have both."""
    rng = np.random.default_rng(width * height + channels)
    blocks = rng.integers(0, 255, (-(-height // 8), -(-width // 8), channels)).repeat(8, 0)
    drawn = blocks.repeat(8, 1)[:height, :width] + rng.normal(0, 12, (height, width, channels))
    return np.clip(drawn, 0, 255).astype(np.uint8)


def file_of(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return file_of(Image.fromarray(noise(90, 60)), "JPEG", exif=exif)


def palette() -> bytes:
    picture = Image.fromarray(noise(50, 70)).quantize(12)
    return file_of(picture, "PNG", transparency=3)


PICTURES: dict[str, bytes] = {
    "4:3": file_of(Image.fromarray(noise(120, 90)), "PNG"),
    "1:3": file_of(Image.fromarray(noise(60, 180)), "JPEG", quality=90),
    "3:1": file_of(Image.fromarray(noise(180, 60)), "WEBP", lossless=True),
    "small": file_of(Image.fromarray(noise(9, 11)), "BMP"),
    "large": file_of(Image.fromarray(noise(1500, 900)), "JPEG"),
    "narrow": file_of(Image.fromarray(noise(8, 2400)), "PNG"),
    "CMYK": file_of(Image.fromarray(noise(80, 64)).convert("CMYK"), "JPEG"),
    "EXIF": turned(),
    "alpha": file_of(Image.fromarray(noise(64, 80, 4), "RGBA"), "PNG"),
    "grey": file_of(Image.fromarray(noise(64, 80)).convert("L"), "PNG"),
    "grey and alpha": file_of(Image.fromarray(noise(64, 80, 4), "RGBA").convert("LA"), "PNG"),
    "palette": palette(),
    "bilevel": file_of(Image.fromarray(noise(64, 80)).convert("1"), "PNG"),
}


def theirs_of(folder: Path, values: Mapping[str, Any], **asked: Any) -> np.ndarray:
    """The features that the model at `folder` gives one after the other, with `padding=True` all
    together, float32[B, D]."""
    from transformers import AutoModel, AutoTokenizer

    net = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.no_grad():
        for texts in [values["text"]] if asked.get("padding") is True else values["text"]:
            batch = tokenizer(texts, truncation=True, return_tensors="pt", **asked)
            rows.extend(net.get_text_features(**batch).pooler_output)
    return torch.stack(rows).numpy()


def seen(folder: Path, pictures: list[bytes]) -> np.ndarray:
    """The picture features of the model at `folder`, float32[B, D]."""
    from transformers import AutoImageProcessor, AutoModel
    from transformers.image_utils import load_image

    net, processor = (
        AutoModel.from_pretrained(folder).eval(),
        AutoImageProcessor.from_pretrained(folder),
    )
    rows = []
    with torch.no_grad():
        for picture in pictures:
            image = load_image(Image.open(io.BytesIO(picture)))
            batch = processor(images=image, return_tensors="pt")
            rows.append(net.get_image_features(**batch).pooler_output[0])
    return torch.stack(rows).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "asked"),
    [
        (write_clip, {}),
        (write_siglip, {"padding": "max_length", "max_length": 64, "return_attention_mask": False}),
        (write_clap, {}),
    ],
)
def test_texts_equal_those_of_transformers(
    tmp_path: Path, write: Callable[[Path], None], asked: dict[str, Any]
) -> None:
    write(tmp_path / "source")
    manifest = imported(tmp_path / "source", tmp_path / "v")
    assert manifest.config["model"]["origin"]["type"] in KINDS
    ours_BD = vectors(tmp_path / "v", "text", TEXTS)
    assert cosines(ours_BD, theirs_of(tmp_path / "source", {"text": TEXTS}, **asked)) >= COSINE
    assert float((ours_BD @ ours_BD.T).min()) < 0.99, "all texts look the same"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "processing"),
    [
        (write_clip, {}),
        (write_clip, {"size": {"shortest_edge": 24}, "resample": 2}),
        (write_clip, {"do_normalize": False}),
        (write_siglip, {}),
        (write_siglip, {"resample": 3, "image_mean": [0.4, 0.5, 0.6], "rescale_factor": 1 / 128}),
    ],
)
def test_pictures_of_any_shape_and_mode_equal_those_of_transformers(
    tmp_path: Path, write: Callable[..., None], processing: dict[str, Any]
) -> None:
    write(tmp_path / "source", **processing)
    manifest = imported(tmp_path / "source", tmp_path / "v")
    assert list(manifest.modalities) == ["text", "image"]
    ours_BD = vectors(tmp_path / "v", "image", list(PICTURES.values()))
    theirs_BD = seen(tmp_path / "source", list(PICTURES.values()))
    low = {
        name: cosine
        for name, ours_D, theirs_D in zip(PICTURES, ours_BD, theirs_BD, strict=True)
        if (cosine := cosines(ours_D[None], theirs_D[None])) < COSINE
    }
    assert low == {}
    assert float((ours_BD @ ours_BD.T).min()) < 0.99, "all pictures look the same"


def sound(rate: int, seconds: float, channels: int = 1, kind: str = "WAV") -> bytes:
    """A chirp and noise, quiet in one channel."""
    rng = np.random.default_rng(rate)
    time_N = np.arange(int(rate * seconds)) / rate
    chirp_N = 0.4 * np.sin(2 * np.pi * (300 + 900 * time_N) * time_N)
    wave_N = chirp_N + rng.normal(0, 0.01, len(time_N))
    file = io.BytesIO()
    columns = np.stack([wave_N / (1 + channel) for channel in range(channels)], axis=1)
    soundfile.write(file, columns.astype(np.float32), rate, format=kind)
    return file.getvalue()


SOUNDS = {
    "8 kHz": sound(8000, 0.8),
    "16 kHz stereo": sound(16000, 1.7, channels=2),
    "22 kHz flac": sound(22050, 3.1, kind="FLAC"),
    "44.1 kHz stereo": sound(44100, 0.3, channels=2),
    "48 kHz": sound(48000, 2.0),
    "short": sound(48000, 0.02),
    "as long as it takes": sound(16000, 10.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_sounds_of_any_rate_equal_those_of_transformers(tmp_path: Path, fused: bool) -> None:
    from transformers import AutoFeatureExtractor, ClapModel

    write_clap(tmp_path / "source", fused=fused)
    manifest = imported(tmp_path / "source", tmp_path / "v")
    assert (list(manifest.modalities), manifest.dim) == (["text", "audio"], DIM)
    ours_BD = vectors(tmp_path / "v", "audio", list(SOUNDS.values()))
    net = ClapModel.from_pretrained(tmp_path / "source").eval()
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "source")
    for name, ours_D in zip(SOUNDS, ours_BD, strict=True):
        wave_NC, rate = soundfile.read(io.BytesIO(SOUNDS[name]), dtype="float32", always_2d=True)
        wave_N = resample(torch.from_numpy(wave_NC.mean(1)), rate, 48000).numpy()
        batch = extractor(wave_N, sampling_rate=48000, return_tensors="pt")
        with torch.no_grad():
            theirs_BD = net.get_audio_features(**batch).pooler_output.numpy()
        assert cosines(ours_D[None], theirs_BD) >= COSINE, name
    assert float((ours_BD @ ours_BD.T).min()) < 0.999, "all sounds look the same"


def test_of_a_longer_sound_the_beginning_is_heard(tmp_path: Path) -> None:
    write_clap(tmp_path / "source")
    imported(tmp_path / "source", tmp_path / "v")
    sounds = [sound(8000, seconds, kind="FLAC") for seconds in (12.0, 10.0, 9.0)]
    long_D, start_D, less_D = vectors(tmp_path / "v", "audio", sounds)
    assert cosines(long_D[None], start_D[None]) >= COSINE
    assert cosines(long_D[None], less_D[None]) < COSINE


@pytest.mark.parametrize(
    ("processing", "why"),
    [
        ({"do_center_crop": False}, "shortest_edge"),
        ({"size": {"shortest_edge": 36, "longest_edge": 99}}, "longest_edge"),
        ({"crop_size": {"height": 32, "width": 30}}, "30"),
        ({"do_resize": False}, "CLIPImageProcessor"),
    ],
)
def test_a_processor_that_is_not_computed_is_named(
    tmp_path: Path, processing: dict[str, Any], why: str
) -> None:
    write_clip(tmp_path / "source", **processing)
    with pytest.raises(CheckpointError, match=why):
        import_model(str(tmp_path / "source"), tmp_path / "v", name="v", version=1)


def test_a_joint_model_has_one_width(tmp_path: Path) -> None:
    write_clip(tmp_path / "source")
    with pytest.raises(CheckpointError, match="dim: a model of type clip"):
        import_model(str(tmp_path / "source"), tmp_path / "v", name="v", version=1, dim=8)
