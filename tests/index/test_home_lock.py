"""The lock of an index home is exclusive, and released when its process dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from braid.index.errors import HomeLocked
from braid.index.home_lock import home_lock

HOLD = """
import sys, time
from pathlib import Path
from braid.index.home_lock import home_lock
with home_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_with_the_firsts_number(tmp_path: Path) -> None:
    home = tmp_path / "home" / "index"
    command = [sys.executable, "-c", HOLD, str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(HomeLocked, match=f"process id {holder.pid}:"), home_lock(home):
                pass
        finally:
            holder.kill()
    with (  # killed, it lets go; no file has to be removed
        home_lock(home),
        pytest.raises(HomeLocked, match=f"process id {os.getpid()}:"),
        home_lock(home),
    ):
        pass
    with home_lock(home), home_lock(tmp_path / "another"):
        pass
