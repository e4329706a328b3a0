"""How clients authenticate to Kafka: the settings in `[kafka]` for each family of clients.

`librdkafka` for confluent-kafka, `aiokafka` for aiokafka, `faust_credentials` for Faust.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..settings import Settings
from ..settings.group import secret

if TYPE_CHECKING:
    import faust

    from .tokens import Provider

KERBEROS_SERVICE = "sasl.kerberos.service.name"


def librdkafka(settings: Settings) -> dict[str, Any]:
    """Properties of librdkafka: addresses, TLS, SASL and the log.

    Raises:
        ConfigError: a file with a secret cannot be read.
        AccessError, Unreachable: there is no token for OAUTHBEARER.
    """
    kafka = settings.kafka
    values: dict[str, Any] = {
        "bootstrap.servers": kafka.bootstrap,
        "client.id": "braid",
        "log_level": 3,
        "logger": logging.getLogger("librdkafka"),
        "security.protocol": kafka.security_protocol,
        "sasl.mechanism": kafka.sasl_mechanism,
    }
    if kafka.sasl_username is not None:
        values |= {"sasl.username": kafka.sasl_username, "sasl.password": _password(settings)}
    if kafka.sasl_mechanism == "OAUTHBEARER":
        from .tokens import tokens_of

        tokens = tokens_of(settings)
        tokens()  # else the client waits 10 s for one, and does not say why there is none
        values["oauth_cb"] = lambda _: (*tokens(), "", dict(kafka.oauth_extensions))
    if kafka.tls:
        values |= {
            "ssl.ca.location": kafka.ssl_ca,
            "ssl.certificate.location": kafka.ssl_certificate,
            "ssl.key.location": kafka.ssl_key,
            "ssl.key.password": _key_password(settings),
            "ssl.endpoint.identification.algorithm": (
                "https" if kafka.ssl_check_hostname else "none"
            ),
        }
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in values.items()
        if value is not None
    }


def aiokafka(settings: Settings) -> dict[str, Any]:
    """Arguments of AIOKafkaConsumer and AIOKafkaProducer.

    Raises:
        ConfigError: a file cannot be read, or is no certificate or key.
    """
    kafka = settings.kafka
    arguments: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap,
        "security_protocol": kafka.security_protocol,
        "ssl_context": ssl_context(settings),
    }
    if kafka.sasl_mechanism is not None:
        arguments["sasl_mechanism"] = kafka.sasl_mechanism
    if kafka.sasl_username is not None:
        arguments |= {
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": _password(settings),
        }
    if kafka.sasl_mechanism == "OAUTHBEARER":
        arguments["sasl_oauth_token_provider"] = _provider(settings)
    if kafka.sasl_mechanism == "GSSAPI":
        arguments["sasl_kerberos_service_name"] = _kerberos_service(settings)
    return arguments


def faust_credentials(settings: Settings) -> faust.types.auth.CredentialsT | None:
    """Faust's `broker_credentials`; None: none are needed.

    Raises:
        ConfigError: a file cannot be read, or is no certificate or key.
    """
    from faust import auth

    kafka, context = settings.kafka, ssl_context(settings)
    if kafka.sasl_mechanism == "OAUTHBEARER":
        return auth.OAuthCredentials(oauth_cb=_provider(settings), ssl_context=context)
    if kafka.sasl_mechanism == "GSSAPI":
        service = _kerberos_service(settings)
        return auth.GSSAPICredentials(
            kerberos_service_name=service, ssl_context=context, mechanism="GSSAPI"
        )
    if kafka.sasl_mechanism is not None:
        return auth.SASLCredentials(
            username=kafka.sasl_username,
            password=_password(settings),
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return None if context is None else auth.SSLCredentials(context)


def ssl_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS for clients that use Python's; None: without TLS.

    Raises:
        ConfigError: a file cannot be read, or is no certificate or key.
    """
    kafka = settings.kafka
    if not kafka.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_ca)
    except OSError as error:  # SSLError among them
        raise ConfigError(f"kafka.ssl_ca: {kafka.ssl_ca}: {_reason(error)}") from None
    context.check_hostname = kafka.ssl_check_hostname
    if kafka.ssl_certificate is not None and kafka.ssl_key is not None:
        # Without a password OpenSSL would ask for one on the terminal.
        password = _key_password(settings) or ""
        try:
            context.load_cert_chain(kafka.ssl_certificate, kafka.ssl_key, lambda: password)
        except OSError as error:
            files = f"{kafka.ssl_certificate}, {kafka.ssl_key}"
            raise ConfigError(
                f"kafka.ssl_certificate, kafka.ssl_key: {files}: {_reason(error)}"
            ) from None
    return context


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
    return f"not usable ({reason})" if isinstance(error, ssl.SSLError) else reason


def _password(settings: Settings) -> str:
    kafka = settings.kafka
    return secret(kafka.sasl_password, kafka.sasl_password_file, "kafka.sasl_password") or ""


def _key_password(settings: Settings) -> str | None:
    kafka = settings.kafka
    return secret(kafka.ssl_key_password, kafka.ssl_key_password_file, "kafka.ssl_key_password")


def _provider(settings: Settings) -> Provider:
    from .tokens import Provider, tokens_of

    return Provider(tokens_of(settings), dict(settings.kafka.oauth_extensions))


def _kerberos_service(settings: Settings) -> str:
    service = settings.kafka.properties.get(KERBEROS_SERVICE)
    return "kafka" if service is None else service.get_secret_value()
