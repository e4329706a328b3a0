"""Zero-shot predictions of imported models: those of the source's own scores."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torchaudio.functional import resample

from braid.encoders import Embedder, Embedding, Sample
from braid.encoders.importing import import_model
from tests.encoders.joint_models import write_clap, write_clip, write_siglip
from tests.encoders.test_importing import imported, write_sentence_transformer
from tests.encoders.test_importing_joint import PICTURES, SOUNDS

CLASSES = {"kind": ["red bird", "green branch", "a sound"], "colour": ["red", "green"]}
PROMPT = "a photo of {}."


def embedded(folder: Path, **values: Any) -> Embedding:
    with Embedder.load(folder, device="cpu") as embedder:
        return embedder.embed([Sample(id="1", **values)])[0]


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_clip, write_siglip])
def test_a_picture_s_classes_are_those_of_transformers(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    source = tmp_path / "source"
    write(source)
    imported(source, tmp_path / "v", classes=CLASSES, prompt=PROMPT)
    one = embedded(tmp_path / "v", image=PICTURES["4:3"])
    net = AutoModel.from_pretrained(source).eval()
    pixels = AutoImageProcessor.from_pretrained(source)(
        images=Image.open(io.BytesIO(PICTURES["4:3"])), return_tensors="pt"
    )
    tokenizer = AutoTokenizer.from_pretrained(source)
    asked = {"padding": "max_length"} if write is write_siglip else {"padding": True}
    for task, names in CLASSES.items():
        texts = [PROMPT.replace("{}", name) for name in names]
        batch = tokenizer(texts, return_tensors="pt", **asked)
        if write is write_siglip:
            batch.pop("attention_mask", None)
        with torch.no_grad():
            probs_C = net(**batch, **pixels).logits_per_image[0].softmax(0).tolist()
        prediction = one.tasks[task]
        assert prediction.probs == pytest.approx(dict(zip(names, probs_C, strict=True)), abs=2e-3)
        best = names[int(np.argmax(probs_C))]
        assert prediction.label == prediction.by["image"]["label"] == best


@pytest.mark.slow
def test_a_sound_s_classes_take_the_scale_of_sounds(tmp_path: Path) -> None:
    from transformers import AutoFeatureExtractor, AutoTokenizer, ClapModel

    source = tmp_path / "source"
    write_clap(source)
    net = ClapModel.from_pretrained(source).eval()
    with torch.no_grad():
        net.logit_scale_a.fill_(2.0)
        net.logit_scale_t.fill_(1.0)
    net.save_pretrained(source)
    manifest = imported(source, tmp_path / "v", classes=CLASSES, prompt=PROMPT)
    assert manifest.metrics["zero_shot"]["scale"] == pytest.approx(
        {"text": np.exp(1.0), "audio": np.exp(2.0), "fused": np.exp(2.0)}, rel=1e-5
    )
    one = embedded(tmp_path / "v", audio=SOUNDS["8 kHz"])
    wave_N, rate = soundfile.read(io.BytesIO(SOUNDS["8 kHz"]), dtype="float32")
    wave_N = resample(torch.from_numpy(wave_N), rate, 48000).numpy()
    extractor = AutoFeatureExtractor.from_pretrained(source)
    sound = extractor(wave_N, sampling_rate=48000, return_tensors="pt")
    texts = [PROMPT.replace("{}", name) for name in CLASSES["kind"]]
    batch = AutoTokenizer.from_pretrained(source)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        probs_C = net(**batch, **sound).logits_per_audio[0].softmax(0).tolist()
    named = dict(zip(CLASSES["kind"], probs_C, strict=True))
    assert one.tasks["kind"].probs == pytest.approx(named, abs=2e-3)


def test_each_modality_predicts_and_the_decision_combines_them(tmp_path: Path) -> None:
    write_clip(tmp_path / "source")
    imported(tmp_path / "source", tmp_path / "v", classes=CLASSES, prompt="{}")
    both = embedded(tmp_path / "v", text="green branch", image=PICTURES["4:3"]).tasks["kind"]
    assert set(both.by) == {"text", "image", "fused"}
    assert both.by["text"]["label"] == "green branch"
    alone = embedded(tmp_path / "v", text="green branch").tasks["kind"]
    assert alone.label == "green branch"
    picture = embedded(tmp_path / "v", image=PICTURES["4:3"]).tasks["kind"]
    low, high = sorted((alone.probs["green branch"], picture.probs["green branch"]))
    assert low < both.probs["green branch"] < high


def test_a_text_model_predicts_by_cosines(tmp_path: Path) -> None:
    write_sentence_transformer(tmp_path / "source", query="a ")
    imported(tmp_path / "source", tmp_path / "v", classes=CLASSES)
    with Embedder.load(tmp_path / "v", device="cpu") as embedder:
        one = embedder.embed([Sample(id="1", text="bird sings")])[0]
        names = [Sample(id=name, text=name) for name in CLASSES["kind"]]
        class_CD = np.stack([name.fused for name in embedder.query(names).result()[1]])
    exact_C = np.exp(20.0 * class_CD @ one.fused)
    probs_C = [one.tasks["kind"].probs[name] for name in CLASSES["kind"]]
    assert probs_C == pytest.approx(list(exact_C / exact_C.sum()), abs=1e-4)


def test_classes_do_not_change_the_space(tmp_path: Path) -> None:
    write_clip(tmp_path / "source")
    plain = imported(tmp_path / "source", tmp_path / "v")
    assert plain.tasks == {}
    assert imported(tmp_path / "source", tmp_path / "w", classes=CLASSES).space == plain.space


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"classes": {"kind": ["red"]}}, "kind must be two"),
        ({"classes": {"kind": ["red", "red"]}}, "kind must be two"),
        ({"prompt": "a photo"}, "prompt must contain"),
    ],
)
def test_classes_that_cannot_be_told_apart(tmp_path: Path, asked: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        import_model(str(tmp_path), tmp_path / "v", name="v", version=1, **asked)
