"""Any Packstack version, reading answer files with its own parser and validators.

Packstack comes from the package index into the cache directory ($XDG_CACHE_HOME), which later runs take
again; netifaces needs a C compiler. The process that reads differs from a real run of Packstack in these
places only:

- `validate_ssh` and `validate_multi_ssh`, which connect to port 22 of every node, are replaced by
  functions that take any value: there are no nodes here;
- Packstack's idea of the local address is 192.0.2.254, so that a test sees whether it gets through;
- its working directory is in the cache instead of /var/tmp;
- it runs on this Python, not on its platform's (2.7, 3.6 or 3.9), and what this one has no more
  (platform.linux_distribution, sorted's cmp) is put back: `prepare` of scripts/packstack-keys.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from stacklab import answers, releases

PROJECT = Path(__file__).resolve().parents[2]
LOCAL_ADDRESS = "192.0.2.254"
SCRIPT = PROJECT / "scripts" / "packstack-keys.py"

# What the index does not have can be read by its key table alone.
INSTALLABLE = {row.packstack: row.name for row in map(releases.release, releases.names()) if row.sha256}
ABSENT = {row.packstack: row.name for row in map(releases.release, releases.names()) if not row.sha256}

# Plugins are loaded once; each file is read in a process of its own, since Packstack keeps what it read.
_READ = """
import contextlib, importlib.util, io, json, os, sys
script, address, *paths = sys.argv[1:]
spec = importlib.util.spec_from_file_location("packstack_keys", script)
keys = importlib.util.module_from_spec(spec)
spec.loader.exec_module(keys)
keys.prepare()
from packstack.installer import utils, validators
utils.get_localhost_ip = utils.network.get_localhost_ip = lambda: address
def validate_ssh(param, options=None): pass
def validate_multi_ssh(param, options=None): pass
validators.validate_ssh, validators.validate_multi_ssh = validate_ssh, validate_multi_ssh
from packstack.installer import run_setup
with contextlib.redirect_stdout(sys.stderr):
    run_setup.loadPlugins()
    run_setup.initPluginsConfig()
known = [name for group in run_setup.controller.getAllGroups() for name in group.parameters.keyOrder]
for path in paths:
    sys.stderr.flush()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    said, error = io.StringIO(), ""
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            run_setup._handleAnswerFileParams(path)
        except Exception as caught:
            error = str(caught)
    with open(path + ".json", "w") as answer:
        json.dump({"keys": known, "error": error, "output": said.getvalue(),
                   "conf": run_setup.controller.CONF}, answer)
    os._exit(0)
"""


@dataclass(frozen=True)
class Reading:
    """What Packstack made of an answer file: the keys it knows, what it read, its refusal, its output."""

    keys: list[str]
    error: str
    conf: dict[str, Any]
    output: str


def script() -> ModuleType:
    """scripts/packstack-keys.py as a module."""
    spec = importlib.util.spec_from_file_location("packstack_keys", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed(version: str) -> tuple[Path, Path]:
    """A Python with what Packstack needs, and the directory with this version's modules."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "stacklab" / "tests" / f"packstack-py{sys.version_info.major}{sys.version_info.minor}"
    done = place / "complete"
    if not done.exists():
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["rm", "-rf", str(place / "venv")], check=True)
        script().environment(place)
        done.touch()
    python = place / "venv" / "bin" / "python"
    code = place / version / "code"
    if not (place / version / "complete").exists():
        subprocess.run(["rm", "-rf", str(place / version)], check=True)
        script().install(code, str(python), version)
        (place / version / "complete").touch()
    return python, code


def read(version: str, texts: dict[str, str], place: Path) -> dict[str, Reading]:
    """What this version makes of each answer file; `place` is a directory for the test's own files."""
    python, code = installed(version)
    key = place / "id.pub"
    key.write_text("ssh-ed25519 AAAA lab\n", encoding="utf-8")
    paths = {}
    for name, text in texts.items():
        # The key is on the controller, not here, and Packstack would make one where it finds none.
        paths[name] = place / f"{name}.txt"
        paths[name].write_text(text.replace(answers.SSH_KEY, str(key)), encoding="utf-8")
    done = subprocess.run(
        [str(python), "-c", _READ, str(SCRIPT), LOCAL_ADDRESS, *map(str, paths.values())],
        env={"HOME": str(place), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PYTHONPATH": str(code)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {
        name: Reading(**json.loads(Path(f"{path}.json").read_text(encoding="utf-8")))
        for name, path in paths.items()
    }


def load(version: str, place: Path) -> dict[str, Any]:
    """The key table as this version's plugins give it now."""
    python, code = installed(version)
    home = place / "mark-of-the-home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id.pub").touch()
    done = subprocess.run(
        [str(python), str(SCRIPT), "--load"],
        env={"HOME": str(home), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PYTHONPATH": str(code)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
    )
    table: dict[str, Any] = json.loads(done.stdout)
    return table
