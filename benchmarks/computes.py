"""What one more compute node costs: `python -m benchmarks.computes`.

One run on one machine: a lab with one compute node is made from the golden image and raised to four, one at
a time, by the same commands that a user types. Seconds are from the lab's own timeline; memory is the
proportional set size of a node's processes, in which pages that several nodes share count for a part
each. The lab is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reset import invoke, last_run
from stacklab import files, lab, remote

# Of all processes of a node, in KiB.
_PSS = "cat /proc/[0-9]*/smaps_rollup 2>/dev/null | awk '/^Pss:/ {sum += $2} END {print sum}'"


@dataclass(frozen=True)
class Size:
    """A lab of some size: seconds of the command and of adding, MiB of the newest node and of all."""

    computes: int
    command: float
    adding: float
    node: float
    all: float


def measure(name: str, computes: int, command: float) -> Size:
    """Read how long the last `up` took, and what the nodes use now."""
    plan = lab.open_plan(name)
    spans = {span.title.split(" on ")[0]: (span.end or 0) - span.start for span in last_run(name).spans}
    used = [float(remote.ssh(plan, node, _PSS).output) / 1024 for node in plan.topology.nodes]
    adding = next((seconds for title, seconds in spans.items() if title.startswith("adding ")), 0.0)

    return Size(computes, command, adding, used[-1], sum(used))


def main() -> None:
    """Measure, and print the table of README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", default="bench-computes")
    parser.add_argument("--most", type=int, default=4)
    chosen = parser.parse_args()
    text = (files.PROJECT / "topologies" / "multi-compute.yaml").read_text(encoding="utf-8")
    invoke("build-base")
    invoke("down", "--lab", chosen.lab)
    load = os.getloadavg()[0]
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        topology = Path(temporary) / "computes.yaml"
        try:
            for count in range(1, chosen.most + 1):
                topology.write_text(text.replace("count: 2", f"count: {count}"), encoding="utf-8")
                seconds = invoke("up", "--topology", str(topology), "--lab", chosen.lab)
                found.append(measure(chosen.lab, count, seconds))
        finally:
            invoke("down", "--lab", chosen.lab)
    print(f"load before: {load:.1f}\n")
    print("| compute nodes | `up`, s | of it adding, s | MiB of the newest | MiB of all nodes |")
    print("|---|---|---|---|---|")
    for one in found:
        adding = f"{one.adding:.0f}" if one.adding else "(made)"
        print(f"| {one.computes} | {one.command:.0f} | {adding} | {one.node:.0f} | {one.all:.0f} |")


if __name__ == "__main__":
    main()
