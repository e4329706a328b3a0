"""Kafka with TLS and SASL: each mechanism with each family of clients, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from braid.stream.errors import AccessError, ConfigError, Unreachable
from braid.stream.kafka import security
from braid.stream.kafka.admin import Admin, Topic
from braid.stream.kafka.client import replay
from braid.stream.kafka.producer import Producer
from braid.stream.kafka.tokens import Tokens
from braid.stream.local.child import free_port
from braid.stream.local.secured import ADMIN, Authority, SecuredKafka
from braid.stream.settings import Settings, load
from tests.conftest import started
from tests.documents import block

SECRET = "hush-7f3a9c"
CLIENT = "braid-client"


class Broker(SecuredKafka):
    """A broker with every mechanism, and listeners whose certificates are wrong."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, users=["somebody"])
        authority = self.authority
        bad = {
            "EXPIRED": authority.issue("expired", hosts=["127.0.0.1"], valid=-timedelta(hours=1)),
            "ELSEWHERE": authority.issue("elsewhere", hosts=["kafka.example.org"]),
        }
        self.listeners = {name: free_port() for name in (*bad, "MUTUAL")}
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required "
        oauth = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required "
        self._properties |= {
            "listener.security.protocol.map": (
                "SECURED:SASL_SSL,EXPIRED:SASL_SSL,ELSEWHERE:SASL_SSL,MUTUAL:SSL,CONTROLLER:SSL"
            ),
            "listener.name.secured.sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN,OAUTHBEARER",
            "listener.name.secured.plain.sasl.jaas.config": (
                f'{plain}user_{ADMIN}="{self.users.password(ADMIN)}";'
            ),
            "listener.name.secured.oauthbearer.sasl.jaas.config": (
                f'{oauth}unsecuredLoginStringClaim_sub="{ADMIN}";'
            ),
            "listener.name.mutual.ssl.client.auth": "required",
            "super.users": self._properties["super.users"] + f";User:CN={CLIENT}",
        }
        for name, certificate in bad.items():
            at = f"listener.name.{name.lower()}.ssl.keystore"
            self._properties |= {
                f"{at}.type": "PEM",
                f"{at}.location": str(self.keystore(certificate)),
                f"listener.name.{name.lower()}.scram-sha-512.sasl.jaas.config": (
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                ),
            }


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    kafka = Broker(tmp_path_factory.mktemp("secured"))
    try:
        yield started(kafka)
    finally:
        kafka.stop(0)


class Endpoint(BaseHTTPRequestHandler):
    """A token endpoint that knows one client, and gives tokens without a signature."""

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers["content-length"])).decode()
        known = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        allowed = self.headers["authorization"] == f"Basic {known}" and "scope=braid" in form
        self.send_response(200 if allowed else 401)
        self.end_headers()
        if allowed:
            answer = {"access_token": unsigned()[0], "expires_in": 300}
            self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


def unsigned() -> tuple[str, float]:
    """A token of the administrator as Kafka's own validator for tests takes it, and its end."""
    now = time.time()
    claims = {"sub": ADMIN, "iat": now, "exp": now + 300}
    parts = [base64.urlsafe_b64encode(json.dumps(p).encode()) for p in ({"alg": "none"}, claims)]
    return b".".join(part.rstrip(b"=") for part in parts).decode() + ".", now + 300


@pytest.fixture(scope="module")
def token_url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/token"
    server.shutdown()
    server.server_close()


def settings_of(broker: Broker, token_url: str, mechanism: str) -> Settings:
    """The administrator's settings with a mechanism; SSL: by a certificate."""
    kafka: dict[str, Any] = broker.settings(ADMIN)
    ca = {"ssl_ca": broker.authority.certificate}
    if mechanism == "PLAIN":
        kafka |= {"sasl_mechanism": "PLAIN"}
    elif mechanism == "SSL":
        certificate, key = broker.authority.issue(CLIENT)
        address = f"127.0.0.1:{broker.listeners['MUTUAL']}"
        kafka = {"bootstrap": address, "security_protocol": "SSL", **ca}
        kafka |= {"ssl_certificate": certificate, "ssl_key": key}
    elif mechanism != "SCRAM-SHA-512":
        kafka = {"bootstrap": broker.address, "security_protocol": "SASL_SSL", **ca}
        kafka |= {"sasl_mechanism": "OAUTHBEARER"}
        kafka |= (
            {"oauth_callback": f"{__name__}:unsigned"}
            if mechanism == "callback"
            else {
                "oauth_token_url": token_url,
                "oauth_client_id": CLIENT,
                "oauth_client_secret": SECRET,
                "oauth_scope": "braid",
            }
        )
    return load(kafka=kafka, prefix=f"t{uuid.uuid4().hex[:8]}-")


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "PLAIN", "SSL", "OIDC", "callback"])
def test_every_client_connects_with_each_mechanism(
    broker: Broker, token_url: str, mechanism: str
) -> None:
    """What aiokafka sends arrives, at librdkafka and at aiokafka; Faust gets what aiokafka gets."""
    settings = settings_of(broker, token_url, mechanism)
    name = settings.topic("records")
    Admin(settings).create([Topic(name=name, partitions=1, replication=1, config={})])

    async def sent() -> int:
        async with Producer(settings) as producer:
            await producer.send(id="a", text="x")
        consumer = AIOKafkaConsumer(**security.aiokafka(settings))
        await consumer.start()
        try:
            part = TopicPartition(name, 0)
            return int((await consumer.end_offsets([part]))[part])
        finally:
            await consumer.stop()

    assert asyncio.run(sent()) == 1
    assert [message.key for message in replay(settings, name, stop_at={0: 1})] == [b"a"]
    ours = security.aiokafka(settings)
    theirs = credentials_to_aiokafka_auth(security.faust_credentials(settings))
    same = {name: value for name, value in theirs.items() if isinstance(value, str)}
    assert same
    assert same == {name: ours[name] for name in same}
    assert theirs["ssl_context"].get_ca_certs() == ours["ssl_context"].get_ca_certs() != []


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.parametrize(
    ("changed", "listener", "words"),
    [
        ({"sasl_password_file": None, "sasl_password": SECRET}, "", "not authenticated: .*invalid"),
        ({"sasl_mechanism": "SCRAM-SHA-256"}, "", "not authenticated: .*SCRAM-SHA-256"),
        ({}, "EXPIRED", "no TLS .*: certificate has expired"),
        ({}, "ELSEWHERE", "no TLS .*: IP address mismatch"),
        ({"ssl_ca": None}, "", "no TLS .*: unable to get local issuer certificate"),
    ],
)
def test_what_is_refused_is_named_at_once(
    broker: Broker, changed: dict[str, Any], listener: str, words: str
) -> None:
    """By a command in one line and with status 78, and by the producer of a program."""
    kafka = broker.settings(ADMIN) | changed
    if listener:
        kafka["bootstrap"] = f"127.0.0.1:{broker.listeners[listener]}"
    settings = load(kafka=kafka)

    async def send() -> None:
        async with Producer(settings):
            pass

    with pytest.raises(AccessError, match=words):
        asyncio.run(send())
    ended = subprocess.run(
        [sys.executable, "-m", "braid", "status"],
        env={**os.environ, **settings.environment(), "BRAID_KAFKA__BROKER_TIMEOUT_S": "200"},
        capture_output=True,
        text=True,
        timeout=150,  # below broker_timeout_s, for which a broker that is away would be waited for
        check=False,
    )
    assert ended.returncode == os.EX_CONFIG
    (line,) = ended.stderr.splitlines()
    assert line.startswith("braid: ")
    assert SECRET not in line


@pytest.mark.slow
@pytest.mark.kafka
def test_a_certificate_of_another_host_is_taken_where_that_is_not_checked(broker: Broker) -> None:
    address = f"127.0.0.1:{broker.listeners['ELSEWHERE']}"
    kafka = broker.settings(ADMIN) | {"bootstrap": address, "ssl_check_hostname": False}
    Admin(load(kafka=kafka)).partition_counts()


@pytest.mark.slow
@pytest.mark.kafka
def test_a_listener_of_another_protocol_is_said_to_be_one(broker: Broker) -> None:
    settings = load(kafka={"bootstrap": broker.address})
    with pytest.raises(Unreachable, match=r"\(kafka\.security_protocol is PLAINTEXT\)"):
        Admin(settings, timeout_s=2).partition_counts()


@pytest.mark.slow
@pytest.mark.kafka
def test_a_provider_that_gives_no_token_is_named(broker: Broker, token_url: str) -> None:
    settings = settings_of(broker, token_url, "OIDC")
    settings = settings.replace(kafka={"oauth_client_id": "stranger"})
    with pytest.raises(AccessError, match=r"no token from http://127.*: status 401") as caught:
        Admin(settings, timeout_s=30).partition_counts()
    assert SECRET not in str(caught.value)


# ---- without a broker


def test_properties_go_to_librdkafka_and_wrong_ones_are_named() -> None:
    settings = load(
        kafka={"properties": {"client": {"rack": "a"}, "socket.keepalive.enable": True}}
    )
    shown = settings.shown()["kafka.properties"]
    assert list(shown) == ["client.rack", "socket.keepalive.enable"]
    assert "a" not in shown.values()
    Admin(settings)
    with pytest.raises(ConfigError, match=r'No such configuration property: "no\.such"'):
        Admin(load(kafka={"properties": {"no.such": "1"}}))
    with pytest.raises(ConfigError, match=r"enable\.auto\.commit is set by braid"):
        load(kafka={"properties": {"enable.auto.commit": "true"}})
    with pytest.raises(ConfigError, match=r"sasl\.password is the setting kafka\.sasl_password"):
        load(kafka={"properties": {"sasl.password": SECRET}})


@pytest.mark.parametrize(
    ("kafka", "words"),
    [
        ({"sasl_mechanism": "PLAIN"}, "sasl_mechanism must be set with"),
        ({"security_protocol": "SASL_SSL"}, "sasl_mechanism must be set with"),
        ({"sasl_mechanism": "PLAIN", "sasl_username": "u"}, "PLAIN needs sasl_username, and"),
        ({"sasl_mechanism": "OAUTHBEARER"}, "OAUTHBEARER needs oauth_token_url or oauth_callback"),
        (
            {"sasl_mechanism": "OAUTHBEARER", "oauth_token_url": "https://t"},
            "oauth_token_url needs oauth_client_id",
        ),
        ({"security_protocol": "SSL", "ssl_key": "k"}, "must be set together"),
        (
            {"sasl_password": SECRET, "sasl_password_file": "f"},
            "must not be set beside sasl_password",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_named(kafka: dict[str, Any], words: str) -> None:
    if ("sasl_mechanism" in kafka and len(kafka) > 1) or "OAUTHBEARER" in kafka.values():
        kafka = {"security_protocol": "SASL_SSL", **kafka}
    with pytest.raises(ConfigError, match=words) as caught:
        load(kafka=kafka)
    assert SECRET not in str(caught.value)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    kafka: dict[str, Any] = {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_username": "u",
        "sasl_password_file": tmp_path / "none",
    }
    with pytest.raises(ConfigError, match=r"kafka\.sasl_password_file: .*none: No such file"):
        security.librdkafka(load(kafka=kafka))
    (tmp_path / "none").write_text(" \n")
    with pytest.raises(ConfigError, match=r"kafka\.sasl_password_file: .*none: is empty"):
        security.aiokafka(load(kafka=kafka))
    (tmp_path / "ca.pem").write_text("no certificate")
    kafka = {"security_protocol": "SSL", "ssl_ca": tmp_path / "ca.pem"}
    with pytest.raises(ConfigError, match=r"kafka\.ssl_ca: .*ca\.pem: "):
        security.ssl_context(load(kafka=kafka))
    certificate, key = Authority(tmp_path / "authority").issue("client")
    kafka = {"security_protocol": "SSL", "ssl_certificate": key, "ssl_key": certificate}
    with pytest.raises(ConfigError, match=r"kafka\.ssl_certificate, kafka\.ssl_key: "):
        security.ssl_context(load(kafka=kafka))


def test_a_key_with_a_password(tmp_path: Path) -> None:
    """The right password opens it; without one nobody is asked on a terminal."""
    from cryptography.hazmat.primitives import serialization

    certificate, key = Authority(tmp_path).issue("client")
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(SECRET.encode()),
        )
    )
    kafka = {"security_protocol": "SSL", "ssl_certificate": certificate, "ssl_key": key}
    opened = load(kafka={**kafka, "ssl_key_password": SECRET})
    assert security.ssl_context(opened) is not None
    Admin(opened)
    for wrong in ({}, {"ssl_key_password": "wrong"}):
        with pytest.raises(ConfigError) as caught:
            security.ssl_context(load(kafka={**kafka, **wrong}))
        assert "wrong" not in str(caught.value)


def test_a_token_is_kept_until_shortly_before_it_expires() -> None:
    now, made = 1000.0, []

    def fetch() -> tuple[str, float]:
        made.append(now)
        return f"token {len(made)}", now + 100

    tokens = Tokens(fetch, wall=lambda: now)
    assert [tokens().text, tokens().text] == ["token 1", "token 1"]
    now += 79
    assert tokens().text == "token 1"
    now += 2
    assert tokens() == ("token 2", 1181.0)


def test_a_callback_that_is_not_there_is_named() -> None:
    kafka = {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "OAUTHBEARER",
        "oauth_callback": "braid.nowhere:token",
    }
    with pytest.raises(ConfigError, match=r"kafka\.oauth_callback: braid\.nowhere:token: "):
        security.aiokafka(load(kafka=kafka))


def test_the_settings_that_the_page_shows_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tables = ("[kafka]", "[kafka.properties]", "[redis]", "[milvus]")
    page = "".join(block("how-to/secure.md", "toml", table) for table in tables)
    (tmp_path / "braid.toml").write_text(page)
    settings = load()
    assert settings.kafka.sasl_username == "braid-worker"
    assert list(settings.kafka.properties) == ["client.rack", "socket.keepalive.enable"]
    assert settings.redis.ca == Path("/etc/braid/redis-ca.pem")
    assert settings.milvus.token_file == Path("/run/secrets/milvus-token")
