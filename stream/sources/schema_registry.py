"""The schema registry: schemas by id, over the API of Confluent's, kept in a bounded cache.

A registry that does not answer, or refuses, is not the fault of a message: `SchemaRegistryAway`. An
id that the registry does not know is; it is asked for again after UNKNOWN_S at the earliest.
"""

from __future__ import annotations

import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from braid.index.redact import redacted

from ..errors import BadRecord, ConfigError, SchemaRegistryAway
from ..kafka.packing import shown
from ..settings.source_groups import SchemaRegistry as RegistrySettings

MAGIC, PREFIX = 0, 5  # the magic byte, and the bytes of it and of a schema's id
CACHED = 1000  # schemas
UNKNOWN_S = 30.0
NOT_FOUND = {40401, 40402, 40403}  # error codes: subject, version, schema
CONNECTS = 2  # retries of a connection, within one request


@dataclass(frozen=True, slots=True)
class Reference:
    """Another schema that one names: by `name` in it, and where it is in the registry."""

    name: str
    subject: str
    version: int


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema as it is registered. `kind` is AVRO, PROTOBUF or JSON."""

    kind: str
    text: str
    references: tuple[Reference, ...] = ()


def unframed(raw: bytes) -> int:
    """The schema's id in the prefix of a key or value. Raises BadRecord: there is none."""
    if len(raw) < PREFIX or raw[0] != MAGIC:
        raise BadRecord(
            "value", f"has no schema registry's prefix, a zero byte and an id: {shown(raw[:8])}"
        )
    return int.from_bytes(raw[1:PREFIX], "big")


class SchemaRegistry:
    """A client of the registry. Used by one thread.

    Args:
        clock: monotonic seconds.

    Raises:
        ConfigError: there is no address, or the authorities cannot be read.
    """

    def __init__(
        self, settings: RegistrySettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if settings.url is None:
            raise ConfigError("schema_registry.url is not set, and a source needs it")
        self._url, self._clock = settings.url.rstrip("/"), clock
        self._schemas: OrderedDict[str, Schema] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()  # path -> when it was asked for
        headers, auth = {}, None
        if settings.token is not None:
            headers["authorization"] = f"Bearer {settings.token.get_secret_value()}"
        if settings.user is not None:
            password = settings.password.get_secret_value() if settings.password else ""
            auth = (settings.user, password)
        try:
            verify = ssl.create_default_context(cafile=settings.ca)
            transport = httpx.HTTPTransport(verify=verify, retries=CONNECTS)
            self._client = httpx.Client(
                transport=transport, timeout=settings.timeout_s, headers=headers, auth=auth
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"schema_registry.ca: {settings.ca}: {error}") from None

    def schema(self, id_: int) -> Schema:
        """The schema with an id.

        Raises:
            BadRecord: the registry does not know it.
            SchemaRegistryAway: no answer, or a refusal.
        """
        return self._get(f"/schemas/ids/{id_}", f"schema {id_}")

    def referenced(self, reference: Reference) -> Schema:
        """The schema that another one refers to. Raises as `schema`."""
        subject = httpx.URL(path=f"/{reference.subject}").raw_path.decode()[1:].replace("/", "%2F")
        return self._get(f"/subjects/{subject}/versions/{reference.version}", reference.name)

    def _get(self, path: str, what: str) -> Schema:
        if (known := self._schemas.get(path)) is not None:
            self._schemas.move_to_end(path)
            return known
        asked = self._unknown.get(path)
        if asked is None or self._clock() - asked > UNKNOWN_S:
            answer = self._answer(path)
            if answer is not None:
                schema = _schema(answer)
                _keep(self._schemas, path, schema)
                return schema
            _keep(self._unknown, path, self._clock())
        raise BadRecord("value", f"{what} is not in the schema registry")

    def _answer(self, path: str) -> dict[str, Any] | None:
        """The registry's answer; None: it knows no such schema. Raises SchemaRegistryAway."""
        where = redacted(self._url)
        try:
            response = self._client.get(self._url + path)
            body = response.json()
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise SchemaRegistryAway(f"no answer from {where}: {reason}") from None
        except ValueError:
            raise SchemaRegistryAway(
                f"{where} answers {response.status_code}, and no JSON: is it the API's?"
            ) from None
        if response.is_success and isinstance(body, dict) and isinstance(body.get("schema"), str):
            return body
        if isinstance(body, dict) and body.get("error_code") in NOT_FOUND:
            return None
        reason = redacted(str(body.get("message", "")) if isinstance(body, dict) else "")
        raise SchemaRegistryAway(f"{where} answers {response.status_code} {reason[:200]}".rstrip())


def _schema(body: dict[str, Any]) -> Schema:
    references = tuple(
        Reference(str(each["name"]), str(each["subject"]), int(each["version"]))
        for each in body.get("references") or ()
    )
    return Schema(str(body.get("schemaType") or "AVRO"), body["schema"], references)


def _keep(cache: OrderedDict[str, Any], path: str, value: Any) -> None:
    cache[path] = value
    cache.move_to_end(path)
    while len(cache) > CACHED:
        cache.popitem(last=False)
