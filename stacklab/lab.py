"""A lab as a whole: up, reset, down, status."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stacklab import (
    archive,
    base,
    cloud,
    el,
    files,
    glance,
    growth,
    guestbuild,
    guests,
    interrupts,
    namespace,
    nodes,
    packstack,
    providers,
    reuse,
    settle,
    snapshots,
    stages,
    storage,
    timeline,
    topology,
    ui,
    verify,
)
from stacklab.base import Golden
from stacklab.errors import InvalidInput, LabError, Problem
from stacklab.plan import Plan, from_json, resolve
from stacklab.providers import Provider
from stacklab.stages import Progress, Stage

TOPOLOGIES = Path(os.path.relpath(files.PROJECT / "topologies"))
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,23}")


def check_name(name: str) -> None:
    """Raise InvalidInput unless a lab may have this name: it becomes a directory and a namespace."""
    if not NAME.fullmatch(name):
        message = f"{name!r}: take at most 24 lower-case letters, digits and dashes, a letter or digit first"
        raise InvalidInput([Problem("", "lab", message)])


def plan_for(
    name: str,
    lab: str = "",
    distribution: str = "auto",
    provider: str = "auto",
    own_network: bool = False,
) -> Plan:
    """The Plan of a topology file or name. Raises InvalidInput with all that is wrong."""
    if lab:
        check_name(lab)
    plan = resolve(
        topology.load(name, TOPOLOGIES),
        lab=lab,
        distribution=distribution,
        provider=provider,
        own_network=own_network,
    )
    packstack.shape(plan)  # names the answers that cannot be, before anything is built
    return plan


def directories() -> list[str]:
    """The names of all labs that `down` has something to remove of, half-made ones too."""
    return sorted(path.name for path in files.labs_dir().glob("[!.]*"))


def existing() -> list[str]:
    """The names of the labs of this checkout, those too that only another user may look into."""
    places = files.labs_dir().glob("[!.]*/")
    return sorted(
        path.name for path in places if not os.access(path, os.X_OK) or (path / "plan.json").exists()
    )


def only(name: str, labs: list[str]) -> str:
    """`name`, which must be one of `labs`; without a name, the only one there is."""
    if not name:
        if not labs:
            raise LabError("there is no lab here", hint="make one: scripts/stacklab up --topology two-node")
        if len(labs) > 1:
            raise LabError(f"which lab? there are {', '.join(labs)}", hint=f"say --lab {labs[0]}")
        return labs[0]
    check_name(name)
    if name not in labs:
        raise LabError(f"there is no lab {name!r} here", hint=f"there are: {', '.join(labs) or 'none'}")
    return name


def open_plan(name: str = "") -> Plan:
    """The Plan of a lab that was made; without a name, of the only one there is."""
    saved = files.read_json(files.labs_dir() / only(name, existing()) / "plan.json")
    plan = from_json(saved["plan"])
    if (plan.directory / "secrets.json").is_file():
        packstack.secrets(plan)  # hides them in all output
    return plan


def lock_of(name: str) -> Path:
    """The lock file of a lab, which outlives neither the lab nor its last command."""
    return files.labs_dir() / f".{name}.lock"


def is_busy(name: str) -> bool:
    """Whether a command is at work on the lab just now."""
    return files.held(lock_of(name))


@contextmanager
def locked(plan: Plan, command: str, *, anew: bool = False) -> Iterator[Plan]:
    """Hold the lab: one command at a time works on it. What it does goes into the timeline.

    Gives the lab's plan: by then whoever held it may have changed it, or removed it (LabError). Where the
    lab is to become `plan`, as `anew` says, that is it. LabError, too, where another checkout has its name.
    Ctrl-C, and SIGTERM and SIGHUP like it, become Interrupted, which says what is kept.
    """
    lock = lock_of(plan.lab)
    with files.lock(lock, f"the lab {plan.lab}", wait=5.0):
        if not anew:
            if plan.lab not in existing():
                lock.unlink()
            plan = open_plan(plan.lab)
        namespace.refuse_foreign(plan)
        with interrupts.explained(plan), timeline.recorded(plan, command):
            yield plan


def provider_of(plan: Plan) -> Provider:
    """The provider of a lab that exists, on the golden image that it was made from."""
    image = archive.own_image(plan)
    if image is None:
        raise LabError(f"the lab {plan.lab} was never whole", hint="run `invoke up` or `invoke down`")
    return providers.provider(plan, image)


def golden_of(plan: Plan) -> Golden:
    """The golden image for `up`, built or not: the lab's own, unless it is made of other things now.

    A newer image of the same inputs is for new labs.
    """
    spec = base.of(plan)
    own = archive.own_image(plan)
    return own if own is not None and base.is_of(own, spec) else base.wanted(spec)


def refuse_other_provider(plan: Plan) -> None:
    """Raise InvalidInput where the lab is there on another provider: its nodes cannot become others."""
    saved = files.read_json(plan.directory / "plan.json")
    if saved is not None and (there := saved["plan"]["provider"]) != plan.provider:
        message = f"{plan.provider!r}: the lab {plan.lab} is there, on {there}: `invoke down` first, or name "
        message += "another one by --lab"
        raise InvalidInput([Problem(plan.topology.file, "provider", message)])


def _refuse_foreign(plan: Plan) -> None:
    """Raise LabError where another checkout has a lab of that name: `up` would make its own in its place."""
    namespace.refuse_foreign(plan)
    if plan.provider == "lxc" or plan.lab in existing():
        return
    machines: Any = providers.provider(plan, Golden("", "", Path()))
    if found := machines.states():
        hint = "take another name (--lab), or `invoke down` there"
        names = ", ".join(f"{plan.namespace}-{name}" for name in found)
        raise LabError(f"{names}: machines of a lab {plan.lab} of another checkout", hint=hint)


def _note_plan(plan: Plan) -> None:
    """Keep what the nodes are planned as from now on; what the Vagrantfile reads stays as it is."""
    path = plan.directory / "plan.json"
    files.write_json(path, {**(files.read_json(path) or {}), "plan": plan.as_json()}, mode=0o600)


# -- up ----------------------------------------------------------------------------------


def stages_of(plan: Plan, golden: Golden, on_verified: Callable[[list[verify.Row]], None]) -> list[Stage]:
    """The stages with their keys, in order; `on_verified` is given the verification's rows."""
    provider = providers.provider(plan, golden)
    inputs = reuse.inputs(plan, golden)
    keys = [""]
    for name in stages.NAMES:
        keys.append(files.digest(name, inputs[name], keys[-1]))
    controller = plan.topology.controller.name
    acts: tuple[tuple[Any, tuple[str, ...]], ...] = (
        (lambda: _make_nodes(plan, provider), tuple(" ".join(words) for words in provider.create_commands())),
        (
            lambda: _deploy(plan),
            (
                *(f"on {controller}: {words}" for words in packstack.commands(plan)),
                *el.commands(plan),
                *storage.commands(plan),
            ),
        ),
        (
            lambda: cloud.build(plan),
            ("openstacksdk: project demo, networks, router, flavors, rules, key pair",),
        ),
        (
            lambda: upload_probe(plan, golden),
            ("scripts/build-probe-guest.sh", "PUT /v2/images/…/file (probe)"),
        ),
        (
            lambda: on_verified(verify.verify(plan)),
            ("openstacksdk: two instances; ping, HTTP, metadata, console",),
        ),
    )
    return [
        Stage(name, key, act, commands, inputs[name], previous)
        for name, key, previous, (act, commands) in zip(stages.NAMES, keys[1:], keys, acts, strict=False)
    ]


def up(plan: Plan, on_verified: Callable[[list[verify.Row]], None]) -> None:
    """Bring the lab up, from the deepest state that fits the plan."""
    _refuse_foreign(plan)
    refuse_other_provider(plan)
    with locked(plan, "up", anew=True):
        start = time.monotonic()
        for reason in plan.reasons:
            ui.say(reason)
        packstack.secrets(plan)
        golden = _golden(plan)
        growth.undo(plan, restore)
        provider = providers.provider(plan, golden)
        todo = stages_of(plan, golden, on_verified)
        found = growth.of(plan, golden, provider, lambda old: stages_of(old, golden, on_verified))
        if found is not None:
            growth.grow(found, golden, todo, _wake)
        begin = stages.start_of(plan, provider, todo)
        for stage in todo[: begin.done]:
            timeline.reused("stage", stage.name, begin.source)
        if begin.snapshot is not None:
            restore(plan, provider, begin.snapshot)
        elif begin.done:
            _wake(plan, provider)
        if begin.done:
            _note_plan(plan)
        if begin.done == len(todo):
            ui.say(
                f"the lab {plan.lab} is up and healthy ({ui.duration(time.monotonic() - start)})",
                style="bold green",
            )
            return
        if begin.done:
            ui.say(f"going on after the stage {todo[begin.done - 1].name}")

        def back_to(name: str) -> None:
            restore(plan, provider, snapshots.get(plan, name))
            _note_plan(plan)

        stages.run_stages(plan, provider, todo, begin.done, back_to)
        ui.say(f"the lab {plan.lab} is up ({ui.duration(time.monotonic() - start)})", style="bold green")


def _golden(plan: Plan) -> Golden:
    image = golden_of(plan)
    if base.is_built(image):
        timeline.reused("golden image", image.name, "the cache")
        return image
    return base.build(base.of(plan))


def _make_nodes(plan: Plan, provider: Provider) -> None:
    own = [snapshot.name for snapshot in snapshots.listed(plan) if snapshot.name not in stages.NAMES]
    if own:
        # They lie on an image or on nodes that are no longer the lab's.
        ui.warn(f"the nodes are made anew: these snapshots go with the old ones: {', '.join(own)}")
    snapshots.forget_all(plan)
    _create(plan, provider)
    nodes.check(plan)


def _create(plan: Plan, provider: Provider) -> None:
    saved = files.read_json(plan.directory / "plan.json")
    if saved is not None:
        there = from_json(saved["plan"])
        if not set(there.topology.nodes) <= set(plan.topology.nodes):
            # The provider removes the nodes of its own plan, which has some of these no longer.
            providers.provider(there, Golden("", "", Path())).destroy()
    files.write_json(plan.directory / "golden.json", archive.golden_json(provider.golden))
    with ui.step("creating the nodes with Vagrant"):
        provider.create()
    snapshots.prune(plan, provider)


def _deploy(plan: Plan) -> None:
    packstack.deploy(plan)
    el.settings(plan)
    storage.place(plan)
    # Only hosts that have registered can be mapped, so all of them are waited for.
    settle.settle(plan)
    packstack.map_hosts(plan)


def upload_probe(plan: Plan, golden: Golden) -> None:
    """Build the probe guest if need be and put it into Glance."""
    log = plan.directory / "logs" / "images.log"
    if golden.rootfs.is_dir():
        image = guests.build_probe(golden.rootfs, files.cache_dir(), log, inputs=golden.key)
    else:
        (image,) = guestbuild.build(guests.probe_entry())  # a disk has no tree to take its kernel from
    with namespace.entered(plan):
        done = glance.upload(cloud.image_adapter(plan), image, visibility="public", deadline=600)
    ui.say(f"image {image.name} ({image.size // 1024} KiB): {done.status}")


def _wake(plan: Plan, provider: Provider) -> None:
    """Make sure that nodes which should run do run, and that the cloud answers."""
    if all(provider.running().values()):
        if stages.progress(plan).stage == "nodes" or not settle.quick(plan):
            return
        settle.settle(plan)
        return
    with ui.step("starting the nodes (were they stopped by a reboot?)"):
        _boot(plan, provider, stages.progress(plan).stage)


def restore(plan: Plan, provider: Provider, snapshot: snapshots.Snapshot) -> None:
    """Put the nodes back to a snapshot, making them where they are not there, and wait until all is up."""
    with ui.step(f"restoring the snapshot {snapshot.name}"):
        if not provider.exists() and not provider.parts(snapshot.payload):
            raise LabError(
                "the nodes are gone, and the snapshot was in them", hint="`invoke up` makes new ones"
            )
        half_made = stages.progress(plan).working in (stages.NAMES[0], stages.CREATION)
        # A snapshot that lies in its nodes was kept once they were whole.
        if not provider.exists() or (half_made and provider.parts(snapshot.payload)):
            stages.set_progress(plan, Progress(working=stages.CREATION))
            _create(plan, provider)
        stages.set_progress(plan, Progress(working=f"restore of {snapshot.name}"))
        snapshots.restore(plan, provider, snapshot)
        plan = snapshot.planned(plan)
        _note_plan(plan)
        _boot(plan, provider, snapshot.stage)
        stages.set_progress(plan, Progress(snapshot.stage, snapshot.key))


def _boot(plan: Plan, provider: Provider, stage: str) -> None:
    since = datetime.now(UTC).replace(microsecond=0)
    provider.start()
    if stage == "nodes":
        nodes.check(plan)
    else:
        answers = settle.settle(plan, since=since)
        rows = [(answer.name, ui.duration(answer.seconds)) for answer in answers]
        ui.table("Back after", ("what", "seconds"), rows)


# -- the other commands --------------------------------------------------------------------


def reset(lab: Plan, to: str = "") -> None:
    """Bring the state after a stage, or of a named snapshot, back. The default is the deepest stage's."""
    with locked(lab, f"reset --to {to}" if to else "reset") as there:
        plan = growth.undo(there, restore)
        provider = provider_of(plan)
        names = [snapshot.name for snapshot in snapshots.listed(plan)]
        if not to:
            to = next((name for name in reversed(stages.NAMES) if name in names), stages.NAMES[-1])
        start = time.monotonic()
        restore(plan, provider, snapshots.get(plan, to))
        ui.say(
            f"the lab {plan.lab} is as it was at {to} ({ui.duration(time.monotonic() - start)})",
            style="bold green",
        )


def save(lab: Plan, name: str) -> None:
    """Save a named snapshot of the running lab."""
    snapshots.check_name(name, (*stages.NAMES, growth.SNAPSHOT))
    with locked(lab, f"snapshots.save {name}") as plan:
        there = stages.progress(plan)
        if there.working or not there.stage:
            raise LabError(
                f"the lab is in the middle of {there.working or 'nothing'}", hint="`invoke up` completes it"
            )
        with ui.step(f"snapshot {name}"):
            snapshots.save(plan, provider_of(plan), name, there.stage, there.key)


def forget(lab: Plan, name: str) -> None:
    """Delete a snapshot."""
    with locked(lab, f"snapshots.delete {name}") as plan:
        if name == growth.SNAPSHOT:
            growth.refuse_unfinished(plan)
        snapshots.delete(plan, provider_of(plan), name)
