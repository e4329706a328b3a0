"""The engine's setting, its field in `vectors`, and its folder beside a version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from braid.encoders import Sample
from braid.encoders.engines import packages
from braid.encoders.model.null import NullModel
from braid.stream.cli.common import check_model
from braid.stream.errors import ConfigError
from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import Record, decode_vector
from braid.stream.registry.versions import Registry
from braid.stream.settings import Settings, load
from braid.stream.worker.in_flight import Item
from braid.stream.worker.offsets import Ticket
from braid.stream.worker.outputs import OutputTopics


def test_a_missing_package_is_an_error_at_start_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"model\.engine: .*'braid-stream\[openvino\]'"):
        check_model(Settings().replace(model={"engine": "openvino"}))
    check_model(Settings().replace(model={"engine": "auto"}))  # which leaves it out


def test_an_unknown_engine_is_an_error_that_names_the_others() -> None:
    with pytest.raises(ConfigError, match=r"model\.engine: .*'openvino'.*\(got 'tensorrt'\)"):
        load(model={"engine": "tensorrt"})


def test_a_row_names_the_engine_that_made_it() -> None:
    model = NullModel(16)
    (embedding,) = model.encode([model.prepare(Sample(id="a", text="b"))])
    message = Message(topic="records", partition=0, offset=3, key=b"a", value=b"")
    item = Item(message, Ticket(0, 3), 0.0, record=Record(id="a", ts=1, text="b"))
    topics = OutputTopics(Settings(), "g0001")
    for on in ({}, {"text": "torch int8"}):
        row, _ = topics.embedded(item, replace(embedding, engine=on), model, now_ms=2.0)
        assert decode_vector(row.value or b"").engine == on


def test_a_removed_version_takes_its_exports_along(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    exports = registry.path("braid-0001").with_name("braid-0001.engines")
    for folder in (registry.path("braid-0001"), exports):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    registry.remove("braid-0001")
    assert list((tmp_path / "versions").iterdir()) == []
