"""The stages of a lab: each named by the hash of its inputs and of the stage before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stacklab import files, packstack, reuse, snapshots, ui
from stacklab.plan import Plan
from stacklab.providers import Provider

NAMES = ("nodes", "openstack", "cloud", "images", "verified")
# In `Progress.working` while a restore makes nodes that are not there.
CREATION = "creation of the nodes"


@dataclass(frozen=True)
class Stage:
    """`act` does the work and checks it; `commands` are what it runs, for a dry run.

    `key` is the hash of `inputs` and of `previous`, the key of the stage before.
    """

    name: str
    key: str
    act: Callable[[], Any]
    commands: tuple[str, ...]
    inputs: dict[str, Any]
    previous: str


@dataclass(frozen=True)
class Progress:
    """Where the running nodes are: the stage they reached, and the one being worked on ('' for none)."""

    stage: str = ""
    key: str = ""
    working: str = ""


def progress(plan: Plan) -> Progress:
    """What is known of the running nodes."""
    return Progress(**(files.read_json(plan.directory / "progress.json") or {}))


def set_progress(plan: Plan, value: Progress) -> None:
    """Note where the nodes are; before work begins, so that a kill is seen by the next run."""
    files.write_json(plan.directory / "progress.json", value.__dict__)


@dataclass(frozen=True)
class Start:
    """From where `up` goes on: the running nodes, a snapshot of them, or nothing.

    `done` is the number of stages that need not run.
    """

    done: int
    snapshot: snapshots.Snapshot | None = None

    @property
    def source(self) -> str:
        """Where the stages that need not run come from, in words."""
        return f"snapshot {self.snapshot.name}" if self.snapshot else "the nodes as they are"


def start_of(plan: Plan, provider: Provider, stages: list[Stage]) -> Start:
    """The deepest state that the stages' keys allow; ruins of a stage that did not end are never one.

    A snapshot that does not lie inside its nodes counts without them, too: they are made and put
    back to it.
    """
    depth = {stage.key: number for number, stage in enumerate(stages, start=1)}
    there = progress(plan)
    live = depth.get(there.key, 0) if provider.exists() and not there.working else 0
    best = Start(live)
    for snapshot in snapshots.listed(plan):
        there_is = provider.exists() or provider.parts(snapshot.payload)
        if there_is and depth.get(snapshot.key, 0) > best.done:
            best = Start(depth[snapshot.key], snapshot)
    return best


def run_stages(
    plan: Plan, provider: Provider, stages: list[Stage], done: int, restore: Callable[[str], None]
) -> None:
    """Run what is left, a snapshot after each.

    A stage that failed for slowness is tried once more, from the snapshot before it.
    """
    for number, stage in enumerate(stages[done:], start=done):
        before = progress(plan)
        reuse.record(plan, stage)
        set_progress(plan, Progress(before.stage, before.key, working=stage.name))
        with ui.step(f"stage {stage.name}", stage=stage.name):
            try:
                stage.act()
            except packstack.TimedOut as error:
                if number == 0:
                    raise
                ui.warn(f"{error.message}\n{error.hint}")
                ui.warn(
                    f"trying the stage {stage.name} once more, from the snapshot {stages[number - 1].name}"
                )
                restore(stages[number - 1].name)
                set_progress(plan, Progress(before.stage, before.key, working=stage.name))
                stage.act()
            with ui.step(f"snapshot {stage.name}"):
                snapshots.save(plan, provider, stage.name, stage.name, stage.key)
            set_progress(plan, Progress(stage.name, stage.key))
