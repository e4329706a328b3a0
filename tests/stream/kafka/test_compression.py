"""What workers publish is compressed; what goes to `records` is not."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from aiokafka import codec
from pydantic import ValidationError

from braid.stream.kafka.sink import TransactionalSink
from braid.stream.settings import Settings
from braid.stream.settings.servers import Kafka


@pytest.mark.parametrize(
    ("setting", "source", "compression"),
    [({}, None, "lz4"), ({"compression": "zstd"}, None, "zstd"), ({}, "parts", "none")],
)
def test_the_producer_compresses_what_workers_publish(
    tmp_path: Path, setting: dict[str, str], source: str | None, compression: str
) -> None:
    settings = Settings(home=tmp_path).replace(kafka=setting)
    sink = TransactionalSink(settings, transactional_id="t", group="g", topics=[], source=source)
    assert sink._config["compression.type"] == compression


def test_another_compression_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"kafka\.compression\s+Input should be 'none'"):
        Settings(home=tmp_path, kafka={"compression": "rar"})


def test_an_index_node_reads_what_workers_may_publish() -> None:
    names = set(get_args(Kafka.model_fields["compression"].annotation)) - {"none"}
    assert names == {"lz4", "snappy", "zstd", "gzip"}
    assert {name for name in names if getattr(codec, f"has_{name}")()} == names
