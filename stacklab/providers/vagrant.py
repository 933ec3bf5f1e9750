"""Vagrant, as the providers call it, and what the Vagrantfile needs to know of every lab."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import vagrant

from stacklab import files, namespace, ui
from stacklab.plan import Plan
from stacklab.run import run

_DISKS = ("virtualbox", "vmware_desktop")


class Vagrant(vagrant.Vagrant):  # type: ignore[misc]
    """python-vagrant through `run`: with a log, a deadline, and what Vagrant says on failure."""

    def __init__(self, settings: dict[str, Any], log: Path, timeout: float = 900) -> None:
        super().__init__(root=str(files.PROJECT))
        self._settings = settings
        self._log = log
        self._timeout = timeout

    def _run(self, args: list[Any], merge: bool) -> str:
        return run(
            [*self._settings["enter"], *self._make_vagrant_command(args)],
            log=self._log,
            cwd=files.PROJECT,
            env={**self._settings["environment"], "STACKLAB_INSIDE": self._settings["lab"]},
            timeout=self._timeout,
            merge_stderr=merge,
            each_line=lambda line: ui.detail(line.strip("=> ")),
        ).output

    def _call_vagrant_command(self, args: list[Any]) -> None:
        self._run(args, merge=True)

    def _run_vagrant_command(self, args: list[Any]) -> str:
        return self._run(args, merge=False)


def settings(plan: Plan, box: dict[str, str], enter: list[str] | None = None) -> dict[str, Any]:
    """What the Vagrantfile needs whatever the provider is.

    `enter` begins each command; where the lab's networks are by default.
    """
    return {
        "lab": plan.lab,
        "provider": plan.provider,
        "enter": namespace.enter(plan) if enter is None else enter,
        "private_key": str(plan.directory / "ssh" / "id_ed25519"),
        "environment": {
            "VAGRANT_HOME": str(plan.directory / "vagrant" / "home"),
            "VAGRANT_DOTFILE_PATH": str(plan.directory / "vagrant" / "state"),
            "VAGRANT_DEFAULT_PROVIDER": plan.provider,
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "STACKLAB_LAB": plan.lab,
            # Sizes of disks, and discs: how VirtualBox and VMware are told of them.
            **({"VAGRANT_EXPERIMENTAL": "disks"} if plan.provider in _DISKS else {}),
        },
        **box,
    }


def prepare_home(plan: Plan) -> None:
    """Let the lab's own Vagrant directory have the plugins that root installed in the usual one."""
    home = plan.directory / "vagrant" / "home"
    home.mkdir(parents=True, exist_ok=True)
    usual = Path(os.environ.get("VAGRANT_HOME") or Path.home() / ".vagrant.d")
    for name in ("plugins.json", "gems"):
        if (usual / name).exists() and not (home / name).exists():
            (home / name).symlink_to(usual / name)


def write_plan(plan: Plan, vagrant_settings: dict[str, Any]) -> None:
    """plan.json: the plan, and what the Vagrantfile reads."""
    files.write_json(
        plan.directory / "plan.json", {"plan": plan.as_json(), "vagrant": vagrant_settings}, mode=0o600
    )
