"""The base of the groups of settings: how values are parsed, and how secrets are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    SecretStr,
    SerializationInfo,
    ValidationInfo,
    field_validator,
)

from ..errors import ConfigError
from ..strict_json import strict_json

MIB = 1024 * 1024
REVEAL = "reveal"  # the context of a dump to JSON that shows secrets


def _shown(secret: SecretStr, info: SerializationInfo) -> str:
    return secret.get_secret_value() if info.context == REVEAL else str(secret)


Secret = Annotated[SecretStr, PlainSerializer(_shown, when_used="json")]


def has_secret(annotation: Any) -> bool:
    """Whether a setting's type holds a secret."""
    return annotation is SecretStr or any(map(has_secret, get_args(annotation)))


def secret(value: SecretStr | None, file: Path | None, name: str) -> str | None:
    """A secret setting's text, from the setting or its file; None: neither is set.

    Args:
        name: of the setting; that of the file ends in `_file`.

    Raises:
        ConfigError: the file cannot be read or is empty; never shows what is in it.
    """
    if file is None:
        return None if value is None else value.get_secret_value()
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{name}_file: {file}: {what}") from None
    if not text:
        raise ConfigError(f"{name}_file: {file}: is empty")
    return text


def absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()


def parsed(value: Any) -> Any:
    """A list or a table, which is JSON in the environment. Raises ValueError."""
    if not isinstance(value, str):
        return value
    try:
        return strict_json(value)
    except ValueError as error:
        raise ValueError(f"must be JSON: {error}") from None


class Group(BaseModel):
    """Settings of one subject. Times are in seconds unless the name says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _parsed(cls, value: Any, info: ValidationInfo) -> Any:
        """Lists and tables are JSON in the environment."""
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        return parsed(value) if get_origin(annotation) in (list, dict) else value
