"""A fake VBoxManage: machines with states and snapshots, host-only interfaces."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from tool import main, need  # type: ignore[import-not-found]


def act(state: dict[str, Any], words: list[str]) -> str:  # noqa: PLR0911, PLR0912 - a line a command
    match words:
        case ["--version"]:
            return "7.0.14r161095\n"
        case ["list", "vms"]:
            return "".join(f'"{name}" {{uuid-of-{name}}}\n' for name in state["machines"])
        case ["list", "hostonlyifs"]:
            return "\n".join(
                f"Name:            {name}\nGUID:            x\nDHCP:            Disabled\n"
                f"IPAddress:       {address}\nNetworkMask:     255.255.255.0\n"
                for name, address in state["interfaces"].items()
            )
        case ["hostonlyif", "remove", name]:
            del state["interfaces"][name]
            return ""
    machine = _of(state, words[1])
    match words:
        case ["showvminfo", _, "--machinereadable"]:
            return f'name="{words[1]}"\nVMState="{machine["state"]}"\nVMStateChangeTime="x"\n'
        case ["startvm", _, "--type", "headless"]:
            need(machine["state"] in ("poweroff", "saved", "aborted"), "is already locked by a session")
            machine["state"] = "running"
        case ["controlvm", _, "pause"]:
            need(machine["state"] == "running", "is not running")
            machine["state"] = "paused"
        case ["controlvm", _, "resume"]:
            need(machine["state"] == "paused", "is not paused")
            machine["state"] = "running"
        case ["controlvm", _, "acpipowerbutton"]:
            need(machine["state"] == "running", "is not running")
            if not machine.get("deaf"):
                machine["state"] = "poweroff"
        case ["controlvm", _, "poweroff"]:
            need(machine["state"] in ("running", "paused"), "is not currently running")
            machine["state"] = "poweroff"
        case ["discardstate", _]:
            need(machine["state"] == "saved", "is not in the saved state")
            machine["state"] = "poweroff"
        case ["unregistervm", name, "--delete"]:
            need(machine["state"] in ("poweroff", "saved", "aborted"), "cannot unregister while it is locked")
            del state["machines"][name]
        case ["snapshot", _, "take", name]:
            machine["snapshots"][name] = "saved" if machine["state"] in ("running", "paused") else "poweroff"
        case ["snapshot", _, "restore", name]:
            need(machine["state"] in ("poweroff", "saved", "aborted"), "the machine is running")
            need(name in machine["snapshots"], "could not find a snapshot")
            machine["state"] = machine["snapshots"][name]
        case ["snapshot", _, "delete", name]:
            need(name in machine["snapshots"], "could not find a snapshot")
            del machine["snapshots"][name]
        case ["snapshot", _, "list", "--machinereadable"]:
            need(machine["snapshots"], "this machine does not have any snapshots")
            names = list(machine["snapshots"])
            lines = [f'SnapshotName{"-1" * number}="{name}"' for number, name in enumerate(names)]
            return "\n".join([*lines, f'CurrentSnapshotName="{names[-1]}"']) + "\n"
        case _:
            need(False, f"unknown command {words}")
    return ""


def _of(state: dict[str, Any], name: str) -> dict[str, Any]:
    need(name in state["machines"], f"could not find a registered machine named '{name}'")
    found: dict[str, Any] = state["machines"][name]
    return found


main(act)
