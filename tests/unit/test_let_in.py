"""scripts/let-in, with an iptables that keeps its rules in a file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "let-in"
IPTABLES = """#!/bin/sh
case $1 in
    -C) shift 2; grep -qx -- "$*" "$RULES" ;;
    -I) shift 2; echo "$*" >>"$RULES" ;;
esac
"""


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The rules of a machine whose only firewall is a fake."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "iptables").write_text(IPTABLES)
    (tmp_path / "bin" / "iptables").chmod(0o755)
    made = tmp_path / "rules"
    made.write_text("")
    monkeypatch.setenv("RULES", str(made))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return made


def test_each_address_is_let_in_once(rules: Path) -> None:
    for _ in range(2):
        subprocess.run([SCRIPT, "10.0.0.32", "10.0.0.33"], check=True)
    assert rules.read_text().splitlines() == ["-s 10.0.0.32 -j ACCEPT", "-s 10.0.0.33 -j ACCEPT"]


def test_without_a_firewall_there_is_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    subprocess.run(["/bin/bash", SCRIPT, "10.0.0.32"], check=True)
