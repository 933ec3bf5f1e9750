"""The Vagrantfile in Vagrant's own validation, for every topology and provider.

The plugins vagrant-lxc and vagrant-libvirt are the real ones. VirtualBox is a fake that
says its version, and VMware's plugin a stand-in with the settings that it documents.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stacklab import files, plan, providers, topology
from stacklab.base import Golden
from stacklab.plan import Plan
from stacklab.providers import vagrant
from stacklab.providers.lxc import Lxc
from stacklab.providers.machines import Machines
from tests.fakes import install

pytestmark = pytest.mark.integration

TOPOLOGIES = sorted(path.stem for path in (files.PROJECT / "topologies").glob("*.yaml"))
PLUGIN = files.PROJECT / "tests" / "fakes" / "vmware_plugin.rb"
BOX = {"box": "stacklab/none", "box_url": "file:///nonexistent.json", "box_version": "0.1.0"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the Vagrantfile, where labs are kept too."""
    shutil.copy(files.PROJECT / "Vagrantfile", tmp_path)
    monkeypatch.setattr(files, "labs_dir", lambda: tmp_path / ".stacklab" / "labs")
    install("VBoxManage", tmp_path / "fake", monkeypatch, {"machines": {}, "interfaces": {}})
    return tmp_path


def resolved(name: str, provider: str) -> Plan:
    """The plan of a topology, with any provider, whatever there is an image for."""
    found = plan.resolve(topology.load(name, files.PROJECT / "topologies"), provider="lxc", lab=name)
    isolated = provider in ("lxc", "libvirt")
    return dataclasses.replace(found, provider=provider, isolated=isolated, datapath="system")


def discs(settings: dict[str, Any]) -> list[Path]:
    """The discs that machines are to have; VirtualBox is asked for none that is not there."""
    return [Path(node["disc"]) for node in settings["nodes"] if "disc" in node and "/labs/" in node["disc"]]


def settings_of(one: Plan) -> dict[str, Any]:
    made = providers.provider(one, Golden("none", "1", Path("/nonexistent")))
    if isinstance(made, Lxc):
        return made._vagrant()
    assert isinstance(made, Machines)
    return made.vagrant_settings(BOX)


@pytest.mark.parametrize("provider", ["lxc", "libvirt", "virtualbox", "vmware_desktop"])
def test_vagrant_validates_every_topology(provider: str, project: Path) -> None:
    def validate(name: str) -> str:
        one = resolved(name, provider)
        settings = settings_of(one)
        vagrant.write_plan(one, settings)
        home = one.directory / "vagrant" / "home"
        for path in (one.directory / "ssh" / "id_ed25519", *discs(settings)):
            files.write(path, "", 0o600)
        environment = {**os.environ, **settings["environment"], "STACKLAB_INSIDE": one.lab}
        if provider == "vmware_desktop":
            # What Vagrant reads before the project's own.
            files.write(home / "Vagrantfile", PLUGIN.read_text(encoding="utf-8"))
        done = subprocess.run(
            ["vagrant", "validate"],
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return "" if done.returncode == 0 else f"{name}: {done.stdout}{done.stderr}"

    with ThreadPoolExecutor(2) as pool:
        wrong = [said for said in pool.map(validate, TOPOLOGIES) if said]
    assert not wrong, "\n".join(wrong)
