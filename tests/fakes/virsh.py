"""A fake virsh: domains with states and snapshots, networks, a storage pool."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from tool import main, need  # type: ignore[import-not-found]

ORDER = {"suspend": ("running", "paused"), "resume": ("paused", "running"), "start": ("off", "running")}


def act(state: dict[str, Any], words: list[str]) -> str:  # noqa: PLR0911, PLR0912, PLR0915 - a line a command
    need(words[:3] == ["-q", "-c", "qemu:///system"], "which libvirtd?")
    domains, networks = state["domains"], state["networks"]
    match words[3:]:
        case ["list", "--name", "--all"]:
            return "".join(f"{name}\n" for name in domains)
        case ["list", "--name", option]:
            wanted = option.removeprefix("--state-")
            return "".join(f"{name}\n" for name, one in domains.items() if one["state"] == wanted)
        case ["net-list", "--name"]:
            return "".join(f"{name}\n" for name, active in networks.items() if active)
        case ["net-start", name]:
            need(not networks[name], "network is already active")
            networks[name] = True
        case ["net-destroy", name]:
            need(networks.get(name), "network is not active")
            networks[name] = False
        case ["net-undefine", name]:
            need(name in networks, "network not found")
            del networks[name]
        case ["pool-destroy" | "pool-undefine", _]:
            pass
        case ["suspend" | "resume" | "start" as command, name]:
            before, after = ORDER[command]
            need(domains[name]["state"] == before, f"cannot {command}: it is {domains[name]['state']}")
            need(all(networks.values()), "a network is not active")
            domains[name]["state"] = after
        case ["domtime", name, "--now"]:
            need(domains[name]["state"] == "running", "domain is not running")
            need(not domains[name].get("agentless"), "guest agent is not responding")
        case ["shutdown", name]:
            need(domains[name]["state"] == "running", "domain is not running")
            if not domains[name].get("deaf"):
                domains[name]["state"] = "off"
        case ["destroy", name]:
            need(domains[name]["state"] != "off", "domain is not running")
            domains[name]["state"] = "off"
        case ["undefine", name, *options]:
            need(not domains[name]["snapshots"] or "--snapshots-metadata" in options, "it has snapshots")
            del domains[name]
        case ["snapshot-create-as", name, snapshot]:
            need(domains[name]["state"] != "running", "not at one moment with the others")
            need(not domains[name].get("pflash"), "internal snapshots of a VM with pflash are not supported")
            domains[name]["snapshots"][snapshot] = domains[name]["state"]
        case ["snapshot-create-as", name, _, "--disk-only", "--atomic", "--no-metadata", *specs]:
            need(domains[name]["state"] != "running", "not at one moment with the others")
            for spec in specs[1::2]:
                target, _, file = spec.partition(",file=")
                domains[name]["disks"][target] = file
        case ["snapshot-list", name, "--name"]:
            return "".join(f"{snapshot}\n" for snapshot in domains[name]["snapshots"])
        case ["snapshot-delete", name, "--snapshotname", snapshot]:
            need(snapshot in domains[name]["snapshots"], "no domain snapshot with matching name")
            del domains[name]["snapshots"][snapshot]
        case ["qemu-monitor-command", "--hmp", name, "loadvm", snapshot]:
            need(domains[name]["state"] == "paused", "domain is not running")
            # A monitor's command ends well whatever became of it.
            if domains[name].get("other_devices") or snapshot not in domains[name]["snapshots"]:
                return "Error: Missing section footer\n"
        case ["snapshot-revert", name, "--snapshotname", snapshot, "--paused", "--force"]:
            need(snapshot in domains[name]["snapshots"], "no domain snapshot with matching name")
            domains[name]["state"] = "paused"
        case ["dumpxml", name, *_]:
            disks = "".join(
                f"<disk device='disk'><source file='{file}'/><target dev='{target}'/>"
                "<backingStore type='file'/></disk>"
                for target, file in domains[name]["disks"].items()
            )
            disc = "<disk device='cdrom'><source file='/seed.iso'/><target dev='sda'/></disk>"
            return f"<domain><name>{name}</name><devices>{disks}{disc}</devices></domain>"
        case ["define", file]:
            domain = __import__("xml.etree.ElementTree").etree.ElementTree.parse(file)
            name = domain.findtext("name")
            need(domains[name]["state"] == "off", "it would change at its next start only")
            for disk in domain.findall("devices/disk[@device='disk']"):
                need(disk.find("backingStore") is None, "a backing store that is not its own")
                domains[name]["disks"][disk.find("target").get("dev")] = disk.find("source").get("file")
        case _:
            need(False, f"unknown command {words}")
    return ""


main(act)
