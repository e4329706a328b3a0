"""Picture encoders from transformers, on tiny checkpoints that the tests write themselves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.encoders import CheckpointError
from braid.encoders.backbones.base import Encoder
from braid.encoders.backbones.image_towers import VisionModel, Vit, preprocessing
from braid.encoders.backbones.registry import encoder_class
from braid.encoders.backbones.sub_batches import encode_all
from braid.encoders.config import EncoderConfig, Limits
from tests.encoders.checkpoints import (
    CLIP_PICTURES,
    PICTURES,
    SIDE,
    through_a_version,
    write_clip,
    write_model,
    write_preprocessor,
    write_siglip,
)
from tests.encoders.material import png

RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2]}
RANDOM: dict[str, dict[str, Any]] = {
    "resnet": {"config": RESNET, "side": SIDE},
    "vit": {"config": PICTURES},
    "clip-image": {"config": CLIP_PICTURES},
    "siglip-image": {"config": PICTURES},
}


def write_resnet(folder: Path) -> None:
    from transformers import ResNetConfig

    write_model("ResNetForImageClassification", ResNetConfig(**RESNET), folder)


def write_vit(folder: Path) -> None:
    from transformers import ViTConfig

    write_model("ViTModel", ViTConfig(**PICTURES), folder)


WRITE: dict[str, Callable[[Path], None]] = {
    "resnet": write_resnet,
    "vit": write_vit,
    "clip-image": write_clip,
    "siglip-image": write_siglip,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind, write in WRITE.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        write(made[kind])
        write_preprocessor(made[kind])
    return made


def create(kind: str, source: Path | None, **options: Any) -> VisionModel:
    config = EncoderConfig(kind=kind, source=str(source) if source else None, options=options)
    encoder = encoder_class("image", config).create(config).eval()
    assert isinstance(encoder, VisionModel)
    return encoder


def pictures(encoder: Encoder) -> list[Any]:
    colours = [(200, 30, 40), (20, 180, 90), (250, 250, 10)]
    return [encoder.prepare(png(colour, (40, 30)), Limits())[0] for colour in colours]


def normalised(inputs: list[Any]) -> Tensor:
    """What the processor of `write_preprocessor` makes of pixels."""
    pixels_BCHW = torch.stack([torch.from_numpy(value) for value in inputs]) / 255
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    return (pixels_BCHW - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def plain_resnet(folder: Path, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    from transformers import ResNetModel

    out = ResNetModel.from_pretrained(folder).eval()(pixels_BCHW)
    return out.pooler_output[:, :, 0, 0], out.last_hidden_state.flatten(2).transpose(1, 2)


def plain_vit(folder: Path, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    from transformers import ViTModel

    out = ViTModel.from_pretrained(folder).eval()(pixels_BCHW)
    return out.pooler_output, out.last_hidden_state[:, 1:]


def plain_clip(folder: Path, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    from transformers import CLIPModel

    out = CLIPModel.from_pretrained(folder).eval().get_image_features(pixels_BCHW)
    return out.pooler_output, out.last_hidden_state[:, 1:]


def plain_siglip(folder: Path, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    from transformers import SiglipModel

    out = SiglipModel.from_pretrained(folder).eval().get_image_features(pixels_BCHW)
    return out.pooler_output, out.last_hidden_state


PLAIN: dict[str, Callable[[Path, Tensor], tuple[Tensor, Tensor]]] = {
    "resnet": plain_resnet,
    "vit": plain_vit,
    "clip-image": plain_clip,
    "siglip-image": plain_siglip,
}
CELLS = {"resnet": 16, "vit": 16, "clip-image": 16, "siglip-image": 16}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITE)
def test_it_equals_the_plain_model(folders: dict[str, Path], kind: str) -> None:
    encoder = create(kind, folders[kind])
    inputs = pictures(encoder)
    with torch.no_grad():
        pooled_BF, tokens_BTF = PLAIN[kind](folders[kind], normalised(inputs))
        result = encoder(*encoder.collate(inputs))
    assert encoder.width == pooled_BF.shape[1]
    wanted_BF = torch.nn.functional.normalize(pooled_BF, dim=1)
    assert torch.allclose(result.pooled_BF, wanted_BF, atol=1e-4)
    assert tokens_BTF.shape[1] == CELLS[kind]
    assert torch.allclose(result.tokens_BTF, tokens_BTF, atol=1e-4)
    assert float((wanted_BF[0] - wanted_BF[1]).abs().max()) > 1e-3, "the pictures look the same"


def test_clip_before_its_projection(folders: dict[str, Path]) -> None:
    from transformers import CLIPModel

    encoder = create("clip-image", folders["clip-image"], projected=False)
    inputs = pictures(encoder)
    tower = CLIPModel.from_pretrained(folders["clip-image"]).eval().vision_model
    with torch.no_grad():
        wanted_BF = tower(normalised(inputs)).pooler_output
    found_BF = encode_all(encoder, inputs, torch.device("cpu")).pooled_BF
    assert encoder.width == 32
    assert torch.allclose(found_BF, torch.nn.functional.normalize(wanted_BF, dim=1), atol=1e-4)


@pytest.mark.parametrize("kind", WRITE)
def test_from_a_folder_through_a_version(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    source = Path(shutil.copytree(folders[kind], tmp_path / "source"))
    before = create(kind, source)
    model = through_a_version("image", EncoderConfig(kind=kind, source=str(source)), tmp_path / "v")
    shutil.rmtree(source)
    model.check()
    after: Any = model.net.encoder("image")  # type: ignore[attr-defined]
    assert after.settings == before.settings
    assert (after.settings["side"], after.settings["mean"]) == (SIDE, [0.4, 0.5, 0.6])
    inputs = pictures(before)
    there, here = (encode_all(e, inputs, torch.device("cpu")).pooled_BF for e in (after, before))
    assert torch.allclose(there, here, atol=1e-6)


@pytest.mark.parametrize("kind", RANDOM)
def test_from_random_weights_through_a_version(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(kind=kind, options=RANDOM[kind])
    model = through_a_version("image", config, tmp_path / "v")
    assert model.net.encoder("image").side == SIDE  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", WRITE)
def test_blocks_run_from_input_to_output(folders: dict[str, Path], kind: str) -> None:
    encoder = create(kind, folders[kind])
    seen: list[int] = []
    for place, block in enumerate(encoder.trainable_blocks()):
        block.register_forward_hook(lambda *_, place=place: seen.append(place))
    encode_all(encoder, pictures(encoder)[:1], torch.device("cpu"))
    assert seen == list(range(3 if kind == "resnet" else 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 64}, r"side: the options say 64, .* says 32"),
        ({"mean": [0.5, 0.5, 0.5]}, r"mean: the options say \[0.5, 0.5, 0.5\], .* \[0.4, 0.5, 0.6"),
        ({"std": [0.5, 0.5, 0.5]}, r"std: the options say .* says \[0.2, 0.3, 0.25\]"),
        ({"config": PICTURES}, "options config: .* is for random weights"),
    ],
)
def test_options_that_contradict_the_checkpoint(
    folders: dict[str, Path], options: dict[str, Any], message: str
) -> None:
    create("vit", folders["vit"], side=SIDE, mean=[0.4, 0.5, 0.6])  # the same is no contradiction
    with pytest.raises(CheckpointError, match=message):
        create("vit", folders["vit"], **options)


def test_a_processor_that_contradicts_the_model(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["vit"], tmp_path / "vit"))
    write_preprocessor(folder, size=64)
    with pytest.raises(CheckpointError, match=r"side: the options say 64, .*image_size.* says 32"):
        create("vit", folder)


def test_without_a_processor_the_options_must_say(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["siglip-image"], tmp_path / "siglip"))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="does not say mean, std: give them as options"):
        create("siglip-image", folder, side=SIDE)
    encoder = create("siglip-image", folder, side=SIDE, mean=[0.1, 0.2, 0.3], std=[1, 1, 1])
    assert encoder.settings["mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"size": 48}, (48, 0.4)),
        ({"size": {"shortest_edge": 48}}, (48, 0.4)),
        ({"size": 99, "crop_size": {"height": 48, "width": 48}, "do_center_crop": True}, (48, 0.4)),
        ({"size": 99, "crop_size": 48, "do_center_crop": False}, (99, 0.4)),
        ({"image_mean": [102.0, 102.0, 102.0], "do_rescale": False}, (SIDE, 0.4)),
        ({"image_mean": [0.8] * 3, "rescale_factor": 2 / 255}, (SIDE, 0.4)),
        ({"do_normalize": False}, (SIDE, 0.0)),
    ],
)
def test_what_a_processors_file_means(
    tmp_path: Path, fields: dict[str, Any], wanted: tuple[int, float]
) -> None:
    write_preprocessor(tmp_path, **fields)
    result = preprocessing(str(tmp_path), {"side": None, "mean": None, "std": None})
    assert (result["side"], result["mean"][0]) == wanted


def test_a_processor_of_pictures_that_are_not_square(tmp_path: Path) -> None:
    write_preprocessor(tmp_path, size={"height": 32, "width": 64})
    with pytest.raises(CheckpointError, match="which is no square"):
        preprocessing(str(tmp_path), {"side": None, "mean": None, "std": None})


def test_a_classifier_has_no_pooler(tmp_path: Path) -> None:
    from transformers import ViTConfig

    write_model("ViTForImageClassification", ViTConfig(**PICTURES), tmp_path)
    write_preprocessor(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks 2 weights of ViTModel: pooler\.dense\.bias"):
        create("vit", tmp_path)
    encoder = create("vit", tmp_path, pooler=False)
    assert encode_all(encoder, pictures(encoder), torch.device("cpu")).pooled_BF.shape == (3, 32)
    config = EncoderConfig(kind="vit", source=str(tmp_path), options={"pooler": False})
    through_a_version("image", config, tmp_path / "v")


def test_half_precision_is_read_as_float32(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import ViTModel

    ViTModel.from_pretrained(folders["vit"]).half().save_pretrained(tmp_path)
    write_preprocessor(tmp_path)
    encoder = create("vit", tmp_path)
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("/nowhere/at/all", {"side": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}, "no ViTModel at"),
        ("/nowhere/at/all", {}, "does not say side, mean, std"),
        ("package:something-else", {}, "unknown package"),
        (None, {"config": {"hiden_size": 32}}, "ViTConfig has no hiden_size"),
        (None, {"config": {"hidden_size": "wide"}}, "ViTConfig refuses"),
        (None, {"config": PICTURES, "side": 64}, "side: the options say 64"),
    ],
)
def test_what_cannot_be_made_says_why(
    source: str | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Vit.create(EncoderConfig(kind="vit", source=source, options=options))
