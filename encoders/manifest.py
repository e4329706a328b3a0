"""`manifest.json`, the metadata of a model version. Imports no torch: the registry reads it too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from .errors import CheckpointError

FORMAT = 3
FILE_NAME = "manifest.json"
WEIGHTS = "model.safetensors"


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces, so that equal values hash equally."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: object, length: int = 64) -> str:
    """The first `length` hex digits of the sha256 of `value` as canonical JSON."""
    return sha256(canonical(value).encode()).hexdigest()[:length]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The metadata of one version.

    Attributes:
        tasks: task name to `braid.encoders.tasks.Task.to_dict()`.
        config: the whole training configuration, `config_sha256` its hash.
        preprocessing: hash of limits, tokeniser, picture and sound settings.
        parent: name of the version whose weights it started from.
        window: where its training data came from, opaque here (topic offsets).
        metrics: measured on the validation split.
        calibration: the decision's weights and temperatures.
        files: every other file of the folder with its sha256.
        golden: inputs and expected outputs for `Model.check`.
        code: versions of the packages that made it.
        verdict: the judge's, against the champion at that time: `passed`, `decision`, `reason`,
            `gates` with their numbers; empty for a version that was not judged.
        compatibility: which space was chosen and why, the numbers of every choice tried, and the
            `adapter`, if there is one; empty likewise.
        reference: `braid.encoders.output_statistics.Tally.to_plain()` of its outputs on the
            validation split. Drift is measured against it. Empty where nothing was held out, and in
            old versions.
        pulled: of a version that another registry made, the `place` that it was pulled from, and
            its `name` and `parent` there. Names in its verdict are of that registry.
    """

    name: str
    version: int
    space: str
    dim: int
    modalities: Sequence[str]
    preprocessing: str
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    config_sha256: str = ""
    parent: str | None = None
    window: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    golden: Mapping[str, Any] = field(default_factory=dict)
    created_at: str = ""
    code: Mapping[str, str] = field(default_factory=dict)
    verdict: Mapping[str, Any] = field(default_factory=dict)
    compatibility: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    pulled: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        """Readable, stable JSON; NaN and infinity are refused with ValueError."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The manifest in `text`. Fields that this code does not know are left out.

        Raises:
            CheckpointError: not JSON, another format, a missing or wrongly typed field.
        """
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as error:
            raise CheckpointError(f"the manifest is not JSON: {error}") from error
        if not isinstance(raw, dict):
            raise CheckpointError("the manifest is not a JSON object")
        if raw.get("format") != FORMAT:
            raise CheckpointError(
                f"manifest format {raw.get('format')!r}, this code reads {FORMAT}"
            )
        known = {f.name for f in fields(cls)}
        required: dict[str, type] = {
            "name": str,
            "version": int,
            "space": str,
            "dim": int,
            "modalities": list,
            "preprocessing": str,
            "tasks": dict,
            "config": dict,
            "files": dict,
            "golden": dict,
        }
        for name, kind in required.items():
            if not isinstance(raw.get(name), kind):
                raise CheckpointError(
                    f"manifest field {name!r} must be a {kind.__name__}, is {raw.get(name)!r:.80}"
                )
        for name in ("verdict", "compatibility", "reference", "pulled"):  # absent in old versions
            if not isinstance(raw.setdefault(name, {}), dict):
                raise CheckpointError(f"manifest field {name!r} must be a dict")
        return cls(**{name: value for name, value in raw.items() if name in known})


def engines_folder(version: Path) -> Path:
    """Where the exports of a version for engines are: beside its folder, which is never written."""
    return version.with_name(f"{version.name}.engines")


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a version folder.

    Raises:
        CheckpointError: it is missing, unreadable or not a manifest.
    """
    path = Path(folder) / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"no readable manifest at {path}: {error}") from error
    return Manifest.from_json(text)


def verify(folder: str | Path) -> Manifest:
    """Compare every file of a version with the sha256 in its manifest.

    Raises:
        CheckpointError: a file is missing, a byte differs, or the manifest contradicts itself.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if WEIGHTS not in manifest.files:
        raise CheckpointError(f"{folder}: the manifest names no {WEIGHTS}")
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{folder}: {name!r} lies outside of the version")
        if not path.is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
        actual = sha256_of(path)
        if actual != expected:
            raise CheckpointError(
                f"{folder}: {name} is damaged: sha256 {actual}, wanted {expected}"
            )
    if manifest.config:
        if digest(manifest.config) != manifest.config_sha256:
            raise CheckpointError(f"{folder}: the configuration does not fit its sha256")
        dim = manifest.config["model"]["dim"]
        if dim != manifest.dim:
            raise CheckpointError(f"{folder}: dim is {manifest.dim}, the configuration says {dim}")
    return manifest


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
