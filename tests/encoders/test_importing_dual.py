"""Imported dual encoders beside CLIP, SigLIP and CLAP: texts and pictures as transformers embeds
them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from braid.encoders.importing import JOINT, KINDS
from tests.encoders import dual_models
from tests.encoders.test_importing import COSINE, cosines, imported
from tests.encoders.test_importing_joint import PICTURES, TEXTS, seen, theirs_of, vectors

Write = Callable[[Path], None]
PADDED = {"padding": "max_length", "max_length": 64, "return_attention_mask": False}
MODELS: dict[str, tuple[Write, dict[str, Any]]] = {
    "aimv2": (dual_models.write_aimv2, {"padding": True}),
    "align": (dual_models.write_align, {}),
    "altclip": (dual_models.write_altclip, {}),
    "blip": (dual_models.write_blip, {}),
    "chinese_clip": (dual_models.write_chinese_clip, {}),
    "metaclip_2": (dual_models.write_metaclip, {}),
    "siglip2": (dual_models.write_naflex, PADDED),
    "vision-text-dual-encoder": (dual_models.write_pair, {}),
}
"""`model_type`, to its checkpoint and how its texts are padded."""


def test_every_dual_encoder_is_compared() -> None:
    others = {"aimv2", "siglip2"}
    assert set(MODELS) == {kind for kind, kinds in KINDS.items() if kinds is JOINT} | others


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_vectors_equal_those_of_transformers(tmp_path: Path, kind: str) -> None:
    write, padded = MODELS[kind]
    source = tmp_path / "source"
    write(source)
    classes = {"colour": ["red", "green"]}
    manifest = imported(source, tmp_path / "v", classes=classes)
    assert manifest.config["model"]["origin"]["type"] == kind
    assert list(manifest.modalities) == ["text", "image"]
    ours_BD = vectors(tmp_path / "v", "text", TEXTS)
    assert cosines(ours_BD, theirs_of(source, {"text": TEXTS}, **padded)) >= COSINE
    assert float((ours_BD @ ours_BD.T).min()) < 0.99, "all texts look the same"
    ours_BD = vectors(tmp_path / "v", "image", list(PICTURES.values()))
    theirs_BD = seen(source, list(PICTURES.values()))
    low = {
        name: cosine
        for name, ours_D, theirs_D in zip(PICTURES, ours_BD, theirs_BD, strict=True)
        if (cosine := cosines(ours_D[None], theirs_D[None])) < COSINE
    }
    assert low == {}
    assert float((ours_BD @ ours_BD.T).min()) < 0.99, "all pictures look the same"
    scale = manifest.metrics["zero_shot"]["scale"]
    assert scale == pytest.approx(dict.fromkeys(("text", "image", "fused"), factor(source, padded)))


def factor(folder: Path, padded: dict[str, Any]) -> float:
    """By what the model at `folder` multiplies cosines, by its own scores of two texts."""
    import torch
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    net = AutoModel.from_pretrained(folder).eval()
    texts = AutoTokenizer.from_pretrained(folder)(
        TEXTS[:2], return_tensors="pt", **{"padding": True, **padded}
    )
    picture = Image.open(io.BytesIO(PICTURES["4:3"])).convert("RGB")
    pixels = AutoImageProcessor.from_pretrained(folder)(images=picture, return_tensors="pt")
    with torch.no_grad():
        scores_2 = net(**texts, **pixels).logits_per_text[:, 0]
        texts_2D = torch.nn.functional.normalize(net.get_text_features(**texts).pooler_output)
        image_1D = torch.nn.functional.normalize(net.get_image_features(**pixels).pooler_output)
    cosine_2 = texts_2D @ image_1D[0]
    return float((scores_2[0] - scores_2[1]) / (cosine_2[0] - cosine_2[1]))
