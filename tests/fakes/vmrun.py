"""A fake vmrun: machines by their vmx files; a suspended one has a vmss file beside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from tool import main, need  # type: ignore[import-not-found]


def act(state: dict[str, Any], words: list[str]) -> str:
    need(words[:2] == ["-T", "ws"], "which product?")
    words = words[2:]
    if words == ["list"]:
        running = [name for name, one in state["machines"].items() if one["state"] == "running"]
        return "\n".join([f"Total running VMs: {len(running)}", *running]) + "\n"
    need(words[1] in state["machines"], f"cannot open VM: {words[1]}")
    machine = state["machines"][words[1]]
    memory = Path(words[1]).with_suffix(".vmss")
    match words:
        case ["start", _, "nogui"]:
            need(machine["state"] != "running", "the virtual machine is already running")
            machine["state"] = "running"
            memory.unlink(missing_ok=True)
        case ["suspend", _, "hard"]:
            need(machine["state"] == "running", "the virtual machine is not powered on")
            machine["state"] = "suspended"
            memory.touch()
        case ["stop", _, "soft" | "hard"]:
            need(machine["state"] == "running", "the virtual machine is not powered on")
            machine["state"] = "off"
        case ["snapshot", _, name]:
            machine["snapshots"][name] = machine["state"]
        case ["revertToSnapshot", _, name]:
            need(name in machine["snapshots"], "the snapshot does not exist")
            machine["state"] = "suspended" if machine["snapshots"][name] != "off" else "off"
            memory.touch()
        case ["deleteSnapshot", _, name]:
            need(name in machine["snapshots"], "the snapshot does not exist")
            del machine["snapshots"][name]
        case ["listSnapshots", _]:
            names = list(machine["snapshots"])
            return "\n".join([f"Total snapshots: {len(names)}", *names]) + "\n"
        case ["deleteVM", name]:
            need(machine["state"] != "running", "the virtual machine is running")
            del state["machines"][name]
        case _:
            need(False, f"unknown command {words}")
    return ""


main(act)
