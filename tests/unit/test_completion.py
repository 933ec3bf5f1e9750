"""Completion of a shell, as the guide says: invoke's own script, for invoke and for scripts/stacklab."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from stacklab import files

WORDS = """
    source <(invoke --print-completion-script bash)
    complete -F _complete_invoke -o default scripts/stacklab
    COMP_WORDS=(scripts/stacklab snapshots.r) COMP_CWORD=1
    _complete_invoke scripts/stacklab snapshots.r scripts/stacklab
    echo "${COMPREPLY[@]}"
"""


def test_a_task_is_completed() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", WORDS],
        cwd=files.PROJECT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["snapshots.restore"]
