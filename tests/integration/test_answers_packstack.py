"""The answer file against Packstack's own parser and validators.

Packstack comes from the package index into a virtual environment in the cache directory
($XDG_CACHE_HOME), which later runs take again; netifaces needs a C compiler. The process that
reads the file differs from a real run of Packstack in three places only:

- `validate_ssh` and `validate_multi_ssh`, which connect to port 22 of every node, are replaced
  by functions that take any value: there are no nodes here;
- Packstack's idea of the local address is 192.0.2.254, so that a test sees whether it gets through;
- its working directory is in the environment instead of /var/tmp.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from stacklab import answercheck, answers, keytable, topology
from stacklab.errors import InvalidInput

pytestmark = pytest.mark.integration

PROJECT = Path(__file__).resolve().parents[2]
VERSION = "21.0.1"
NEEDED = ("netaddr", "PyYAML", "distro", "pyOpenSSL", "docutils", "pbr", "netifaces")
LOCAL_ADDRESS = "192.0.2.254"
VAR_DIR = "'/var/tmp/packstack'"

READ_ANSWERS = """
import contextlib, json, sys
from packstack.installer import utils, validators
utils.get_localhost_ip = utils.network.get_localhost_ip = lambda: sys.argv[2]
def validate_ssh(param, options=None): pass
def validate_multi_ssh(param, options=None): pass
validators.validate_ssh, validators.validate_multi_ssh = validate_ssh, validate_multi_ssh
from packstack.installer import run_setup
error = ""
with contextlib.redirect_stdout(sys.stderr):
    run_setup.loadPlugins()
    run_setup.initPluginsConfig()
    keys = [name for group in run_setup.controller.getAllGroups() for name in group.parameters.keyOrder]
    if sys.argv[1]:
        try:
            run_setup._handleAnswerFileParams(sys.argv[1])
        except Exception as caught:
            error = str(caught)
json.dump({"keys": keys, "error": error, "conf": run_setup.controller.CONF}, sys.stdout)
"""


@dataclass(frozen=True)
class Reading:
    """What Packstack made of an answer file: all keys it knows, what it read, why it refused."""

    keys: list[str]
    error: str
    conf: dict[str, Any]
    output: str


@pytest.fixture(scope="session")
def python() -> Path:
    """The Python of an environment with the real Packstack in it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = (
        cache
        / "stacklab"
        / "tests"
        / f"packstack-{VERSION}-py{sys.version_info.major}{sys.version_info.minor}"
    )
    done = place / "complete"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        pip = [
            str(place / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        subprocess.run([*pip, *NEEDED], check=True)
        subprocess.run([*pip, "--no-deps", f"packstack=={VERSION}"], check=True)
        (basedefs,) = place.glob("lib/python*/site-packages/packstack/installer/basedefs.py")
        source = basedefs.read_text(encoding="utf-8")
        assert source.count(VAR_DIR) == 1
        basedefs.write_text(source.replace(VAR_DIR, repr(str(place / "var"))), encoding="utf-8")
        done.touch()
    return place / "bin" / "python"


@pytest.fixture
def packstack(python: Path, tmp_path: Path) -> Callable[[str], Reading]:
    """Packstack, reading the text of an answer file."""
    (tmp_path / "id.pub").write_text("ssh-ed25519 AAAA lab\n", encoding="utf-8")

    def read(text: str) -> Reading:
        # The key is on the controller, not here, and Packstack would make one where it finds none.
        file = tmp_path / "answers.txt"
        file.write_text(text.replace(answers.SSH_KEY, str(tmp_path / "id.pub")), encoding="utf-8")
        done = subprocess.run(
            [str(python), "-c", READ_ANSWERS, str(file), LOCAL_ADDRESS],
            env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Reading(**json.loads(done.stdout), output=done.stderr)

    return read


def render(name: str = "two-node", **overrides: str) -> str:
    lab = replace(topology.load(name, PROJECT / "topologies"), answers=overrides)
    secrets = keytable.draw(VERSION)
    return answers.render(lab, packstack=VERSION, secrets=secrets, datapath="netdev", workers=1)


def values(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("name", [path.stem for path in topology.available(PROJECT / "topologies")])
def test_packstack_takes_the_file_as_it_is(name: str, packstack: Callable[[str], Reading]) -> None:
    text = render(name)
    reading = packstack(text)
    assert (reading.error, reading.output) == ("", "")
    written = values(text)
    assert reading.keys == list(written)
    changed = {"CONFIG_SSH_KEY"} | {key for key, value in reading.conf.items() if isinstance(value, bool)}
    assert len(reading.conf) > 100
    for key, value in reading.conf.items():
        assert key in changed or str(value) == written[key], key
    assert LOCAL_ADDRESS not in json.dumps(reading.conf)


def test_packstack_takes_every_service_of_its_own(packstack: Callable[[str], Reading]) -> None:
    """With everything on it reads the keys of every group that is about no vendor."""
    on = {name: "y" for name in keytable.table(VERSION) if re.fullmatch(r"CONFIG_[A-Z]+_INSTALL", name)}
    reading = packstack(render(**on))
    assert (reading.error, reading.output) == ("", "")
    assert len(reading.conf) > 150


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CONFIG_DEBUG_MODE", "maybe"),
        ("CONFIG_NEUTRON_INSTALL", "n"),
        ("CONFIG_NEUTRON_L2_AGENT", "token-ring"),
        ("CONFIG_NEUTRON_ML2_TYPE_DRIVERS", "vxlan,token-ring"),
        ("CONFIG_NEUTRON_OVS_VXLAN_UDP_PORT", "65535"),
        ("CONFIG_NOVA_SCHED_CPU_ALLOC_RATIO", "much"),
        ("CONFIG_NOVA_KS_PW", ""),
    ],
)
def test_both_refuse(key: str, value: str, packstack: Callable[[str], Reading]) -> None:
    with pytest.raises(InvalidInput, match=f"answers.{key}: "):
        render(**{key: value})
    text = render()
    reading = packstack(text.replace(f"{key}={values(text)[key]}\n", f"{key}={value}\n"))
    assert reading.error
    assert f"Parameter {key} failed validation" in reading.output


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CONFIG_NEUTRON_OVS_BRIDGE_MAPPINGS", "extnet"),
        ("CONFIG_MARIADB_HOST", ""),
        ("CONFIG_SERVICE_WORKERS", "many"),
        ("CONFIG_GLANCE_INSTALL", ""),
    ],
)
def test_we_refuse_what_packstack_lets_pass(
    key: str, value: str, packstack: Callable[[str], Reading]
) -> None:
    """Once Packstack refuses it too, the rule of our own can go."""
    text = render()
    wrong = text.replace(f"{key}={values(text)[key]}\n", f"{key}={value}\n")
    assert packstack(wrong).error == ""
    assert [problem.path for problem in answercheck.check(wrong, VERSION, "answers.txt")] == [key]


def test_the_table_is_what_packstack_says(python: Path, tmp_path: Path) -> None:
    """Loading the plugins anew, as scripts/packstack-keys.py does, gives the table in stacklab/data."""
    home = tmp_path / "mark-of-the-home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id.pub").touch()
    done = subprocess.run(
        [str(python), str(PROJECT / "scripts" / "packstack-keys.py"), "--load"],
        env={"HOME": str(home), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
    )
    table = json.loads((keytable.DATA / f"{VERSION}.json").read_text(encoding="utf-8"))
    assert {"packstack": VERSION, **json.loads(done.stdout)} == table
