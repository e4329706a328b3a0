"""A training configuration with what a TOML file changes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from braid.encoders.config import EncoderConfig, TaskConfig, from_dict
from braid.encoders.config_file import with_changes
from braid.encoders.lora import Lora
from braid.encoders.presets import preset

CHANGES = """
epochs = 3
align = 2
pairs = { text-image = 0.5 }
[model]
dim = 32
[model.limits]
text_bytes = 7000
[model.tasks]
caption = { kind = "generation", source = "text" }
[model.encoders]
audio = false
image = { kind = "resnet", options = { side = 64 } }
"""


def test_an_entry_without_a_kind_changes_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "changes.toml").write_text(
        "[model.encoders]\n"
        "text = { frozen = false, train_last = 2 }\n"
        "image = { lora = { rank = 4, targets = ['conv'] } }\n"
    )
    old = preset("demo")
    new = with_changes(old, tmp_path / "changes.toml")
    encoders = {
        **old.model.encoders,
        "text": replace(old.model.encoders["text"], frozen=False, train_last=2),
        "image": replace(old.model.encoders["image"], lora=Lora(rank=4, targets=("conv",))),
    }
    assert new == replace(old, model=replace(old.model, encoders=encoders))
    assert from_dict(new.to_dict()) == new


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "changes.toml").write_text(CHANGES)
    old = preset("tiny")
    new = with_changes(old, tmp_path / "changes.toml")
    encoders = {
        "text": old.model.encoders["text"],
        "image": EncoderConfig(kind="resnet", options={"side": 64}),
    }
    model = replace(
        old.model,
        dim=32,
        limits=replace(old.model.limits, text_bytes=7000),
        tasks={"caption": TaskConfig(kind="generation", source="text")},
        encoders=encoders,
    )
    assert new == replace(old, epochs=3, align=2.0, pairs={"text-image": 0.5}, model=model)
    (tmp_path / "none.toml").write_text("")
    for name in ("tiny", "demo"):
        assert with_changes(preset(name), tmp_path / "none.toml") == preset(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("epoch = 3", "epoch: no such field; the nearest is epochs"),
        ("[model]\nwidth = 3", "model.width: no such field; the nearest is "),
        (
            "[model.limits]\ntext_byte = 3",
            "model.limits.text_byte: no such field; the nearest is text_b",
        ),
        ("[model.encoders.text]\nkinds = 1", "model.encoders.text.kinds: no such field; the near"),
        ("[model.encoders.text]\nlora = { rang = 1 }", "model.encoders.text.lora.rang: no such fi"),
        ("[model.encoders.text]\nlora = { rank = 0 }", "lora.rank must be at least 1, is 0"),
        ("[model.encoders.text]\nlora = {}\ntrain_last = 1", "train_last must be None beside lora"),
        ("[model.encoders.text]\nfrozen = true\ntrain_last = 1", "train_last of a frozen encoder"),
        ("[model.origin]\ntype = 'clip'", "model.origin: no such field"),
        ("[model.encoders]\ntext = 3", "model.encoders.text"),
        ("epochs = 'many'", "epochs: Input should be a valid integer"),
        ("epochs = 0", "epochs must be at least 1, is 0"),
        ("contrast = 'clip'", "contrast must be one of info_nce, siglip, is 'clip'"),
        ("model = 3", "model: "),
        ("epochs = ", "changes.toml: "),
        (None, "changes.toml: "),
    ],
)
def test_an_error_names_file_and_field(tmp_path: Path, changes: str | None, message: str) -> None:
    file = tmp_path / "changes.toml"
    if changes is not None:
        file.write_text(changes)
    with pytest.raises(ValueError, match=r"changes\.toml: ") as caught:
        with_changes(preset("tiny"), file)
    assert message in str(caught.value)
