"""The settings of sources: topics of others that `braid ingest` turns into `records`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from .group import Group, Secret, absolute

Format = Literal["json", "avro", "protobuf", "msgpack", "text", "bytes"]


class SourceMap(Group):
    """Where the fields of a record are in a message: a path in JMESPath, or a template such as
    `"${title}: ${body}"`, whose parts are paths. `key()`, `headers()`, `timestamp()`, `position()`
    and `envelope()` are the message's key, headers, time and place, and the Debezium envelope
    around a row; `@` is the whole value."""

    id: str = Field(min_length=1, description="the record's id: a string or an integer")
    ts: str | None = Field(
        None,
        description="its time: a number in ts_unit, or text as in ISO 8601, in UTC where it names "
        "no zone; without it the message's",
    )
    ts_unit: Literal["s", "ms", "us", "ns"] = Field("ms", description="the unit of a ts in numbers")
    text: str | None = Field(
        None, description="the text; parts of a template that are absent are empty"
    )
    image: str | None = Field(
        None, description="the picture: bytes, base64, a data: URI, or a link (uri)"
    )
    audio: str | None = Field(None, description="the sound, likewise")
    video: str | None = Field(None, description="the video, likewise")
    labels: dict[str, str] = Field({}, description="by task: the label")
    meta: str | dict[str, str] = Field(
        {}, description="by name: the field of meta; or one path to an object that has them"
    )
    expects: str | list[str] | None = Field(
        None,
        description="the modalities that the whole record has, or a path to them: the message is "
        "a part, and goes to `parts`, where it is joined with others of its id",
    )


class Source(Group):
    """One topic whose messages become records. `[[sources]]` may stand any number of times."""

    topic: str = Field(min_length=1, description="the topic's full name; prefix is not put before")
    name: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.-]{0,120}$",
        description="names its consumer group and its metrics; by default the topic",
    )
    format: Format = Field(
        "json", description="of the values; text and bytes are one text, picture, sound or video"
    )
    key_format: Format | None = Field(
        None, description="of the keys; by default text, and with an envelope that of the values"
    )
    envelope: Literal["none", "debezium"] = Field(
        "none", description="debezium: changes of rows; a deletion of a row deletes the record"
    )
    schema_file: Path | None = Field(
        None,
        description="of avro an .avsc file, of protobuf a .proto file or a descriptor set, for "
        "messages that have no schema registry's wire format",
    )
    message: str | None = Field(
        None, description="of protobuf: the message's full name in schema_file"
    )
    where: str | None = Field(
        None, description="a path: messages where it gives false, nothing or empty are left out"
    )
    map: SourceMap = Field(description="where the fields of a record are in a message")

    _absolute = field_validator("schema_file", mode="after")(absolute)

    @field_validator("envelope", mode="after")
    @classmethod
    def _of_rows(cls, value: str, info: ValidationInfo) -> str:
        given = info.data.get("format")
        if value == "debezium" and given in ("text", "bytes"):
            raise ValueError(f"debezium is of rows, and format = {given!r} has none")
        return value

    @property
    def title(self) -> str:
        """Its name, or the topic's."""
        return self.name or self.topic


class SchemaRegistry(Group):
    """The schema registry of avro and protobuf sources, with the API of Confluent's."""

    url: str | None = Field(
        None,
        repr=False,
        description="such as http://host:8081, or of Apicurio http://host:8080/apis/ccompat/v7",
    )
    user: str | None = Field(None, description="for basic authentication")
    password: Secret | None = Field(None, description="for basic authentication")
    token: Secret | None = Field(None, description="a bearer token")
    ca: Path | None = Field(
        None, description="a PEM file of authorities for https; without it the system's"
    )
    timeout_s: float = Field(5.0, gt=0, le=15, description="how long one try of a request may take")

    _absolute = field_validator("ca", mode="after")(absolute)


def unique(sources: Any) -> Any:
    """The sources; raises ValueError if two have one name."""
    names = [source.title for source in sources]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two sources have the name {', '.join(sorted(doubled))}: give them names")
    return sources
