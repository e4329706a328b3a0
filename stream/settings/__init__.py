"""The settings of every braid process: `Settings`, and `load`, which reads their sources."""

from .groups import MIB
from .settings import Settings, load, origins

__all__ = ["MIB", "Settings", "load", "origins"]
