"""The settings of the model that serves, and of the registry that it comes from."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from .group import Group


class Model(Group):
    spec: str | None = Field(
        None, description="a model folder or null:16; without it the champion of the registry"
    )
    name: str = Field(
        "braid",
        pattern=r"^[A-Za-z0-9_-]{1,40}$",
        description="begins the names of the versions in the registry, as in braid-0001",
    )
    registry: str | None = Field(
        None,
        pattern=r"^(s3|gs|az|file)://.+",
        description="the registry's place, s3://bucket/prefix, gs://, az:// or file:///folder; "
        "without it home/models",
    )
    registry_options: dict[str, str] = Field(
        {},
        description="options of the object store, such as endpoint, region and allow_http; "
        "credentials come from the environment",
    )

    device: str | None = Field(
        None, description="a torch device; without it cuda where there is one"
    )
    engine: Literal["torch", "onnx", "openvino", "auto"] = Field(
        "torch",
        description="what encoders run on while serving, on a CPU; auto measures at start and "
        "takes the fastest; one that fails the version's golden batch or frozen queries is "
        "replaced by torch",
    )
    precision: Literal["float32", "bf16", "int8"] = Field(
        "float32", description="the least exact one that engines may use"
    )
    poll_s: float = Field(5.0, gt=0, description="seconds between two looks at the registry")

    @field_validator("registry_options", mode="after")
    @classmethod
    def _without_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        if secret := [
            name for name in value if re.search("secret|token|password|access_key", name)
        ]:
            raise ValueError(f"{', '.join(secret)}: credentials come from the environment")
        return value
