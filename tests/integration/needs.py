"""What the machine lacks for a test: a reason to skip it, but in CI, which has to run all, a failure."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """End the test because of what the machine lacks, said as a sentence."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and CI has to run this")
    pytest.skip(what)


def program(name: str) -> str:
    """Where a program is that the test runs."""
    path = shutil.which(name)
    return path if path is not None else lacking(f"{name} is not installed")


def root(why: str) -> None:
    """The test is root, for the reason given: "mounting"."""
    if os.geteuid() != 0:
        lacking(f"{why} needs root")
