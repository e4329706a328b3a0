"""The settings of every braid process: `Settings`, and `load`, which reads their sources."""

from .group import MIB
from .settings import Settings, configured, load, origins

__all__ = ["MIB", "Settings", "configured", "load", "origins"]
