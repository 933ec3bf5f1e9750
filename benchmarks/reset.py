"""How long a lab takes to come back, against making it: `python -m benchmarks.reset`.

One run on one machine: a lab is made from the golden image, ruined and brought up again from its
snapshots, and reset, by the same commands that a user types. What took how long is read from the lab's own
timeline. The lab is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from stacklab import files, report, timeline

INVOKE = Path(sys.executable).with_name("invoke")
# The figures are containers', on a machine too where `auto` takes virtual ones.
ENVIRONMENT = {**os.environ, "INVOKE_PROVIDER": "lxc"}


@dataclass(frozen=True)
class Back:
    """Seconds from the start: until the nodes answer ssh, until all is up, until the command ended."""

    nodes: float
    healthy: float
    command: float


def invoke(*words: str) -> float:
    """Run a task and return its wall time in seconds."""
    start = time.monotonic()
    done = subprocess.run(
        [str(INVOKE), *words],
        cwd=files.PROJECT,
        env=ENVIRONMENT,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode != 0:
        sys.exit(f"invoke {' '.join(words)}: exit code {done.returncode}\n{done.stdout.decode()}")
    return time.monotonic() - start


def last_run(lab: str) -> report.Run:
    """The newest run in the lab's timeline."""
    return report.run_of(timeline.read(files.labs_dir() / lab / timeline.FILE)[-1])


def back(lab: str, *words: str) -> Back:
    """Run a command that restores a snapshot and read how the lab came back."""
    command = invoke(*words)
    run = last_run(lab)
    settling = next(span for span in run.spans if span.title.startswith("settling"))
    if settling.end is None:
        sys.exit(f"{' '.join(words)} did not settle")
    rows = next(table["rows"] for table in run.tables if table["title"] == "Back after")
    ssh = next(float(cell.split()[0]) for what, cell in rows if what == "ssh to all nodes")
    # From the command's start, Python's own included.
    before = command - (run.end - run.start)
    return Back(settling.start + ssh - run.start + before, settling.end - run.start + before, command)


def ruin(lab: str) -> None:
    """Kill a reset while it restores, so that nothing but snapshots can be gone on from."""
    process = subprocess.Popen(
        [str(INVOKE), "reset", "--lab", lab],
        cwd=files.PROJECT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "restoring the snapshot" in line:
            break
    time.sleep(0.2)
    process.kill()
    process.wait()


def main() -> None:
    """Measure, and print the tables of README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", default="bench-reset")
    parser.add_argument("--topology", default="two-node")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    here = ("--lab", chosen.lab)
    up = ("up", "--topology", chosen.topology, *here)
    invoke("build-base")
    invoke("down", *here)
    try:
        load = os.getloadavg()[0]
        made = invoke(*up)
        stages = [
            (span.stage, (span.end or 0) - span.start) for span in last_run(chosen.lab).spans if span.stage
        ]
        again = []
        for _ in range(chosen.rounds):
            ruin(chosen.lab)
            again.append(back(chosen.lab, *up))
        resets = [back(chosen.lab, "reset", *here) for _ in range(chosen.rounds)]
        nothing = median(invoke(*up) for _ in range(chosen.rounds))
    finally:
        invoke("down", *here)
    print(f"load before: {load:.1f}; medians of {chosen.rounds}\n")
    print("| up | s | x |\n|---|---|---|")
    print(f"| from the golden image | {made:.1f} | 1 |")
    cached = median(one.command for one in again)
    print(f"| from the deepest snapshot | {cached:.1f} | {made / cached:.1f} |")
    print(f"| nothing to do | {nothing:.1f} | {made / nothing:.0f} |\n")
    print("| reset | s |\n|---|---|")
    print(f"| the nodes answer ssh | {median(one.nodes for one in resets):.1f} |")
    print(f"| all services and agents are up | {median(one.healthy for one in resets):.1f} |\n")
    print("| stage | s |\n|---|---|")
    for name, seconds in stages:
        print(f"| {name} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
