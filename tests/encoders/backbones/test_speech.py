"""The speech embedding: the network that its package ships, over whole sounds."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from braid.encoders import CheckpointError, load, preset, train
from braid.encoders.backbones.base import Array
from braid.encoders.backbones.speech_embedding import (
    FIELD,
    HOP,
    LEVEL,
    STRIDE,
    WINDOW,
    SpeechEmbedding,
    weights_file,
)
from braid.encoders.backbones.sub_batches import encode_all
from braid.encoders.config import EncoderConfig
from tests.encoders.material import samples

CPU = torch.device("cpu")
SOURCE = "package:openwakeword"
CONFIG = EncoderConfig(kind="speech-embedding", source=SOURCE)
WHAT = "the demo extra is not installed"


def spoken(seconds: float = 0.9) -> Array:
    """Something with the ups and downs of speech, int16[N]."""
    rng = np.random.default_rng(0)
    at_N = np.arange(int(seconds * 16_000)) / 16_000
    tone_N = np.sin(2 * np.pi * (180 + 60 * np.sin(9 * at_N)) * at_N) ** 5
    wave_N = 9000 * tone_N * np.sin(4 * at_N) ** 2 + 40 * rng.normal(size=len(at_N))
    int16_N: Array = wave_N.astype(np.int16)
    return int16_N


def test_it_hears_what_the_packages_own_runtime_hears() -> None:
    runtime = pytest.importorskip("onnxruntime", reason=WHAT)
    pytest.importorskip("onnx", reason=WHAT)
    place = weights_file(SOURCE).parent
    encoder = SpeechEmbedding.create(CONFIG).eval()
    features = encode_all(encoder, [spoken()], CPU, tokens=True)
    assert features.tokens_BTF is not None
    wave_BN, lengths_B = encoder.collate([spoken()])
    # The same samples through the package's two networks, a window at a time as it does.
    framed_N = np.pad(wave_BN[0].numpy().astype(np.float32), WINDOW // 2)
    (frames,) = runtime.InferenceSession(str(place / "melspectrogram.onnx")).run(
        None, {"input": framed_N[None]}
    )
    frames_TM = frames.squeeze() / 10 + 2
    frames_TM += LEVEL - frames_TM.max()
    real = 1 + int(lengths_B[0]) // HOP
    windows = [frames_TM[at : at + FIELD] for at in range(0, real - FIELD + 1, STRIDE)]
    (wanted,) = runtime.InferenceSession(str(place / "embedding_model.onnx")).run(
        None, {"input_1": np.stack(windows)[..., None].astype(np.float32)}
    )
    wanted_TF = torch.from_numpy(wanted.reshape(len(windows), -1))
    assert features.tokens_BTF[0].shape == wanted_TF.shape
    assert torch.allclose(features.tokens_BTF[0], wanted_TF, atol=1e-3)  # values go up to 80
    assert wanted_TF.std() > 1


def test_loudness_does_not_matter() -> None:
    encoder = SpeechEmbedding().eval()
    loud = spoken()
    features = [encode_all(encoder, [wave], CPU).pooled_BF for wave in (loud, loud // 4)]
    assert torch.allclose(features[0], features[1], atol=0.02)
    assert not torch.allclose(
        features[0], encode_all(encoder, [loud[:5000]], CPU).pooled_BF, atol=0.02
    )


def test_a_sound_shorter_than_a_token_trains() -> None:
    """Spoken faster, it has fewer frames than one token sees."""
    torch.manual_seed(0)
    encoder = SpeechEmbedding(variation={"tempo": 0.5, "pitch": 0.1, "mix": 0.5, "masks": 1})
    for seed in range(8):
        torch.manual_seed(seed)
        features = encoder(*encoder.collate([np.ones(16, dtype=np.int16), spoken(0.05)]))
        assert bool(features.pooled_BF.isfinite().all())
        features.pooled_BF.sum().backward()
    gradients = [one.grad for one in encoder.parameters()]
    assert all(one is not None and bool(one.isfinite().all()) for one in gradients)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:resemblyzer", "'resemblyzer' holds no speech embedding; 'openwakeword' does"),
        ("/nowhere/model.onnx", "no speech embedding at /nowhere/model.onnx"),
    ],
)
def test_sources_that_are_refused(source: str, message: str) -> None:
    pytest.importorskip("onnx", reason=WHAT)
    with pytest.raises(CheckpointError, match=message):
        SpeechEmbedding.create(replace(CONFIG, source=source))


def test_another_network_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason=WHAT)
    other = weights_file(SOURCE).with_name("melspectrogram.onnx")
    with pytest.raises(CheckpointError, match="another network"):
        SpeechEmbedding.create(replace(CONFIG, source=str(other)))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(weights_file(SOURCE).read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"no speech embedding at .*broken\.onnx"):
        SpeechEmbedding.create(replace(CONFIG, source=str(broken)))


def test_what_the_weights_were_trained_on_is_no_option() -> None:
    SpeechEmbedding(rate=16_000, mels=32, seconds=2.0)
    with pytest.raises(CheckpointError, match="rate is 8000 in the options, 16000 in the weights"):
        SpeechEmbedding(rate=8000)
    assert SpeechEmbedding().settings["hz"] == [60.0, 3800.0]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"install 'openwakeword' \(extra \[demo\]\)"):
        SpeechEmbedding.create(CONFIG)


ALONE = """
import sys
for name in ("onnx", "openwakeword", "onnxruntime"):
    sys.modules[name] = None  # importing it now raises
from braid.encoders import load
model = load(sys.argv[1], device="cpu")
model.check()
print(model.name)
"""


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_a_version_needs_the_package_no_more(tmp_path: Path, frozen: bool) -> None:
    pytest.importorskip("onnx", reason=WHAT)
    tiny = preset("tiny")
    audio = replace(CONFIG, frozen=frozen, train_last=None if frozen else 2)
    model = replace(tiny.model, encoders={"text": tiny.model.encoders["text"], "audio": audio})
    config = replace(tiny, model=model, epochs=1, refit=False, encoder_batch=8)
    made = [replace(sample, image=None) for sample in samples(48)]
    train(made, config, out=tmp_path / "v", name="speech-0001", version=1, seed=0)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "v")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "speech-0001"
    loaded = load(tmp_path / "v", device="cpu")
    ours = dict(loaded.net.encoder("audio").named_parameters())  # type: ignore[attr-defined]
    theirs = dict(SpeechEmbedding.create(CONFIG).named_parameters())
    same = {name: torch.equal(ours[name], theirs[name]) for name in ours}
    assert same["stem.weight"]
    assert same["last.weight"] == frozen
