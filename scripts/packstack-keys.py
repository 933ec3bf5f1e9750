#!/usr/bin/env python3
"""Write stacklab/data/packstack/VERSION.json: every answer-file key of Packstack versions.

    scripts/packstack-keys.py 21.0.1 26.0.0
    scripts/packstack-keys.py 13.0.0 --source DIRECTORY

The table comes from Packstack itself: its wheel is taken from the package index with pip (a temporary
directory, removed afterwards), or, for a version that the index does not have, from a copy of its
sources, such as a checkout of its git tag. Its plugins are loaded, in a subprocess, as
`packstack.installer.run_setup` loads them. They run unmodified, but for Packstack's working directory,
which is moved out of /var/tmp. netifaces needs a C compiler; where it cannot be installed a stub takes
its place, which is enough to load.

A parameter has, in the order of Packstack's groups: name, group, default (a plain value, else null),
runtime (why the default is null: what Packstack computes when it starts: "address", "host-name",
"home", "secret"), options, validators (names of Packstack's functions), masked (a password), deprecates
(old names); what is empty or false is left out. A group has the condition under which Packstack reads
it: null (always), {"key", "equals"}, or {"function"}.

The output depends on the version alone: the machine's address, its name, the home directory and
uuid.uuid4 are replaced by marks while loading, and a default with a mark in it becomes null.
"""

from __future__ import annotations

import argparse
import builtins
import functools
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import types
import uuid
import venv
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent / "stacklab" / "data" / "packstack"
NEEDED = ("netaddr", "PyYAML", "distro", "pyOpenSSL", "docutils", "pbr", "six")
NEEDED_TO_RUN = ("netifaces",)
VAR_DIR = "'/var/tmp/packstack'"
FIRST_PYTHON_3 = 14
QUIET: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
SORTED = sorted
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")

# What stands for a value of the machine while the plugins load; 192.0.2.0/24 is for documentation.
MARKS = {
    "address": "192.0.2.254",
    "host-name": "mark-of-the-host-name.invalid",
    "home": "mark-of-the-home",
    "secret": "f00df00df00df00d",
}
PLACEHOLDER = "PW_PLACEHOLDER"  # packstack.installer.processors.process_password draws a password for it


def main(arguments: list[str]) -> int:
    """Make the tables of the versions named on the command line."""
    if arguments == ["--load"]:
        json.dump(load(), sys.stdout)
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", nargs="+")
    parser.add_argument("--source", type=Path, help="Packstack's sources, for one version")
    asked = parser.parse_args(arguments)
    if asked.source and len(asked.version) > 1:
        parser.error("--source is of one version")
    with tempfile.TemporaryDirectory(prefix="packstack-keys-") as temporary:
        place = Path(temporary)
        python = environment(place)
        for version in asked.version:
            write(version, load_in(place / version, python, version, asked.source))
    return 0


def write(version: str, table: dict[str, Any]) -> None:
    """Write one version's table."""
    text = pretty(version, table)
    if "\0" in text or "\\u0000" in text:
        raise SystemExit("a NUL byte in the table")
    DATA.mkdir(parents=True, exist_ok=True)
    target = DATA / f"{version}.json"
    target.write_text(text, encoding="utf-8")
    print(f"{target.relative_to(DATA.parent.parent.parent)}: {len(table['parameters'])} parameters")


def environment(place: Path) -> str:
    """A virtual environment with what Packstack needs; returns its Python."""
    venv.create(place / "venv", with_pip=True)
    python = str(place / "venv" / "bin" / "python")
    subprocess.run([python, *PIP, *NEEDED], check=True, stdin=subprocess.DEVNULL)
    subprocess.run([python, *PIP, *NEEDED_TO_RUN], check=False, stdin=subprocess.DEVNULL)
    return python


def load_in(place: Path, python: str, version: str, source: Path | None) -> dict[str, Any]:
    """Put this version of Packstack under `place` and load it."""
    code = place / "code"
    install(code, python, version, source)
    home = place / MARKS["home"]
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id.pub").touch()
    done = subprocess.run(
        [python, str(Path(__file__).resolve()), "--load"],
        env={
            **{"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(code)},
            **{"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"},
        },
        cwd=place,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    table: dict[str, Any] = json.loads(done.stdout)
    return table


def install(code: Path, python: str, version: str, source: Path | None = None) -> None:
    """Put this version's modules under `code`, with a working directory of their own beside it."""
    if source:
        shutil.copytree(source / "packstack", code / "packstack")
    else:
        wanted = ["--no-deps", "--target", str(code), f"packstack=={version}"]
        subprocess.run([python, *PIP, *wanted], check=True, stdin=subprocess.DEVNULL)
    if int(version.split(".", maxsplit=1)[0]) < FIRST_PYTHON_3:
        # Up to Python 3.12, which is enough: there is no newer version of those to come.
        subprocess.run([python, "-m", "lib2to3", "-w", "-n", str(code)], check=True, **QUIET)
    basedefs = code / "packstack" / "installer" / "basedefs.py"
    text = basedefs.read_text(encoding="utf-8")
    if text.count(VAR_DIR) != 1:
        raise SystemExit(f"Packstack {version}: {VAR_DIR} is not in basedefs.py once")
    basedefs.write_text(text.replace(VAR_DIR, repr(str(code.parent / "var"))), encoding="utf-8")


def sorted_with_cmp(items: Any, cmp: Any = None, key: Any = None, reverse: bool = False) -> list[Any]:
    """Python 2's `sorted`: lib2to3 has no fixer for its `cmp`."""
    return SORTED(items, key=functools.cmp_to_key(cmp) if cmp else key, reverse=reverse)


def prepare() -> None:
    """Let versions that were written for older Pythons be imported, and without their document."""
    # Python 3.8 dropped it; versions up to 15 ask.
    platform.linux_distribution = lambda: ("CentOS Linux", "7", "Core")  # type: ignore[attr-defined]
    builtins.sorted = sorted_with_cmp  # type: ignore[assignment]
    try:
        __import__("netifaces")
    except ImportError:
        sys.modules["netifaces"] = types.ModuleType("netifaces")
    from packstack.modules import documentation  # type: ignore[import-not-found]

    # It fills in texts from a document that is not among the wheel's own files.
    documentation.update_params_usage = lambda *arguments, **named: None


def load() -> dict[str, Any]:
    """Load Packstack's plugins with marks in place of what is the machine's; groups and parameters."""
    uuid.uuid4 = lambda: uuid.UUID(hex=MARKS["secret"] * 2)
    socket.gethostname = lambda: MARKS["host-name"]
    prepare()
    from packstack.installer import utils  # type: ignore[import-not-found]

    utils.get_localhost_ip = utils.network.get_localhost_ip = lambda: MARKS["address"]
    from packstack.installer import run_setup

    run_setup.loadPlugins()
    run_setup.initPluginsConfig()
    groups: list[dict[str, Any]] = []
    parameters: dict[str, dict[str, Any]] = {}
    for group in run_setup.controller.getAllGroups():
        groups.append({"name": group.GROUP_NAME, "condition": condition(group)})
        for name in group.parameters.keyOrder:
            # The first one counts, as in Packstack's Controller.getParamByName.
            parameters.setdefault(name, describe(group.GROUP_NAME, group.parameters[name]))
    return {"groups": groups, "parameters": list(parameters.values())}


def condition(group: Any) -> dict[str, Any] | None:
    """Under which condition Packstack reads a group of parameters; null: always."""
    if isinstance(group.PRE_CONDITION, str):
        return {"key": group.PRE_CONDITION, "equals": group.PRE_CONDITION_MATCH}
    if callable(group.PRE_CONDITION) and group.PRE_CONDITION.__name__ != "<lambda>":
        return {"function": group.PRE_CONDITION.__name__}
    return None  # False, or lambda x: 'yes'


def describe(group: str, parameter: Any) -> dict[str, Any]:
    """One parameter, as plain data."""
    default, runtime = plain(parameter.DEFAULT_VALUE)
    found = {
        "name": parameter.CONF_NAME,
        "group": group,
        "default": default,
        "runtime": runtime,
        "options": [str(option) for option in parameter.OPTION_LIST or ()],
        "validators": [function.__name__ for function in parameter.VALIDATORS or ()],
        "masked": bool(parameter.MASK_INPUT),
        "deprecates": list(parameter.DEPRECATES or ()),
    }
    return {name: value for name, value in found.items() if value or name == "default"}


def plain(default: Any) -> tuple[Any, str | None]:
    """The default if it is a plain value, and what Packstack computes it from if it is none."""
    if default == PLACEHOLDER:
        return None, "secret"
    for kind, mark in MARKS.items():
        if mark in str(default):
            return None, kind
    if isinstance(default, str | int | float):
        return default, None
    return str(default) if isinstance(default, list) else None, None


def pretty(version: str, table: dict[str, Any]) -> str:
    """JSON with one group and one parameter a line."""

    def lines(items: list[dict[str, Any]]) -> str:
        return ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in items)

    return (
        f'{{\n "packstack": {json.dumps(version)},\n'
        f' "groups": [\n{lines(table["groups"])}\n ],\n'
        f' "parameters": [\n{lines(table["parameters"])}\n ]\n}}\n'
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
