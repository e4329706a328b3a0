"""The text towers of CLIP and SigLIP, on tiny checkpoints that the tests write themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.encoders import CheckpointError
from braid.encoders.backbones.hf import read_tokenizer
from braid.encoders.backbones.registry import encoder_class
from braid.encoders.backbones.sub_batches import encode_all
from braid.encoders.backbones.text_towers import ClipText, TextTower
from braid.encoders.config import EncoderConfig, Limits
from tests.encoders.checkpoints import (
    CLIP_TEXTS,
    SIGLIP_TEXTS,
    TOKENS,
    through_a_version,
    write_clip,
    write_siglip,
    write_tokenizer,
)

TEXTS = ["A red bird", "green", "a bird sings on a green branch", "", "something else"]
LONG = " ".join(["red bird"] * 20)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    clip, siglip = tmp_path_factory.mktemp("clip"), tmp_path_factory.mktemp("siglip")
    write_clip(clip)
    write_tokenizer(clip, start=True)
    write_siglip(siglip)
    write_tokenizer(siglip, start=False)
    return {"clip-text": clip, "siglip-text": siglip}


def create(kind: str, source: Path | None, **options: Any) -> TextTower:
    config = EncoderConfig(kind=kind, source=str(source) if source else None, options=options)
    encoder = encoder_class("text", config).create(config).eval()
    assert isinstance(encoder, TextTower)
    return encoder


def unit(vectors_BF: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors_BF, dim=1)


@pytest.mark.slow
def test_clip_equals_its_text_features(folders: dict[str, Path]) -> None:
    from transformers import AutoTokenizer, CLIPModel

    encoder = create("clip-text", folders["clip-text"])
    inputs = [encoder.prepare(text, Limits())[0] for text in [*TEXTS, LONG]]
    found_BF = encode_all(encoder, inputs, CPU).pooled_BF
    tokenizer = AutoTokenizer.from_pretrained(folders["clip-text"])
    batch = tokenizer([*TEXTS, LONG], padding=True, truncation=True, return_tensors="pt")
    clip = CLIPModel.from_pretrained(folders["clip-text"]).eval()
    with torch.no_grad():
        out = clip.get_text_features(batch["input_ids"], batch["attention_mask"])
        ours = encoder(*encoder.collate(inputs))
        bare_BF = clip.text_model(batch["input_ids"], batch["attention_mask"]).pooler_output
    assert encoder.width == 24
    assert torch.allclose(found_BF, unit(out.pooler_output), atol=1e-4)
    real = batch["attention_mask"].bool()
    assert torch.equal(ours.mask_BT, real)
    assert torch.allclose(ours.tokens_BTF[real], out.last_hidden_state[real], atol=1e-4)
    assert float((found_BF[0] - found_BF[1]).abs().max()) > 1e-2, "the texts look the same"
    before = create("clip-text", folders["clip-text"], projected=False)
    assert before.width == 32
    assert torch.allclose(encode_all(before, inputs, CPU).pooled_BF, unit(bare_BF), atol=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_siglip_equals_its_text_features(
    folders: dict[str, Path], tmp_path: Path, side: str
) -> None:
    from transformers import PreTrainedTokenizerFast, SiglipModel

    folder = Path(shutil.copytree(folders["siglip-text"], tmp_path / "siglip"))
    written = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**written, "padding_side": side}))
    encoder = create("siglip-text", folder)
    inputs = [encoder.prepare(text, Limits())[0] for text in [*TEXTS, LONG]]
    assert encoder.prepare("red", Limits())[1].tokens == encoder.size(inputs[0]) == 12
    found_BF = encode_all(encoder, inputs, CPU).pooled_BF
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    batch = tokenizer([*TEXTS, LONG], padding="max_length", truncation=True, return_tensors="pt")
    siglip = SiglipModel.from_pretrained(folder).eval()
    with torch.no_grad():
        out = siglip.get_text_features(batch["input_ids"])
        ours = encoder(*encoder.collate(inputs))
    assert torch.allclose(found_BF, unit(out.pooler_output), atol=1e-4)
    assert torch.allclose(ours.tokens_BTF, out.last_hidden_state, atol=1e-4)
    assert torch.equal(ours.mask_BT, batch["attention_mask"].bool())
    assert float((found_BF[0] - found_BF[1]).abs().max()) > 1e-2, "the texts look the same"


@pytest.mark.parametrize("kind", ["clip-text", "siglip-text"])
def test_company_in_a_batch_changes_nothing(folders: dict[str, Path], kind: str) -> None:
    encoder = create(kind, folders[kind])
    inputs = [encoder.prepare(text, Limits())[0] for text in TEXTS]
    together = encode_all(encoder, inputs, CPU).pooled_BF
    alone = torch.cat([encode_all(encoder, [ids_T], CPU).pooled_BF for ids_T in inputs])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip-text", "siglip-text"])
def test_from_a_folder_through_a_version(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    source = Path(shutil.copytree(folders[kind], tmp_path / "source"))
    before = create(kind, source)
    model = through_a_version("text", EncoderConfig(kind=kind, source=str(source)), tmp_path / "v")
    shutil.rmtree(source)
    after: Any = model.net.encoder("text")  # type: ignore[attr-defined]
    assert after.settings == before.settings
    inputs = [after.prepare(text, Limits())[0] for text in TEXTS]
    assert torch.allclose(
        encode_all(after, inputs, CPU).pooled_BF,
        encode_all(before, inputs, CPU).pooled_BF,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("kind", "fields"), [("clip-text", CLIP_TEXTS), ("siglip-text", SIGLIP_TEXTS)]
)
def test_from_random_weights_through_a_version(
    folders: dict[str, Path], tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    options = {"config": fields, "tokenizer": str(folders[kind])}
    through_a_version("text", EncoderConfig(kind=kind, options=options), tmp_path / "v")


@pytest.mark.parametrize("kind", ["clip-text", "siglip-text"])
def test_blocks_run_from_input_to_output(folders: dict[str, Path], kind: str) -> None:
    encoder = create(kind, folders[kind])
    seen: list[int] = []
    for place, block in enumerate(encoder.trainable_blocks()):
        block.register_forward_hook(lambda *_, place=place: seen.append(place))
    encode_all(encoder, [encoder.prepare("red", Limits())[0]], CPU)
    assert seen == [0, 1]


def test_long_texts_keep_their_end_mark(folders: dict[str, Path]) -> None:
    encoder = create("clip-text", folders["clip-text"], max_tokens=6)
    ids_T, cost = encoder.prepare(LONG, Limits())
    assert (len(ids_T), ids_T[-1], cost.tokens) == (6, 3, 6)
    with pytest.raises(CheckpointError, match=r"max_tokens: the options say 6, .* says 12"):
        create("siglip-text", folders["siglip-text"], max_tokens=6)


def test_a_tokeniser_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    other = {**CLIP_TEXTS, "eos_token_id": 9}
    with pytest.raises(CheckpointError, match="pools at 9, the tokeniser marks the end by 3"):
        create("clip-text", None, config=other, tokenizer=str(folders["clip-text"]))
    old = {**CLIP_TEXTS, "eos_token_id": 2}  # means: the largest number of all
    with pytest.raises(CheckpointError, match="pools at 4, the tokeniser marks the end by 3"):
        create("clip-text", None, config=old, tokenizer=str(folders["clip-text"]))
    write_tokenizer(tmp_path, start=True, end=TOKENS[-1])
    create("clip-text", None, config=old, tokenizer=str(tmp_path))


@pytest.mark.slow
def test_a_tokeniser_without_a_fast_form_or_padding_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(CheckpointError, match="no tokeniser at"):
        read_tokenizer(str(tmp_path))
    shutil.copy(folders["siglip-text"] / "tokenizer.json", tmp_path)
    with pytest.raises(CheckpointError, match="has no padding token"):
        read_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (None, {"config": CLIP_TEXTS}, "needs a source, or the options config and tokenizer"),
        ("/nowhere/at/all", {}, "no tokeniser at '/nowhere/at/all'"),
        ("/nowhere/at/all", {"config": {}}, "options config: .* is for random weights"),
        ("/nowhere/at/all", {"tokenizer": "x"}, "options tokenizer: .* is for random weights"),
    ],
)
def test_what_cannot_be_made_says_why(
    source: str | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        ClipText.create(EncoderConfig(kind="clip-text", source=source, options=options))
