"""Handing a lab over: the commands that write a lab to a file and take one in."""

from __future__ import annotations

import time
from pathlib import Path

from stacklab import archive, files, growth, lab, namespace, snapshots, stages, ui
from stacklab.errors import InvalidInput, Problem
from stacklab.plan import Plan
from stacklab.snapshots import Snapshot


def export(plan: Plan, target: Path, names: list[str], *, whole: bool, image: bool) -> None:
    """Write the lab to `target`: the snapshots `names`, all of them if `whole`, else the deepest stage's.

    Raises InvalidInput, before anything is written, where `target` is a directory.
    """
    if target.is_dir():
        raise InvalidInput([Problem(str(target), "", f"is a directory: name a file, such as {plan.lab}.lab")])
    with lab.locked(plan, f"snapshots.export {target.name}") as there:
        growth.refuse_unfinished(there)
        provider = lab.provider_of(there)
        if whole:
            chosen = list(snapshots.listed(there))
        else:
            chosen = [snapshots.get(there, name) for name in names or [_deepest(there).name]]
        with ui.step(f"writing {', '.join(one.name for one in chosen)} to {target}"):
            archive.export(there, provider.golden, chosen, target, with_image=image)
        ui.say(f"{target}: {target.stat().st_size >> 20} MiB; it holds the lab's secrets (mode 0600)")


def take_in(path: Path, name: str) -> None:
    """Make a lab of what `export` wrote, under the name that it had or another, and bring it up.

    Raises InvalidInput, before anything is made, with all that this machine lacks for it.
    """
    start = time.monotonic()
    manifest = archive.read(path)
    plan = archive.renamed(manifest, name)
    lab.check_name(plan.lab)
    namespace.refuse_foreign(plan)
    with files.lock(lab.lock_of(plan.lab), f"the lab {plan.lab}", wait=5.0):
        archive.check(path, manifest, plan)
        archive.unpack(path, manifest, plan)
    with lab.locked(plan, f"snapshots.import {path.name}") as made:
        lab.restore(made, lab.provider_of(made), _deepest(made))
        ui.say(f"the lab {made.lab} is up ({ui.duration(time.monotonic() - start)})", style="bold green")


def _deepest(plan: Plan) -> Snapshot:
    """The snapshot of the deepest stage: its own, else the newest; LabError where there is none."""
    found = snapshots.listed(plan)
    if not found:
        return snapshots.get(plan, stages.NAMES[-1])  # raises, and says so
    return max(found, key=lambda one: (stages.NAMES.index(one.stage), one.name == one.stage, one.created))
