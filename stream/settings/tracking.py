"""The settings of experiment trackers."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from .group import Group, absolute


class Tracking(Group):
    """Where training runs are logged, beside the registry: MLflow and TensorBoard, of the extras
    `mlflow` and `tensorboard`."""

    mlflow: str | None = Field(
        None,
        pattern=r"^https?://.+",
        repr=False,
        description="the address of an MLflow server, such as http://127.0.0.1:5000; credentials "
        "come from MLflow's own variables, such as MLFLOW_TRACKING_TOKEN",
    )
    experiment: str = Field("braid", min_length=1, description="the runs' experiment in MLflow")
    tensorboard: Path | None = Field(
        None, description="a folder for TensorBoard's event files, in a sub-folder for each run"
    )
    timeout_s: float = Field(
        10.0,
        ge=0,
        description="how long a run that has ended waits for trackers that are slow or away; "
        "what they have not taken then is lost",
    )

    _absolute = field_validator("tensorboard", mode="after")(absolute)
