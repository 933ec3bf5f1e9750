"""Ctrl-C, SIGTERM and SIGHUP: a command ends in order, and says what is kept and what goes on from there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stacklab import reuse, signals, snapshots, stages
from stacklab.errors import Interrupted
from stacklab.plan import Plan


@contextmanager
def explained(plan: Plan) -> Iterator[None]:
    """Turn an interrupt of the block into Interrupted."""
    try:
        with signals.like_ctrl_c():
            yield
    except KeyboardInterrupt:
        raise Interrupted(*_words(plan)) from None


def _words(plan: Plan) -> tuple[str, str]:
    there = stages.progress(plan)
    found = snapshots.listed(plan)
    names = [snapshot.name for snapshot in found]
    what = f"in the middle of {_title(there.working)}" if there.working else "between two stages"
    if not there.stage and not there.working:
        what = "before the first stage"
    kept = f"kept: the snapshots {', '.join(names)}" if names else "kept: no snapshot yet"
    up = f"`invoke up --topology {plan.topology.file} --lab {plan.lab}`"
    # Snapshots of what the lab was before, with other services or networks, are not what the next `up` takes.
    chain = reuse.chain(plan, there.key)
    below = [snapshot.stage for snapshot in found if snapshot.key in chain]
    if below:
        next_one = f"{up} goes on after the stage {max(below, key=stages.NAMES.index)}"
    elif names:
        next_one = f"{up} goes on from the deepest of them that fits"
    else:
        next_one = f"{up} starts with the nodes"
    return f"interrupted {what}; {kept}", f"{next_one}; `invoke down --lab {plan.lab}` removes the lab"


def _title(working: str) -> str:
    return f"the stage {working}" if working in stages.NAMES else f"the {working}"
