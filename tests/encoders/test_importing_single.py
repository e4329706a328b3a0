"""Imported networks of one modality: vectors as their libraries give them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torchaudio.functional import resample

from braid.encoders import BadInput, CheckpointError, Sample, importing, load
from tests.encoders.checkpoints import LAYERS, SIDE, write_model
from tests.encoders.checkpoints import PICTURES as VISION
from tests.encoders.test_importing import (
    COSINE,
    TEXTS,
    cosines,
    imported,
    write_sentence_transformer,
)
from tests.encoders.test_importing import vectors as text_vectors
from tests.encoders.test_importing_joint import PICTURES, SOUNDS, file_of, noise, sound, vectors

CROPPED: dict[str, Any] = {
    "size": {"shortest_edge": 36},
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_center_crop": True,
}
SQUASHED: dict[str, Any] = {"size": {"height": SIDE, "width": SIDE}}
LARGER: dict[str, Any] = {"size": {"height": 40, "width": 40}}
MAPS: dict[str, Any] = {"depths": [1, 1], "hidden_sizes": [16, 24]}
NETWORKS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "beit": ("Beit", VISION, "BeitImageProcessor", SQUASHED),
    "convnext": (
        "ConvNext",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 24]},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": SIDE}},
    ),
    "deit": (
        "DeiT",
        VISION,
        "DeiTImageProcessor",
        {**CROPPED, "size": {"height": 40, "width": 40}},
    ),
    "dinov2": ("Dinov2", VISION, "BitImageProcessor", CROPPED),
    "dinov2_with_registers": ("Dinov2WithRegisters", VISION, "BitImageProcessor", CROPPED),
    "dinov3_vit": ("DINOv3ViT", VISION, "DINOv3ViTImageProcessor", SQUASHED),
    "resnet": (
        "ResNet",
        {**MAPS, "embedding_size": 16, "layer_type": "basic"},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": SIDE}},
    ),
    "swin": (
        "Swin",
        {
            "image_size": SIDE,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
        },
        "ViTImageProcessor",
        SQUASHED,
    ),
    "vit": ("ViT", VISION, "ViTImageProcessor", SQUASHED),
}
"""`model_type`, to its class, the fields of its config, and its image processor."""


def write_network(folder: Path, kind: str, head: str = "Model") -> None:
    import transformers

    name, fields, processor, size = NETWORKS[kind]
    write_model(f"{name}{head}", getattr(transformers, f"{name}Config")(**fields), folder)
    getattr(transformers, processor)(**size).save_pretrained(folder)


def seen_alone(folder: Path, pictures: list[bytes]) -> np.ndarray:
    """What the pooler of the network at `folder` gives, float32[B, F]."""
    from transformers import AutoImageProcessor, AutoModel
    from transformers.image_utils import load_image

    net = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    rows = []
    with torch.no_grad():
        for one in pictures:
            image = load_image(Image.open(io.BytesIO(one)))
            out = net(**processor(images=image, return_tensors="pt"))
            rows.append(out.pooler_output.flatten())
    return torch.stack(rows).numpy()


def low(
    ours_BD: np.ndarray, theirs_BD: np.ndarray, names: Iterable[str] = PICTURES
) -> dict[str, float]:
    """The pictures whose vectors differ."""
    rows = zip(names, ours_BD, theirs_BD, strict=True)
    named = {name: cosines(ours_D[None], theirs_D[None]) for name, ours_D, theirs_D in rows}
    return {name: cosine for name, cosine in named.items() if cosine < COSINE}


def test_every_type_is_compared() -> None:
    assert set(NETWORKS) == set(importing.PICTURES)
    assert set(SPEECH) | {AST} == set(importing.SOUNDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_pictures_equal_those_of_transformers(tmp_path: Path, kind: str) -> None:
    write_network(tmp_path / "source", kind)
    manifest = imported(tmp_path / "source", tmp_path / "v")
    assert list(manifest.modalities) == ["image"]
    assert manifest.config["model"]["origin"]["type"] == kind
    ours_BD = vectors(tmp_path / "v", "image", list(PICTURES.values()))
    assert low(ours_BD, seen_alone(tmp_path / "source", list(PICTURES.values()))) == {}
    assert float((ours_BD @ ours_BD.T).min()) < 0.99, "all pictures look the same"


def test_a_classifier_without_a_pooler_gives_its_class_token(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, ViTModel
    from transformers.image_utils import load_image

    write_network(tmp_path / "source", "vit", "ForImageClassification")
    imported(tmp_path / "source", tmp_path / "v")
    ours_BD = vectors(tmp_path / "v", "image", list(PICTURES.values()))
    net = ViTModel.from_pretrained(tmp_path / "source", add_pooling_layer=False).eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "source")
    images = [load_image(Image.open(io.BytesIO(one))) for one in PICTURES.values()]
    with torch.no_grad():
        out = net(**processor(images=images, return_tensors="pt"))
    assert low(ours_BD, out.last_hidden_state[:, 0].numpy()) == {}


def test_a_line_of_pixels_is_refused_before_it_is_scaled(tmp_path: Path) -> None:
    write_network(tmp_path / "source", "convnext")
    imported(tmp_path / "source", tmp_path / "v")
    line = file_of(Image.fromarray(noise(1, 65000)), "PNG")
    model = load(tmp_path / "v", device="cpu")
    with pytest.raises(BadInput, match="1x65000 pixels become"):
        model.prepare(Sample(id="line", image=line))


@pytest.mark.slow
@pytest.mark.parametrize("family", importing.TEXTS)
def test_texts_equal_those_of_sentence_transformers(tmp_path: Path, family: str) -> None:
    import sentence_transformers as library

    write_sentence_transformer(tmp_path / "source", family=family)
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (tmp_path / "source" / name).unlink()
    manifest = imported(tmp_path / "source", tmp_path / "v")
    assert manifest.config["model"]["origin"]["type"] == family
    theirs = library.SentenceTransformer(str(tmp_path / "source"), device="cpu")
    assert cosines(text_vectors(tmp_path / "v", TEXTS), theirs.encode(TEXTS)) >= COSINE


AST = "audio-spectrogram-transformer"
CONVOLUTIONS: dict[str, Any] = {
    **LAYERS,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 8, 4],
    "conv_stride": [5, 8, 4],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
SPEECH: dict[str, tuple[str, dict[str, Any], bool]] = {
    "data2vec-audio": ("Data2VecAudio", {"conv_pos_kernel_size": 5}, True),
    "hubert": ("Hubert", {"feat_extract_norm": "layer", "conv_bias": True}, True),
    "unispeech-sat": ("UniSpeechSat", {}, False),
    "wav2vec2": ("Wav2Vec2", {"feat_extract_norm": "group"}, False),
    "wavlm": ("WavLM", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}, True),
}
"""`model_type`, to its class, fields of its config, and whether its extractor makes masks."""


def write_speech(folder: Path, kind: str) -> None:
    import transformers
    from transformers import Wav2Vec2FeatureExtractor

    name, fields, masks = SPEECH[kind]
    config = getattr(transformers, f"{name}Config")(**{**CONVOLUTIONS, **fields})
    write_model(f"{name}Model", config, folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=masks).save_pretrained(folder)


def write_ast(folder: Path) -> None:
    from transformers import ASTConfig, ASTFeatureExtractor

    write_model("ASTModel", ASTConfig(**LAYERS, max_length=128, num_mel_bins=32), folder)
    ASTFeatureExtractor(max_length=128, num_mel_bins=32).save_pretrained(folder)


def heard(folder: Path, file: bytes, whole: Callable[[Any], torch.Tensor]) -> np.ndarray:
    """What `whole` takes of the network's output for a sound alone, float32[1, F]."""
    from transformers import AutoFeatureExtractor, AutoModel

    net = AutoModel.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    wave_NC, rate = soundfile.read(io.BytesIO(file), dtype="float32", always_2d=True)
    wave_N = resample(torch.from_numpy(wave_NC.mean(1)), rate, 16000).numpy()
    with torch.no_grad():
        batch = extractor(wave_N, sampling_rate=16000, return_tensors="pt")
        pooled: np.ndarray = whole(net(**batch)).numpy()
    return pooled


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM's own
@pytest.mark.parametrize("kind", [*SPEECH, AST])
def test_sounds_equal_those_of_transformers(tmp_path: Path, kind: str) -> None:
    if kind == AST:
        write_ast(tmp_path / "source")
    else:
        write_speech(tmp_path / "source", kind)
    manifest = imported(tmp_path / "source", tmp_path / "v")
    assert (list(manifest.modalities), manifest.dim) == (["audio"], 32)
    sounds = {name: one for name, one in SOUNDS.items() if name != "short"}
    ours_BD = vectors(tmp_path / "v", "audio", list(sounds.values()))
    for (name, one), ours_D in zip(sounds.items(), ours_BD, strict=True):
        theirs_1D = heard(
            tmp_path / "source",
            one,
            lambda out: out.pooler_output if kind == AST else out.last_hidden_state.mean(1),
        )
        assert cosines(ours_D[None], theirs_1D) >= COSINE, name
    assert float((ours_BD @ ours_BD.T).min()) < 0.999, "all sounds look the same"


def test_a_sound_of_two_frames_and_one_longer_than_is_heard(tmp_path: Path) -> None:
    write_speech(tmp_path / "source", "wav2vec2")
    imported(tmp_path / "source", tmp_path / "v")
    sounds = [sound(8000, seconds, kind="FLAC") for seconds in (0.002, 31.0, 30.0, 29.0)]
    _, long_D, start_D, less_D = vectors(tmp_path / "v", "audio", sounds)
    assert cosines(long_D[None], start_D[None]) >= COSINE
    assert cosines(long_D[None], less_D[None]) < 1.0 - 1e-7


@pytest.mark.parametrize(
    ("write", "missing"),
    [
        (lambda folder: write_network(folder, "vit"), "image processor"),
        (lambda folder: write_speech(folder, "hubert"), "feature extractor"),
    ],
)
def test_a_checkpoint_without_its_preprocessing(
    tmp_path: Path, write: Callable[[Path], None], missing: str
) -> None:
    write(tmp_path / "source")
    (tmp_path / "source" / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=f"no {missing}"):
        importing.import_model(str(tmp_path / "source"), tmp_path / "v", name="v", version=1)


def test_classes_need_texts(tmp_path: Path) -> None:
    write_network(tmp_path / "source", "vit")
    with pytest.raises(CheckpointError, match="a model of type vit embeds no texts"):
        imported(tmp_path / "source", tmp_path / "v", classes={"kind": ["red", "green"]})
