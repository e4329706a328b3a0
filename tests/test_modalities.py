"""What type checkers and schemas need declared names the modalities of the table, all of them."""

from dataclasses import fields
from inspect import signature
from typing import get_args

import pytest

from braid.encoders.backbones.registry import ENCODERS
from braid.encoders.types import Sample
from braid.index.calls import Query
from braid.index.service.dependencies import QueryInput
from braid.index.service.requests import SearchBody, VectorName
from braid.modalities import MEDIA, MODALITIES, listed
from braid.stream.kafka.producer import Producer
from braid.stream.kafka.schemas import Record
from braid.stream.mcp_server import Vector
from braid.stream.media.thumbnails import MAKERS
from braid.stream.settings.source_groups import SourceMap

DECLARED = {
    "Sample": [one.name for one in fields(Sample)],
    "Record": [one.name for one in fields(Record)],
    "QueryInput": [one.name for one in fields(QueryInput)],
    "SearchBody": list(SearchBody.model_fields),
    "Query": list(Query.__annotations__),
    "Producer.send": list(signature(Producer.send).parameters),
    "SourceMap": list(SourceMap.model_fields),
    "VectorName": list(get_args(VectorName)),
    "mcp_server.Vector": list(get_args(get_args(Vector)[0])),
    "ENCODERS": list(ENCODERS),
}


@pytest.mark.parametrize("name", DECLARED)
def test_a_declaration_has_the_modalities_in_the_order_of_the_table(name: str) -> None:
    own = [one for one in DECLARED[name] if one in MODALITIES]
    assert own == list(MODALITIES)


def test_what_a_card_shows_can_be_made() -> None:
    assert set(MAKERS) == {name for name, one in MODALITIES.items() if one.shown}


def test_an_ending_is_of_one_modality() -> None:
    endings = [ending for name in MEDIA for ending in MODALITIES[name].endings]
    assert len(endings) == len(set(endings))


def test_names_for_a_message() -> None:
    assert listed(("text",)) == "text"
    assert listed(("text", "image", "audio"), "or") == "text, image or audio"
