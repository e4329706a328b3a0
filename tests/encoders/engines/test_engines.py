"""An engine gives torch's vectors, or it does not serve."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

from braid.encoders import Embedder, Sample, load, train, verify
from braid.encoders.backbones.bert import Bert
from braid.encoders.backbones.efficientnet import EfficientNetLite0
from braid.encoders.backbones.text import BertText
from braid.encoders.config import EncoderConfig, ModelConfig, TrainConfig, from_dict
from braid.encoders.engines import export, packages, runtimes, serve
from braid.encoders.engines.gate import Gate, compared_pairs, recall
from braid.encoders.errors import EngineError
from braid.encoders.feature_cache import FeatureCache
from braid.encoders.lora import Lora
from braid.encoders.manifest import engines_folder, read_manifest
from braid.encoders.model.checkpoint import load_folder, save
from braid.encoders.model.net import Net
from braid.encoders.model.torch_model import TorchModel
from braid.encoders.tasks import Task
from tests.conftest import made_once
from tests.encoders.material import png
from tests.encoders.material import samples as coloured

WORDS = [f"w{number}" for number in range(60)]
BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
ROOT = Path(__file__).parents[3]
SIDE = 33  # paddings of several layers are uneven
EXPORTED = ("onnx", "openvino")
Trunk = Callable[..., tuple[Tensor, ...]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT and an EfficientNet with random weights, and a task."""
    return made_once(tmp_path_factory, "engines-version", _write) / "v-0001"


def _write(folder: Path) -> None:
    tokenizer = Tokenizer(WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="w1"))
    tokenizer.pre_tokenizer = Whitespace()
    config = TrainConfig(
        model=ModelConfig(
            encoders={
                "text": EncoderConfig(kind="transformer"),
                "image": EncoderConfig(kind="efficientnet-lite0", options={"side": SIDE}),
            },
            dim=16,
        )
    )
    torch.manual_seed(0)
    encoders = {
        "text": BertText(Bert(BERT), BERT, tokenizer.to_str()),
        "image": EfficientNetLite0(SIDE),
    }
    net = Net(config.model, encoders, {"kind": Task(classes=("a", "b"))})
    save(net, folder / "v-0001", config=config, name="v-0001", version_number=1)


@pytest.fixture
def own(bert: Path, tmp_path: Path) -> Path:
    """A version in a folder where nothing is exported yet."""
    (tmp_path / "v-0001").symlink_to(bert)
    return tmp_path / "v-0001"


def served(folder: Path, engine: str, precision: str = "float32") -> TorchModel:
    model = load(folder, device="cpu", engine=engine, precision=precision)
    assert isinstance(model, TorchModel)
    return model


def samples(chance: random.Random, count: int) -> list[Sample]:
    """Each has a text of 1 to 20 words, a picture, or both."""

    def one(number: int) -> Sample:
        text = " ".join(chance.choices(WORDS, k=chance.randint(1, 20)))
        colour = tuple(chance.randrange(256) for _ in range(3))
        picture = png(colour, (chance.randint(10, 60), chance.randint(10, 60)))
        has = chance.choice(("text", "image", "both"))
        return Sample(
            id=f"s{number}",
            text=None if has == "image" else text,
            image=None if has == "text" else picture,
        )

    return [one(number) for number in range(count)]


def vectors(model: TorchModel, some: list[Sample]) -> list[dict[str, Any]]:
    return [
        {**one.by, "fused": one.fused}
        for one in model.encode([model.prepare(sample) for sample in some])
    ]


@pytest.mark.parametrize(
    ("engine", "precision", "on"),
    [
        ("onnx", "float32", {"image": "onnx float32"}),
        ("openvino", "float32", {"image": "openvino float32"}),
        ("torch", "bf16", {"text": "torch bf16", "image": "torch bf16"}),
        ("torch", "int8", {"text": "torch int8", "image": "torch bf16"}),
        ("onnx", "int8", {"text": "torch int8", "image": "onnx float32"}),
    ],
)
def test_vectors_equal_torchs_in_any_batch(
    bert: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    precision: str,
    on: dict[str, str],
) -> None:
    monkeypatch.setattr(runtimes, "_has_bf16", lambda: True)  # slow without, and the same
    plain, model = served(bert, "torch"), served(bert, engine, precision)
    assert (plain.engine, model.engine) == ({}, on)
    exact = all(name.endswith("float32") for name in on.values())
    for seed in range(8):
        chance = random.Random(seed)
        some = samples(chance, chance.randint(1, 30))
        for got, want in zip(vectors(model, some), vectors(plain, some), strict=True):
            assert got.keys() == want.keys()
            for name in want:
                if exact:
                    np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5)
                else:
                    assert float(got[name] @ want[name]) > 0.98
    model.check()


def test_adapters_are_in_the_weights_that_engines_run(bert: Path, tmp_path: Path) -> None:
    """LoRA in the text encoder, which int8 runs; the pictures of that version on the others."""
    config = from_dict(read_manifest(bert).config)
    frozen = {
        name: replace(encoder, frozen=True, lora=Lora(rank=2) if name == "text" else None)
        for name, encoder in config.model.encoders.items()
    }
    config = replace(config, model=replace(config.model, encoders=frozen), epochs=2, refit=False)
    config = replace(config, encoder_lr=0.3, batch=8)
    some, out = samples(random.Random(0), 40), tmp_path / "v-0002"
    more: dict[str, Any] = {"name": out.name, "version": 2, "seed": 0, "device": "cpu"}
    train(some, config, parent=bert, out=out, queries=0, **more)
    before, plain = served(bert, "torch"), served(out, "torch")
    texts = [Sample(id=one.id, text=one.text) for one in some if one.text]
    both = zip(vectors(before, texts), vectors(plain, texts), strict=True)
    moved = [float(old["text"] @ new["text"]) for old, new in both]
    assert min(moved) < 0.99
    for engine, precision, on, least in (
        ("onnx", "float32", {"image": "onnx float32"}, 0.99999),
        ("openvino", "float32", {"image": "openvino float32"}, 0.99999),
        ("torch", "int8", {"text": "torch int8"}, 0.98),
    ):
        model = served(out, engine, precision)
        assert on.items() <= model.engine.items()
        for got, want in zip(vectors(model, some), vectors(plain, some), strict=True):
            assert min(float(got[name] @ want[name]) for name in want) > least, engine


FIRST_INFERENCES = """
import faulthandler, io, os, sys, threading, torch
from braid.encoders.engines.runtimes import _openvino

faulthandler.dump_traceback_later(60, exit=True)  # needs no GIL
batch, file = (torch.ones(3, 2),), io.BytesIO()
names = {"input_names": ["in0"], "output_names": ["out0"], "dynamic_axes": {"in0": {0: "B"}}}
torch.onnx.export(torch.nn.Linear(2, 2), batch, file, dynamo=False, **names)
trunk, ready, ended = _openvino(file.getvalue(), "float32", batch), threading.Barrier(12), []

def wait_for_the_gil():
    while True:
        pass

def infer():
    ready.wait()
    ended.append(trunk(*batch)[0].shape)

sys.setswitchinterval(1e-6)
for _ in range(3):
    threading.Thread(target=wait_for_the_gil, daemon=True).start()
threads = [threading.Thread(target=infer) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert ended == [(3, 2)] * 12
os._exit(0)
"""


@pytest.mark.slow
def test_first_inferences_of_several_threads_do_not_wait_for_each_other() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FIRST_INFERENCES]
    assert subprocess.run(command, cwd=ROOT, timeout=120).returncode == 0


def test_an_embedding_says_what_made_it(bert: Path) -> None:
    with Embedder.load(bert, device="cpu", engine="onnx") as embedder:
        text, picture = embedder.embed([Sample(id="t", text="w5"), Sample(id="p", image=png())])
    assert (text.engine, picture.engine) == ({}, {"image": "onnx float32"})


def test_engines_share_no_cached_features(bert: Path) -> None:
    cache = FeatureCache(1 << 20)
    samples = [Sample(id="a", text="w5"), Sample(id="b", image=png())]
    for engine, cached in (("torch", [False, False]), ("onnx", [True, False])):
        with Embedder.load(bert, device="cpu", engine=engine, cache=cache) as embedder:
            assert [one.cached for one in embedder.embed(samples)] == cached
            assert [one.cached for one in embedder.embed(samples)] == [True, True]


def wrong(run: Trunk) -> Trunk:
    return lambda *batch: tuple(output * 1.2 + 0.05 for output in run(*batch))


@pytest.mark.parametrize("engine", ["onnx", "auto"])
def test_a_wrong_engine_does_not_serve(
    bert: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    engine: str,
) -> None:
    onnx, openvino = runtimes._onnx, runtimes._openvino
    monkeypatch.setattr(runtimes, "_onnx", lambda content: wrong(onnx(content)))
    monkeypatch.setattr(runtimes, "_openvino", lambda *given: wrong(openvino(*given)))
    caplog.set_level(logging.INFO)
    model = served(bert, engine)
    assert model.engine == {}
    assert "image does not run on onnx in float32: golden output" in caplog.text
    assert "image runs on torch in float32" in caplog.text
    some = samples(random.Random(1), 5)
    for got, want in zip(vectors(model, some), vectors(served(bert, "torch"), some), strict=True):
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])


def test_auto_takes_the_fastest_that_passes(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gains = {"onnx": 1.3, "openvino": 2.0}
    made = runtimes.made
    names: list[str] = []

    def noted(engine: str, *given: Any) -> Any:
        names.append(engine)
        return made(engine, *given)

    monkeypatch.setattr(serve, "made", noted)
    monkeypatch.setattr(serve, "_gain", lambda *_: gains[names[-1]])
    assert served(bert, "auto").engine == {"image": "openvino float32"}
    gains |= {"onnx": 2.5}
    assert served(bert, "auto").engine == {"image": "onnx float32"}
    gains |= {"onnx": 1.05, "openvino": 1.0}
    assert served(bert, "auto").engine == {}


@pytest.mark.parametrize("engine", EXPORTED)
def test_a_missing_package_is_an_error_that_names_the_extra(
    bert: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=rf"pip install 'braid-stream\[{engine}\]'"):
        load(bert, engine=engine)
    assert served(bert, "auto").engine == {}


def test_an_export_is_kept_and_made_again_when_damaged(
    own: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exported: list[int] = []
    real = export._exported

    def counted(*given: Any) -> bytes:
        exported.append(1)
        return real(*given)

    monkeypatch.setattr(export, "_exported", counted)
    served(own, "onnx")
    served(own, "openvino")  # from the same file
    assert len(exported) == 1
    file = engines_folder(own) / "image.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100] + bytes(100))
    assert served(own, "onnx").engine == {"image": "onnx float32"}
    assert len(exported) == 2
    assert "damaged" in caplog.text
    assert file.read_bytes() == whole
    file.with_suffix(".json").unlink()
    served(own, "onnx")
    assert len(exported) == 3
    verify(own)  # the version itself is as it was
    assert sorted(path.name for path in engines_folder(own).iterdir()) == [
        "image.json",
        "image.onnx",
    ]


def test_an_engine_that_mixes_up_frozen_queries_does_not_serve(
    version: Path, tmp_path: Path
) -> None:
    model, gate = with_queries(version, tmp_path, [one for one in coloured(60) if one.image])
    gate.check(model, "image", "float32")
    mixed_up(model, "image")
    with pytest.raises(EngineError, match=r"recall@10 .* among its own vectors"):
        gate.check(model, "image", "float32")


def test_texts_without_other_modalities_are_found_by_their_halves(
    bert: Path, tmp_path: Path
) -> None:
    texts = [Sample(id=f"t{n}", text=" ".join(words)) for n, words in enumerate(permuted(40))]
    model, gate = with_queries(bert, tmp_path, texts)
    gate.check(model, "text", "float32")
    gate.check(model, "image", "float32")  # no query has a picture
    mixed_up(model, "text")
    with pytest.raises(EngineError, match="recall@10 of the frozen queries"):
        gate.check(model, "text", "float32")


def test_recall_counts_a_vector_after_its_equals() -> None:
    """Otherwise an engine that gives every input the same vector would find everything."""
    some = {f"r{number}": np.ones(2, np.float32) for number in range(12)}
    vectors = {"text": some, "image": some}
    assert compared_pairs(vectors, "text") == [("text", "image"), ("image", "text")]
    assert recall(vectors, vectors, compared_pairs(vectors, "text")) == 0


def permuted(count: int) -> list[list[str]]:
    chance = random.Random(0)
    return [chance.sample(WORDS, 12) for _ in range(count)]


def with_queries(version: Path, folder: Path, samples: list[Sample]) -> tuple[TorchModel, Gate]:
    """A version with the weights of another, and these frozen queries."""
    net = load_folder(version, device="cpu").net
    save(
        net,
        folder / "q-0001",
        config=from_dict(read_manifest(version).config),
        name="q-0001",
        version_number=1,
        queries=samples,
    )
    model = served(folder / "q-0001", "torch")
    return model, Gate(model, folder / "q-0001")


def mixed_up(model: TorchModel, name: str) -> None:
    """Let an encoder swap the features of the inputs in a batch larger than the golden one."""
    encoder = model.net.encoder(name)
    plain = encoder.trunk

    def mixed(*batch: Tensor) -> tuple[Tensor, ...]:
        outputs = plain(*batch)
        golden_batch = len(batch[0]) < 3
        return outputs if golden_batch else tuple(output.flip(0) for output in outputs)

    encoder.trunk = mixed  # type: ignore[method-assign]
