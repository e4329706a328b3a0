"""`README.md` of a pushed version: a model card as the Hugging Face hub reads it.

The head is YAML (https://huggingface.co/docs/hub/model-cards): licence, library, tags, base models.
The text is the model card of `braid models show`, of what the manifest says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from braid.encoders.manifest import Manifest

from .model_card import facts, lines

NAME = "README.md"
LIBRARY = "braid"
_ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def hub_card(manifest: Manifest, *, place: str, licence: str | None = None) -> str:
    """The card's text.

    Args:
        place: where the version can be pulled from.
        licence: as the hub names it; None: that of the imported models, if all name one.
    """
    from huggingface_hub import ModelCardData

    origin = manifest.config.get("model", {}).get("origin") or {}
    known = sorted(set(_licences(origin)))
    head = ModelCardData(
        license=licence or (known[0] if len(known) == 1 else "other" if known else "unknown"),
        license_name=" and ".join(known) if licence is None and len(known) > 1 else None,
        library_name=LIBRARY,
        pipeline_tag=_pipeline(manifest.modalities),
        tags=[LIBRARY, "embeddings", *manifest.modalities],
        base_model=_base_models(manifest) or None,
    )
    kinds = ", ".join(manifest.modalities)
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# {manifest.name}",
        f"A version of a braid registry. It makes vectors of {manifest.dim} values of records with "
        f"{kinds}, in the space `{manifest.space}`.",
        f"```sh\nbraid models pull {place}\n```",
        *_sections(lines(facts(manifest))),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(shown: Sequence[str]) -> Iterator[str]:
    """The lines of a model card with titles as headings."""
    for is_text, group in groupby(shown, key=lambda line: line.startswith("  ")):
        if is_text:
            yield "\n".join(["```text", *(line[2:] for line in group), "```"])
        else:
            yield from (f"## {line}" for line in group if line)


def _licences(origin: Mapping[str, Any]) -> Iterator[str]:
    """Those of an imported model, or of the models that a bridge joins."""
    if origin.get("licence"):
        yield str(origin["licence"])
    for one in origin.get("of", ()):
        yield from _licences(one)


def _pipeline(modalities: Sequence[str]) -> str:
    return "sentence-similarity" if list(modalities) == ["text"] else "feature-extraction"


def _base_models(manifest: Manifest) -> list[str]:
    """The encoders' sources that are repositories of the hub, not folders or packages."""
    encoders = manifest.config.get("model", {}).get("encoders", {})
    sources = {str(encoder.get("source") or "") for encoder in encoders.values()}
    return sorted(
        source for source in sources if _ON_THE_HUB.fullmatch(source) and not Path(source).exists()
    )
