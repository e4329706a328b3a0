"""The groups of settings of the servers that braid connects to: Kafka, Redis, Milvus.

Each secret may stand in a file instead, which is read when a client is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from .group import Group, Secret, absolute, secret

# Properties of librdkafka that delivery rests on: braid sets them.
FIXED = frozenset(
    [
        "acks",
        "auto.commit.enable",
        "auto.offset.reset",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.idempotence",
        "enable.partition.eof",
        "group.id",
        "group.instance.id",
        "group.protocol",
        "isolation.level",
        "max.poll.interval.ms",
        "partition.assignment.strategy",
        "partitioner",
        "session.timeout.ms",
        "transaction.timeout.ms",
        "transactional.id",
    ]
)
# Properties that have a setting of their own, which every client gets and not librdkafka alone.
NAMED = {
    "bootstrap.servers": "bootstrap",
    "metadata.broker.list": "bootstrap",
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.username": "sasl_username",
    "sasl.password": "sasl_password",
    "ssl.ca.location": "ssl_ca",
    "ssl.certificate.location": "ssl_certificate",
    "ssl.key.location": "ssl_key",
    "ssl.key.password": "ssl_key_password",
    "ssl.endpoint.identification.algorithm": "ssl_check_hostname",
    "compression.type": "compression",
    "compression.codec": "compression",
}


class Server(Group):
    @field_validator("*", mode="after")
    @classmethod
    def _one_source(cls, value: Any, info: ValidationInfo) -> Any:
        """A secret stands in its setting or in its file."""
        name = str(info.field_name).removesuffix("_file")
        if name != info.field_name and value is not None and info.data.get(name):
            raise ValueError(f"must not be set beside {name}")
        return value


class Kafka(Server):
    bootstrap: str = Field("127.0.0.1:9092", description="brokers, as host:port, joined by commas")
    partitions: int = Field(
        6, ge=1, le=1024, description="partitions of each topic, used when the topics are created"
    )
    replication: int = Field(
        1, ge=1, le=9, description="replicas of each topic, used when the topics are created"
    )
    session_timeout_s: float = Field(
        10.0,
        ge=0.5,
        description="a worker without a heartbeat for this long leaves its consumer group, and "
        "others take over its partitions",
    )
    group_protocol: Literal["classic", "consumer"] = Field(
        "classic",
        description="of the workers' groups: consumer is that of KIP-848, by which only the "
        "partitions that move are stopped when workers come and go; its timeouts are the broker's, "
        "where the group's own (session_timeout_s) are not allowed",
    )
    transaction_timeout_s: float = Field(
        10.0, ge=1.0, description="the broker aborts a transaction that is open for longer"
    )
    compression: Literal["none", "lz4", "snappy", "zstd", "gzip"] = Field(
        "lz4",
        description="of what workers publish: lz4 takes a third of the bytes away for 1 µs of CPU "
        "a record",
    )
    broker_timeout_s: float = Field(
        30.0, ge=1.0, description="how long a command waits for a broker; services wait for ever"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="whether brokers are reached by TLS, and by SASL"
    )
    sasl_mechanism: (
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI"] | None
    ) = Field(
        None,
        description="of SASL. GSSAPI needs a librdkafka that was built with it and the package "
        "gssapi; its sasl.kerberos.* are properties",
    )
    sasl_username: str | None = Field(None, description="of PLAIN and SCRAM")
    sasl_password: Secret | None = Field(None, description="of PLAIN and SCRAM")
    sasl_password_file: Path | None = Field(None, description="a file with sasl_password")
    oauth_token_url: str | None = Field(
        None,
        description="the token endpoint of an OpenID Connect provider, for OAUTHBEARER with the "
        "grant client_credentials",
    )
    oauth_client_id: str | None = Field(None, description="the client's name there")
    oauth_client_secret: Secret | None = Field(None, description="its secret")
    oauth_client_secret_file: Path | None = Field(
        None, description="a file with oauth_client_secret"
    )
    oauth_scope: str | None = Field(None, description="the scope to ask for")
    oauth_callback: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function that returns a token and when it expires, in seconds since "
        "1970, instead of oauth_token_url",
    )
    oauth_extensions: dict[str, str] = Field(
        {}, description="SASL extensions sent with the token, e.g. logicalCluster"
    )
    ssl_ca: Path | None = Field(
        None, description="a PEM file of the authorities that sign brokers; without it the system's"
    )
    ssl_certificate: Path | None = Field(
        None, description="a PEM file of this client's certificate, where brokers ask for one"
    )
    ssl_key: Path | None = Field(None, description="a PEM file of its key")
    ssl_key_password: Secret | None = Field(None, description="of the key, if it is encrypted")
    ssl_key_password_file: Path | None = Field(None, description="a file with ssl_key_password")
    ssl_check_hostname: bool = Field(
        True, description="whether a broker's certificate must name the host that is connected to"
    )
    properties: dict[str, Secret] = Field(
        {},
        description="further properties of librdkafka, for all of its clients, e.g. "
        "client.rack; their values are shown as stars",
    )

    _absolute = field_validator(
        "sasl_password_file",
        "oauth_client_secret_file",
        "ssl_ca",
        "ssl_certificate",
        "ssl_key",
        "ssl_key_password_file",
        mode="after",
    )(absolute)

    @field_validator("properties", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        """TOML reads a name with dots as tables, and numbers and booleans as such."""
        return dict(_joined(value)) if isinstance(value, Mapping) else value

    @field_validator("properties", mode="after")
    @classmethod
    def _not_braids(cls, properties: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name in properties:
            if name in NAMED:
                raise ValueError(f"{name} is the setting kafka.{NAMED[name]}")
            if name in FIXED:
                raise ValueError(f"{name} is set by braid: delivery depends on it")
        return properties

    @model_validator(mode="after")
    def _complete(self) -> Self:
        mechanism, sasl = self.sasl_mechanism, self.security_protocol.startswith("SASL_")
        if sasl != (mechanism is not None):
            raise ValueError(
                f"sasl_mechanism must be set with security_protocol SASL_PLAINTEXT and SASL_SSL, "
                f"and with no other: they are {mechanism} and {self.security_protocol}"
            )
        password = self.sasl_password or self.sasl_password_file
        if mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512") and not (
            self.sasl_username and password
        ):
            raise ValueError(f"{mechanism} needs sasl_username, and sasl_password or its file")
        client = self.oauth_client_id and (
            self.oauth_client_secret or self.oauth_client_secret_file
        )
        if mechanism == "OAUTHBEARER" and bool(self.oauth_callback) == bool(self.oauth_token_url):
            raise ValueError("OAUTHBEARER needs oauth_token_url or oauth_callback, one of them")
        if self.oauth_token_url and not client:
            raise ValueError("oauth_token_url needs oauth_client_id and oauth_client_secret")
        if bool(self.ssl_certificate) != bool(self.ssl_key):
            raise ValueError("ssl_certificate and ssl_key must be set together")
        return self

    @property
    def tls(self) -> bool:
        return self.security_protocol.endswith("SSL")


class Redis(Server):
    # It may hold a password.
    url: str | None = Field(
        None,
        repr=False,
        description="redis://host:port/database, or rediss:// for TLS: for texts and thumbnails "
        "of hits, heartbeats, notices and the trainer's lock; without it there are none",
    )
    username: str | None = Field(None, description="the user; without it Redis's default one")
    password: Secret | None = Field(None, description="its password, if url has none")
    password_file: Path | None = Field(None, description="a file with password")
    ca: Path | None = Field(
        None,
        description="a PEM file of the authorities that sign Redis's certificate, for rediss://; "
        "without it the system's",
    )

    _absolute = field_validator("password_file", "ca", mode="after")(absolute)

    @property
    def address(self) -> str | None:
        """`url` with user, password and authorities, for a client; never to be shown.

        Raises:
            ConfigError: password_file cannot be read.
        """
        if self.url is None:
            return None
        parts = urlsplit(self.url)
        password = secret(self.password, self.password_file, "redis.password")
        netloc, query = parts.netloc, parts.query
        if password is not None and "@" not in netloc:
            netloc = f"{quote(self.username or '', safe='')}:{quote(password, safe='')}@{netloc}"
        if self.ca is not None and parts.scheme == "rediss":
            query = "&".join(filter(None, (query, urlencode({"ssl_ca_certs": str(self.ca)}))))
        return urlunsplit(parts._replace(netloc=netloc, query=query))


class Milvus(Server):
    uri: str | None = Field(
        None,
        repr=False,
        description="http://host:port, https:// for TLS, or a path ending in .db for Milvus Lite",
    )
    token: Secret = Field(SecretStr(""), description="user:password, or an API key")
    token_file: Path | None = Field(None, description="a file with token")
    ca: Path | None = Field(
        None,
        description="a PEM file of the authorities that sign Milvus's certificate, for https://; "
        "without it the system's",
    )

    _absolute = field_validator("token_file", "ca", mode="after")(absolute)


def _joined(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _joined(value, f"{prefix}{name}.")
        elif isinstance(value, bool):
            yield prefix + name, str(value).lower()
        else:
            yield prefix + name, str(value) if isinstance(value, int | float) else value
