"""The reset of two virtual machines measured: stacklab against `vagrant snapshot restore`, in one run.

    python -m benchmarks.reset_libvirt [--rounds 3]

Two emulated Debian nodes in a network namespace of their own (as in tests/integration). Both go back
to a snapshot with memory and are timed until both nodes answer ssh; stacklab's time includes the step
of their clocks. Vagrant takes one node after the other. The rounds alternate; the figures are medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from stacklab import files, nodes, providers, remote, removal, ui
from stacklab.providers.libvirt import Libvirt
from stacklab.providers.vagrant import Vagrant
from tests.integration import small_lab

LAB = "bench-libvirt"
SNAPSHOT = "bench"


def timed(act: Callable[[], object]) -> float:
    """Seconds that `act` takes."""
    start = time.monotonic()
    act()
    return time.monotonic() - start


def main() -> None:
    """Make the lab, measure, print the table, remove the lab."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    plan = small_lab.two_nodes(LAB)
    provider = providers.provider(plan, small_lab.image())
    assert isinstance(provider, Libvirt)
    try:
        provider.create()
        nodes.check(plan)
        settings = files.read_json(plan.directory / "plan.json")["vagrant"]
        vagrant = Vagrant(settings, plan.directory / "logs" / "vagrant.log")
        saves: dict[str, list[float]] = {"stacklab": [], "vagrant": []}
        resets: dict[str, list[float]] = {"stacklab": [], "vagrant": []}

        def vagrant_save() -> None:
            for node in plan.topology.nodes:
                vagrant._call_vagrant_command(["snapshot", "save", "--force", node.name, SNAPSHOT])

        def vagrant_restore() -> None:
            for node in plan.topology.nodes:
                vagrant._call_vagrant_command(["snapshot", "restore", "--no-provision", node.name, SNAPSHOT])
            remote.wait_for_ssh(plan)

        def own_restore() -> None:
            provider.revert(payload)
            provider.start()

        for _ in range(rounds):
            saves["vagrant"].append(timed(vagrant_save))
            resets["vagrant"].append(timed(vagrant_restore))
            start = time.monotonic()
            payload = provider.capture()
            saves["stacklab"].append(time.monotonic() - start)
            resets["stacklab"].append(timed(own_restore))
            for node in plan.topology.nodes:
                provider.virsh("snapshot-delete", provider.machine(node), "--snapshotname", payload["name"])
        rows = [
            (
                who,
                f"{statistics.median(saves[who]):.1f}",
                f"{statistics.median(resets[who]):.1f}",
                f"{statistics.median(resets['vagrant']) / statistics.median(resets[who]):.1f}",
                " ".join(f"{one:.1f}" for one in resets[who]),
            )
            for who in resets
        ]
        load = (
            f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {Path('/proc/version').read_text()[:30]}"
        )
        ui.table(
            f"Two nodes, {rounds} rounds, {load}",
            ("", "save s", "reset s", "times faster", "each reset"),
            rows,
        )
    finally:
        removal.down(LAB)


if __name__ == "__main__":
    main()
