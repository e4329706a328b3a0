"""The exceptions of `encoders`, as one tree:

    EncodersError
      BadInput         one sample cannot be used: too large, not decodable, no modality. Also a
                       ValueError. Trying again never helps; the record is a dead letter.
      CheckpointError  a version folder is torn, altered, of another shape, fails its golden check.
      EngineError      an engine lacks its package, does not run here, or is too far from torch.
      TrainingError    training cannot go on: a non-finite loss, too few samples, unknown labels.

Any other exception from this package is a bug and should stop the process.
"""

from __future__ import annotations

from collections.abc import Mapping


class EncodersError(Exception):
    """The root of every error that this package raises on purpose."""


class BadInput(EncodersError, ValueError):
    """One sample that cannot be used. The message names the field, the limit and the value."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)  # both in args, so that it survives pickling
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class CheckpointError(EncodersError):
    """A model folder that must not be served."""


class EngineError(EncodersError):
    """An engine that cannot, or must not, replace torch."""


class TrainingError(EncodersError):
    """A training run that must not produce a version."""


def check_minima(config: object, minima: Mapping[str, float], prefix: str = "") -> None:
    """Check fields of a configuration.

    Raises:
        ValueError: a field is below its minimum, or not a number.
    """
    for name, least in minima.items():
        if not (value := getattr(config, name)) >= least:
            raise ValueError(f"{prefix}{name} must be at least {least}, is {value}")
