"""Imported models of open_clip, of timm, and joint ones in sentence-transformers' layout."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from braid.encoders import BadInput, CheckpointError, Sample, load
from braid.encoders.importing import import_model
from tests.encoders.dual_models import write_words
from tests.encoders.joint_models import write_clip, write_siglip
from tests.encoders.test_importing import COSINE, cosines, imported, write
from tests.encoders.test_importing_joint import PICTURES, TEXTS, vectors
from tests.encoders.test_importing_single import low

CUT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
WORDS = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
OPEN_CLIPS: dict[str, dict[str, Any]] = {
    "clip": {"embed_dim": 24, "vision_cfg": CUT, "text_cfg": WORDS, "quick_gelu": True},
    "coca": {
        "embed_dim": 24,
        "vision_cfg": {
            **CUT,
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        },
        "text_cfg": {**WORDS, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 20, "width": 32, "heads": 2, "layers": 1},
        "custom_text": True,
    },
    "timm tower": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_proj": "linear", "image_size": 160},
        "text_cfg": WORDS,
    },
    "BERT": {
        "embed_dim": 24,
        "vision_cfg": CUT,
        "text_cfg": {
            "hf_model_name": "words",
            "hf_tokenizer_name": "words",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "mean_pooler",
            "context_length": 20,
        },
    },
}
PROCESSING: dict[str, dict[str, Any]] = {
    "clip": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]},
    "coca": {"resize_mode": "squash", "interpolation": "bilinear"},
    "timm tower": {},
    "BERT": {"resize_mode": "longest", "fill_color": 100},
}


def write_open_clip(folder: Path, kind: str, *, safe: bool = True) -> None:
    """A model of random weights as open_clip writes it for the hub."""
    import open_clip
    from open_clip.push_to_hf_hub import save_for_hf
    from transformers import BertConfig

    torch.manual_seed(0)
    folder.mkdir()
    model_cfg = json.loads(json.dumps(OPEN_CLIPS[kind]))
    if kind == "BERT":
        text = write_words(folder)
        BertConfig(**text).save_pretrained(folder)
        model_cfg["text_cfg"]["hf_model_name"] = str(folder)
    write(folder / "open_clip_config.json", {"model_cfg": model_cfg, "preprocess_cfg": {}})
    net = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        net.logit_scale.fill_(3.0)
    save_for_hf(net, _NoTokenizer(), model_cfg, str(folder), safe_serialization=safe)
    raw = json.loads((folder / "open_clip_config.json").read_text())
    raw["preprocess_cfg"].update(PROCESSING[kind])
    write(folder / "open_clip_config.json", raw)


class _NoTokenizer:
    """open_clip ships its own, and that of a BERT is in the folder already."""

    def save_pretrained(self, folder: Path) -> None:
        pass


def upright(file: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB")


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPEN_CLIPS)
def test_vectors_equal_those_of_open_clip(tmp_path: Path, kind: str) -> None:
    import open_clip

    source = tmp_path / "source"
    write_open_clip(source, kind, safe=kind != "clip")
    manifest = imported(source, tmp_path / "v", classes={"colour": ["red", "green"]})
    origin = manifest.config["model"]["origin"]
    assert (origin["type"], manifest.dim) == ("open_clip", 24)
    assert {"open_clip_torch", "timm"} < set(origin["libraries"])
    assert manifest.metrics["zero_shot"]["scale"] == pytest.approx(
        dict.fromkeys(("text", "image", "fused"), np.exp(3.0))
    )
    # a version needs its source no longer
    source.rename(tmp_path / "moved")
    source = tmp_path / "moved"
    if kind == "BERT":
        raw = json.loads((source / "open_clip_config.json").read_text())
        raw["model_cfg"]["text_cfg"]["hf_model_name"] = str(source)
        write(source / "open_clip_config.json", raw)
    net, _, transform = open_clip.create_model_and_transforms(f"local-dir:{source}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{source}")
    net.eval()
    texts = ["a red  bird&amp; a Bird", "green", "", "bird " * 60]
    pictures = dict(PICTURES)
    if PROCESSING[kind].get("resize_mode") == "longest":
        line = pictures.pop("narrow")  # less than a pixel wide
        with pytest.raises(BadInput, match="8x2400 pixels that the model's transform refuses"):
            load(tmp_path / "v", device="cpu").prepare(Sample(id="line", image=line))
    with torch.no_grad():
        theirs_BD = net.encode_text(tokenizer(texts)).numpy()
        images = torch.stack([transform(upright(one)) for one in pictures.values()])
        seen_BD = net.encode_image(images).numpy()
    ours_BD = vectors(tmp_path / "v", "text", texts)
    assert cosines(ours_BD, theirs_BD) >= COSINE
    assert float((ours_BD @ ours_BD.T).min()) < 0.99, "all texts look the same"
    ours_BD = vectors(tmp_path / "v", "image", list(pictures.values()))
    assert low(ours_BD, seen_BD, pictures) == {}
    assert float((ours_BD @ ours_BD.T).min()) < 0.99, "all pictures look the same"


TIMMS: dict[str, dict[str, Any]] = {
    "test_vit": {"input_size": [3, 160, 160], "crop_pct": 0.9, "interpolation": "bilinear"},
    "test_resnet": {"crop_mode": "border", "mean": [0.4, 0.5, 0.6]},
    "test_efficientnet": {"crop_mode": "squash", "crop_pct": 1.0},
}


def write_timm(folder: Path, name: str) -> None:
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    net = timm.create_model(name)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    save_for_hf(net, str(folder), safe_serialization=name != "test_resnet")
    raw = json.loads((folder / "config.json").read_text())
    raw["pretrained_cfg"].update(TIMMS[name])
    write(folder / "config.json", raw)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMMS)
def test_vectors_equal_those_of_timm(tmp_path: Path, name: str) -> None:
    import timm

    write_timm(tmp_path / "source", name)
    manifest = imported(tmp_path / "source", tmp_path / "v")
    assert list(manifest.modalities) == ["image"]
    assert manifest.config["model"]["origin"]["type"] == "timm"
    net = timm.create_model(f"local-dir:{tmp_path / 'source'}", pretrained=True, num_classes=0)
    net.eval()
    data = timm.data.resolve_model_data_config(net)
    transform = timm.data.create_transform(**data, is_training=False)
    with torch.no_grad():
        theirs_BD = np.concatenate(
            [net(transform(upright(one))[None]).numpy() for one in PICTURES.values()]
        )
    ours_BD = vectors(tmp_path / "v", "image", list(PICTURES.values()))
    assert low(ours_BD, theirs_BD) == {}
    assert float((ours_BD @ ours_BD.T).min()) < 0.99, "all pictures look the same"


def write_multimodal(folder: Path, *, legacy: bool) -> Any:
    """A CLIP as sentence-transformers writes it; the model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Transformer

    write_clip(folder / "0_CLIPModel")
    if legacy:
        write(folder / "modules.json", [CLIP_MODULE])
        return SentenceTransformer(str(folder), device="cpu")
    net = SentenceTransformer(
        modules=[Transformer(str(folder / "0_CLIPModel")), Normalize()], device="cpu"
    )
    for path in (folder / "0_CLIPModel").iterdir():
        path.unlink()
    (folder / "0_CLIPModel").rmdir()
    net.save_pretrained(str(folder))
    return net


CLIP_MODULE = {
    "idx": 0,
    "name": "0",
    "path": "0_CLIPModel",
    "type": "sentence_transformers.models.CLIPModel",
}


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [True, False])
def test_a_joint_model_of_sentence_transformers(tmp_path: Path, legacy: bool) -> None:
    theirs = write_multimodal(tmp_path / "source", legacy=legacy)
    manifest = imported(tmp_path / "source", tmp_path / "v")
    assert list(manifest.modalities) == ["text", "image"] == theirs.modalities[:2]
    assert manifest.config["model"]["origin"]["type"] == "clip"
    assert cosines(vectors(tmp_path / "v", "text", TEXTS), theirs.encode(TEXTS)) >= COSINE
    seen_BD = theirs.encode([upright(one) for one in PICTURES.values()])
    ours_BD = vectors(tmp_path / "v", "image", list(PICTURES.values()))
    assert low(ours_BD, seen_BD) == {}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"modules.json": [CLIP_MODULE, {"path": "1", "type": "models.Dense"}]}, "models.Dense"),
        ({"config_sentence_transformers.json": {"prompts": {"query": "find "}}}, "prompts"),
        ({}, "siglip"),
        ({"0_CLIPModel/sentence_bert_config.json": {"processing_kwargs": {"text": {}}}}, "text"),
    ],
)
def test_what_is_behind_a_joint_model_is_not_dropped(
    tmp_path: Path, changed: dict[str, Any], why: str
) -> None:
    (write_siglip if why == "siglip" else write_clip)(tmp_path / "source" / "0_CLIPModel")
    for name, value in {"modules.json": [CLIP_MODULE], **changed}.items():
        write(tmp_path / "source" / name, value)
    with pytest.raises(CheckpointError, match=why):
        imported(tmp_path / "source", tmp_path / "v")


@pytest.mark.parametrize(
    ("write_one", "module", "extra"),
    [
        (lambda folder: write_timm(folder, "test_resnet"), "timm", "timm"),
        (lambda folder: write_open_clip(folder, "clip"), "open_clip", "open-clip"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_one: Callable[[Path], None],
    module: str,
    extra: str,
) -> None:
    write_one(tmp_path / "source")
    imported(tmp_path / "source", tmp_path / "v")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CheckpointError, match=rf"braid-stream\[{extra}\]"):
        import_model(str(tmp_path / "source"), tmp_path / "other", name="v", version=2)
    with pytest.raises(CheckpointError, match=rf"braid-stream\[{extra}\]"):
        load(tmp_path / "v", device="cpu")


def test_an_architecture_that_timm_does_not_know(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"architecture": "no_such_net", "pretrained_cfg": {}})
    with pytest.raises(CheckpointError, match="no_such_net"):
        imported(tmp_path, tmp_path / "v")


def test_open_clip_weights_must_be_there(tmp_path: Path) -> None:
    write_open_clip(tmp_path / "source", "clip")
    (tmp_path / "source" / "open_clip_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="Required pretrained weights"):
        imported(tmp_path / "source", tmp_path / "v")
