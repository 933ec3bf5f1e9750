"""Templates and kickstarts by the tools that read them: the real Packer, and pykickstart."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stacklab import base, distributions, files, goldendib, inputs, packer
from tests.unit.test_linters import VENV, tool

pytestmark = pytest.mark.integration

MACHINES = ("qemu", "virtualbox-iso", "vmware-iso")
INSTALLERS = [one for one in inputs.all_inputs() if one.kind == "iso"]
BUILT = [name for name in distributions.names() if "packer" in distributions.distribution(name).builders]
# Every distribution that a template can build: QEMU from a disk and an ISO, the others from an ISO.
PAIRS = [
    (name, machine, kind)
    for name in BUILT
    for machine in MACHINES
    for kind in inputs.kinds(name)
    if kind == "iso" or machine == "qemu"
]
# pykickstart's names of the versions that have a kickstart here
VERSIONS = {"el7": "RHEL7", "el9": "RHEL9"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheel = tmp_path / "packstack.whl"
    wheel.touch()
    monkeypatch.setattr(goldendib, "wheel", lambda release, log: wheel)
    yield tmp_path


def variables(distribution: str, kind: str, place: Path) -> dict[str, Any]:
    """What a build of the distribution would tell the templates."""
    row = distributions.distribution(distribution)
    provider = next(name for name in row.providers if name != "lxc")
    path = place / ("source.iso" if kind == "iso" else "source.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1G"], check=True)
    spec = base.spec(distribution, provider, builder="packer", source=str(path))
    return packer.variables(spec, inputs.given(path), place, place / "log")


def validate(place: Path, variables: dict[str, Any], machine: str) -> subprocess.CompletedProcess[str]:
    files.write_json(place / "golden.pkrvars.json", variables)
    return subprocess.run(
        [
            *(tool("packer"), "validate", f"-only={machine}.golden"),
            *(f"-var-file={place / 'golden.pkrvars.json'}", str(packer.TEMPLATES / "golden")),
        ],
        env={**os.environ, "CHECKPOINT_DISABLE": "1", "PACKER_CONFIG_DIR": str(place / "config")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("distribution", "machine", "kind"), PAIRS)
def test_every_template_with_every_distribution(
    distribution: str, machine: str, kind: str, place: Path
) -> None:
    result = validate(place, variables(distribution, kind, place), machine)
    assert result.returncode == 0, result.stdout + result.stderr
    # A variable that no template has would only be a warning.
    assert "Undefined variable" not in result.stdout


@pytest.mark.parametrize("machine", MACHINES)
def test_a_mistake_does_not_pass(machine: str, place: Path) -> None:
    found = variables("debian-12", "cloud", place)
    for name, value in (("checksum", "sha256:123"), ("memory", "much"), ("key", "/none")):
        result = validate(place, {**found, name: value}, machine)
        assert result.returncode != 0, f"{name}: {result.stdout}"


@pytest.mark.parametrize("proxy", ["", "http://proxy.example:3128"], ids=["direct", "proxy"])
@pytest.mark.parametrize("installer", INSTALLERS, ids=lambda one: one.distribution)
def test_every_kickstart(installer: inputs.Input, proxy: str, tmp_path: Path) -> None:
    text = packer.kickstart(installer, "ssh-ed25519 AAAA build", proxy)
    (tmp_path / "ks.cfg").write_text(text)
    argv = [str(VENV / "ksvalidator"), "-e", "-v", VERSIONS[installer.kickstart], str(tmp_path / "ks.cfg")]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "@" not in re.sub("@core", "", text)
    # nobody gets in but the build
    assert re.findall(r"^(?:rootpw|user|auth\w*) .*", text, re.MULTILINE)[-1:] == ["rootpw --lock"]
    assert "ssh-ed25519 AAAA build" in text
    # a boot medium has no packages
    assert ("cdrom\n" in text) is ("boot" not in installer.name)
    assert (proxy in text) is (not proxy or "boot" in installer.name)
