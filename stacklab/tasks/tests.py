"""The task that tests stacklab itself."""

from __future__ import annotations

import os
import sys

from invoke import Context, task

from stacklab.tasks.common import edge, words


@task(help={"fast": "linters and unit tests only", "matrix": "what is wider than CI too; hours"})
@edge
def test(c: Context, fast: bool = False, matrix: bool = False) -> None:
    """Run the tests: linters, units, tools, a whole lab.

    Words after two dashes go to pytest, in the checkout, instead of the directories of tests.
    """
    from stacklab import files

    choice = "not integration and not lab" if fast else "" if matrix else "not matrix"
    # the fast ones first
    tiers = [f"tests/{name}" for name in ("unit", "integration", "lab")]
    argv = [sys.executable, "-m", "pytest", *(["-m", choice] if choice else []), *(words() or tiers)]
    if fast:
        # More than there are cores, since they wait for programs. Other tests share the machine's networks.
        argv[3:3] = ["-n", str(2 * (os.cpu_count() or 1))]
    os.chdir(files.PROJECT)
    os.execv(argv[0], argv)
