"""Data sets for the demo. (being written)"""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """Where downloads are kept: `BRAID_CACHE`, else ~/.cache/braid."""
    return Path(os.environ.get("BRAID_CACHE") or Path.home() / ".cache" / "braid")
