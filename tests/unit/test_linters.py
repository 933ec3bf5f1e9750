"""The linters, and the rules of this tree that no linter knows. A finding shows the tool's own output."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VENV = Path(sys.executable).parent
# Where no git is (an unpacked archive), these are not the tree's.
NOT_OURS = {
    ".git",
    ".venv",
    ".stacklab",
    ".vagrant",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
}
# Mirrors that an end-of-life release can only be had from: they are in the data by name.
ALLOWED_HOSTS = {"vault.centos.org"}


def tool(name: str) -> str:
    """The program of the environment, else of the system. In CI its absence is a failure."""
    found = VENV / name
    path = str(found) if found.is_file() else shutil.which(name)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed, and CI has to run it")
        pytest.skip(f"{name} is not installed: scripts/stacklab test installs it")
    return path


def check(argv: Sequence[str], **env: str) -> str:
    """Run a linter from the tree's root; what it says is the failure's text."""
    result = subprocess.run(
        argv,
        cwd=ROOT,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    if result.returncode != 0:
        pytest.fail(f"{' '.join(argv[:4])}: exit code {result.returncode}\n{result.stdout}", pytrace=False)
    return result.stdout


@cache
def tree() -> tuple[Path, ...]:
    """Every file of the project, those not yet committed too."""
    # A checkout may belong to another user than the one who tests.
    argv = ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        files = [path for path in ROOT.rglob("*") if not NOT_OURS & set(path.relative_to(ROOT).parts)]
    return tuple(sorted({path for path in files if path.is_file() and not path.is_symlink()}))


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def findings(pattern: re.Pattern[str]) -> list[str]:
    """file:line of every match in the tree."""
    found = []
    for path in tree():
        for number, line in enumerate(text(path).splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    return found


def test_ruff() -> None:
    check([tool("ruff"), "check", "."])


def test_ruff_format() -> None:
    check([tool("ruff"), "format", "--check", "--diff", "."])


def test_mypy() -> None:
    check([tool("mypy")])


def test_shellcheck() -> None:
    shebang = re.compile(r"#!\s*/(usr/)?bin/(env +)?(bash|sh|dash)\b")
    scripts = [str(path.relative_to(ROOT)) for path in tree() if shebang.match(text(path)[:80])]
    assert {"scripts/stacklab", ".ci/run"} <= set(scripts)
    check([tool("shellcheck"), *scripts])


def test_dib_lint() -> None:
    elements = str(ROOT / "elements")
    path = f"{VENV}{os.pathsep}{os.environ['PATH']}"
    said = check([tool("dib-lint")], ELEMENTS_DIR=elements, LIB_DIR=elements, PATH=path)
    assert "Checking " in said, "it found no element to check"


def test_vagrantfile() -> None:
    check([tool("ruby"), "-c", "Vagrantfile"])


def said_by(*argv: str) -> str:
    """What a tool of the machine says of itself; nothing when it is not here."""
    path = shutil.which(argv[0])
    if path is None:
        return ""
    try:
        result = subprocess.run(
            [path, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        return ""
    return result.stdout


def registry_hosts() -> set[str]:
    """The hosts that this machine has its packages from: never ours to name, whatever machine it is."""
    said = said_by("apt-get", "indextargets", "--format", "$(SITE)")
    said += said_by(sys.executable, "-m", "pip", "config", "list") + said_by(
        "npm", "config", "get", "registry"
    )
    hosts = re.findall(r"\bhttps?://(?:[^/@\s']*@)?([\w.-]+)", said)
    return {host.lower().strip(".") for host in hosts} - ALLOWED_HOSTS


def test_no_package_registry_by_name() -> None:
    hosts = registry_hosts()
    if not hosts:
        pytest.skip("this machine has no package registry configured to look for")
    names = "|".join(re.escape(host) for host in sorted(hosts))
    found = findings(re.compile(rf"(?<![\w.-])({names})(?![\w-])", re.IGNORECASE))
    assert not found, "names a package registry of this machine:\n" + "\n".join(found)


def test_no_path_of_this_checkout() -> None:
    found = findings(re.compile(re.escape(str(ROOT)) + r"(?![\w.-])"))
    assert not found, "knows where this checkout is:\n" + "\n".join(found)


def modules() -> list[Path]:
    return sorted((ROOT / "stacklab").rglob("*.py"))


def test_modules_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {n}" for path in modules() if (n := len(text(path).splitlines())) > 400
    ]
    assert not long, "more than 400 lines:\n" + "\n".join(long)


def test_only_ui_prints() -> None:
    found = []
    for path in modules():
        for node in ast.walk(ast.parse(text(path))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    found = [place for place in found if not place.startswith("stacklab/ui.py:")]
    assert not found, "prints by itself:\n" + "\n".join(found)
