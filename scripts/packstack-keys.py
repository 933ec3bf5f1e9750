#!/usr/bin/env python3
"""Write stacklab/data/packstack/VERSION.json: every answer-file key of one Packstack version.

    scripts/packstack-keys.py 21.0.1

The table comes from Packstack itself: its wheel is taken from the package index with pip into a
virtual environment of its own (a temporary directory, removed afterwards), and its plugins are
loaded there, in a subprocess, as `packstack.installer.run_setup` loads them. They run unmodified,
but for Packstack's working directory, which is moved out of /var/tmp. netifaces needs a C compiler;
where it cannot be installed a stub takes its place, which is enough to load.

A parameter has, in the order of Packstack's groups: name, group, default (a plain value, else null),
runtime (why the default is null: what Packstack computes when it starts: "address", "host-name",
"home", "secret"), options, validators and processors (names of Packstack's functions), masked (a
password), conf_only (no command-line option), deprecates (old names), usage. A group has the
condition under which Packstack reads it: null (always), {"key", "equals"}, or {"function"}.

The output depends on the version alone: the machine's address, its name, the home directory and
uuid.uuid4 are replaced by marks while loading, and a default with a mark in it becomes null.
"""

from __future__ import annotations

import json
import os
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
NEEDED = ("netaddr", "PyYAML", "distro", "pyOpenSSL", "docutils", "pbr")
NEEDED_TO_RUN = ("netifaces",)
VAR_DIR = "'/var/tmp/packstack'"

# What stands for a value of the machine while the plugins load; 192.0.2.0/24 is for documentation.
MARKS = {
    "address": "192.0.2.254",
    "host-name": "mark-of-the-host-name.invalid",
    "home": "mark-of-the-home",
    "secret": "f00df00df00df00d",
}
PLACEHOLDER = "PW_PLACEHOLDER"  # packstack.installer.processors.process_password draws a password for it


def main(arguments: list[str]) -> int:
    """Make the table of the version named on the command line."""
    if arguments == ["--load"]:
        json.dump(load(), sys.stdout)
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"{__doc__}\nusage: packstack-keys.py VERSION", file=sys.stderr)
        return 2
    version = arguments[0]
    with tempfile.TemporaryDirectory(prefix="packstack-keys-") as temporary:
        table = load_in(Path(temporary), version)
    text = pretty(version, table)
    if "\0" in text or "\\u0000" in text:
        raise SystemExit("a NUL byte in the table")
    DATA.mkdir(parents=True, exist_ok=True)
    target = DATA / f"{version}.json"
    target.write_text(text, encoding="utf-8")
    print(f"{target.relative_to(DATA.parent.parent.parent)}: {len(table['parameters'])} parameters")
    return 0


def load_in(place: Path, version: str) -> dict[str, Any]:
    """Install this version of Packstack under `place` and load it with a Python of its own."""
    environment = place / "venv"
    venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *NEEDED], check=True, stdin=subprocess.DEVNULL)
    subprocess.run([*pip, *NEEDED_TO_RUN], check=False, stdin=subprocess.DEVNULL)
    subprocess.run([*pip, "--no-deps", f"packstack=={version}"], check=True, stdin=subprocess.DEVNULL)
    (var,) = environment.glob("lib/python*/site-packages/packstack/installer/basedefs.py")
    source = var.read_text(encoding="utf-8")
    if source.count(VAR_DIR) != 1:
        raise SystemExit(f"Packstack {version}: {VAR_DIR} is not in basedefs.py once")
    var.write_text(source.replace(VAR_DIR, repr(str(place / "var"))), encoding="utf-8")
    home = place / MARKS["home"]
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id.pub").touch()
    done = subprocess.run(
        [python, str(Path(__file__).resolve()), "--load"],
        env={"HOME": str(home), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"},
        cwd=place,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    table: dict[str, Any] = json.loads(done.stdout)
    return table


def load() -> dict[str, Any]:
    """Load Packstack's plugins with marks in place of what is the machine's; groups and parameters."""
    uuid.uuid4 = lambda: uuid.UUID(hex=MARKS["secret"] * 2)
    socket.gethostname = lambda: MARKS["host-name"]
    try:
        __import__("netifaces")
    except ImportError:
        sys.modules["netifaces"] = types.ModuleType("netifaces")
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
    return {
        "name": parameter.CONF_NAME,
        "group": group,
        "default": default,
        "runtime": runtime,
        "options": [str(option) for option in parameter.OPTION_LIST or ()],
        "validators": [function.__name__ for function in parameter.VALIDATORS or ()],
        "processors": [function.__name__ for function in parameter.PROCESSORS or ()],
        "masked": bool(parameter.MASK_INPUT),
        "conf_only": bool(parameter.USE_DEFAULT),
        "deprecates": list(parameter.DEPRECATES or ()),
        # docutils leaves NUL bytes where the text had a backslash.
        "usage": " ".join((parameter.USAGE or "").replace("\0", "").split()),
    }


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
