"""What the tasks show of a lab: tables for people, JSON for machines."""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from pathlib import Path

from stacklab import (
    base,
    dib,
    distributions,
    doctor,
    doctor_machines,
    files,
    glance_keep,
    growth,
    lab,
    providers,
    releases,
    reuse,
    snapshots,
    stages,
    topology,
    ui,
    verify,
)
from stacklab import images as guest_images
from stacklab import report as reports
from stacklab.errors import LabError
from stacklab.examination import Check, Needs
from stacklab.plan import Plan


def plan(value: Plan) -> None:
    """The plan and every step with its commands; nothing is started."""
    lab.refuse_other_provider(value)
    spec = base.of(value)
    golden = lab.golden_of(value)
    ui.out(f"lab {value.lab}: topology {value.topology.name} ({value.topology.file})")
    ui.out(f"{value.provider}, {value.distribution}, OpenStack {value.release}, Packstack {value.packstack}")
    for reason in value.reasons:
        ui.out(f"  {reason}")
    rows = [
        (
            node.fqdn,
            ", ".join(node.roles),
            node.management,
            f"{node.cpus}",
            f"{node.memory} MiB",
            f"{node.disk} GiB",
        )
        for node in value.topology.nodes
    ]
    ui.table("", ("node", "roles", "management", "cpus", "memory", "disk"), rows)
    todo = lab.stages_of(value, golden, table)
    provider = providers.provider(value, golden)
    begin = stages.start_of(value, provider, todo)
    ui.out(f"golden image {golden.name}: {'in the cache' if base.is_built(golden) else 'to be built'}")
    if not base.is_built(golden):
        for argv in base.commands(spec, golden.directory):
            ui.out("    " + shlex.join(argv))
    if growth.unfinished(value):
        ui.out("take back the growth that did not end")
    found = growth.of(value, golden, provider, lambda old: lab.stages_of(old, golden, table))
    if found is not None:
        ui.out(f"add {found.names} to the lab that runs, then verify it; nothing else is made anew")
        return
    if begin.snapshot is not None:
        ui.out(f"restore the snapshot {begin.snapshot.name}")
    reasons = reuse.explain(value, todo, begin, stages.progress(value))
    for stage, reason in zip(todo, reasons, strict=True):
        ui.out(f"stage {stage.name} ({stage.key[:12]}): {reason}")
        for command in stage.commands:
            ui.out(f"    {command}")


def all_snapshots(value: Plan, as_json: bool) -> None:
    """The lab's snapshots with stage, age and size."""
    if as_json:
        sizes = snapshots.sizes(value, lab.provider_of(value))
        found = [
            {
                **dataclasses.asdict(dataclasses.replace(one, plan={})),
                "size": sizes[one.name].whole,
                "own": sizes[one.name].own,
            }
            for one in snapshots.listed(value)
        ]
        ui.out(json.dumps(found, indent=2))
        return
    ui.table("", reports.SNAPSHOT_COLUMNS, _snapshot_rows(value))


def _snapshot_rows(value: Plan) -> list[tuple[str, ...]]:
    found = snapshots.listed(value)
    if not found:
        return []
    sizes = snapshots.sizes(value, lab.provider_of(value))
    return [
        (
            one.name,
            one.stage,
            one.key[:12],
            ui.duration(time.time() - one.created),
            ui.size(sizes[one.name].whole),
            ui.size(sizes[one.name].own),
        )
        for one in found
    ]


def report(name: str, target: Path | None) -> None:
    """Write the report of a lab, of a half-made one too, and print where it is."""
    directory = files.labs_dir() / lab.only(name, lab.directories())
    whole = (directory / "plan.json").is_file() and (directory / "golden.json").is_file()
    rows = _snapshot_rows(lab.open_plan(directory.name)) if whole else []
    target = target or directory / "report.html"
    reports.write(directory, target, running=lab.is_busy(directory.name), snapshots=rows)
    ui.out(str(target))


def images(value: Plan | None, cloud_name: str, own: str) -> None:
    """Guest images of the catalogue in the cache, beside those in Glance."""
    with guest_images.target(value, cloud_name) as glance:
        sides = guest_images.beside(glance, own)
    rows = []
    for side in sides:
        local = f"{side.local.path.name}, {ui.size(side.local.size)}" if side.local else ""
        remote = ""
        if side.remote:
            hidden = ", hidden" if side.remote.hidden else ""
            remote = f"{side.remote.name}, {ui.size(side.remote.size or 0)}, {side.remote.status}{hidden}"
        rows.append((side.name, local, remote, {True: "the same", False: "differs", None: ""}[side.equal]))
    ui.table("", ("name", "in the cache", "in Glance", ""), rows)


def pruned(value: Plan | None, cloud_name: str, names: list[str], own: str, yes: bool) -> None:
    """Delete older versions of guest images of the catalogue, or list what would be deleted."""
    titles = guest_images.titles(names, own)
    with guest_images.target(value, cloud_name) as glance:
        found = glance_keep.prune(glance, titles, yes)
    rows = [
        (one.name, ui.size(one.size or 0), "deleted" if one.done else one.why or "would go") for one in found
    ]
    ui.table("", ("image", "size", ""), rows)
    if found and not yes:
        ui.out("nothing was deleted: say --yes")


def verified(value: Plan) -> None:
    """Verify the lab and print the table."""
    with lab.locked(value, "verify") as now:
        table(verify.verify(now))


def table(rows: list[verify.Row]) -> None:
    """The verification table."""
    ui.table(
        "Verified",
        ("what", "result", "after"),
        [(row.what, row.result, ui.duration(row.seconds)) for row in rows],
    )


def topologies(found: list[Path]) -> None:
    """The topologies, a line each; a broken one says so."""
    rows = []
    for path in found:
        try:
            one = topology.parse(path.read_text(encoding="utf-8"), path.name)
            rows.append((path.stem, ", ".join(node.name for node in one.nodes), one.description))
        except LabError:
            rows.append((path.stem, "", "broken: see `invoke topologies.validate`"))
    ui.table("", ("name", "nodes", "description"), rows)


def checks(value: Plan, as_json: bool, fix: bool = False) -> None:
    """Every check of the doctor. Raises LabError when one fails.

    With `fix`, what is safe to do about the findings is done first.
    """
    found = examine(value)
    if fix:
        for command, how in doctor.repair(found):
            ui.say(f"{command}: {how}")
        found = examine(value)
    if as_json:
        ui.out(json.dumps([dataclasses.asdict(check) for check in found], indent=2))
    else:
        ui.table(
            "", ("", "check", "finding", "what to type"), [(c.state, c.name, c.message, c.fix) for c in found]
        )
    failed = dict.fromkeys(check.name for check in found if check.state == "FAIL")
    if failed:
        raise LabError(f"this machine cannot run the lab yet: {', '.join(failed)}")


def examine(value: Plan) -> list[Check]:
    """The doctor's checks for a plan."""
    spec = base.of(value)
    golden = base.is_built(lab.golden_of(value))
    row = distributions.distribution(value.distribution)
    return doctor.run_checks(
        Needs(
            provider=value.provider,
            lab=value.directory,
            cache=files.cache_dir(),
            topology=value.topology,
            golden=golden,
            builder=spec.builder,
            isolated=value.isolated,
            exists=(value.directory / "plan.json").is_file(),
            family=row.family,
            level=doctor_machines.level(row.family, row.version),
            mirrors=() if golden else _mirrors(value),
        )
    )


def _mirrors(value: Plan) -> tuple[str, ...]:
    """What has to answer for the golden image to be built."""
    row = distributions.distribution(value.distribution)
    if row.family == "debian":
        archive = dib.apt_mirrors(row.version)[0]
        if not archive:
            return ()  # not a Debian host: diskimage-builder takes its own default
        return (f"{archive.rstrip('/')}/dists/{row.version}/Release",)
    found = releases.release(value.release).repositories.values()
    return tuple(f"{url}repodata/repomd.xml" for url in found)


def require(value: Plan) -> None:
    """Refuse to start a lab where it cannot run, naming all that is missing. Warnings are said."""
    found = examine(value)
    failed = [check for check in found if check.state == "FAIL"]
    for check in found:
        if check.state == "WARN":
            ui.say(f"{check.name}: {check.message}")
    if failed:
        lines = [
            f"  {check.name}: {check.message}" + (f"\n    {check.fix}" if check.fix else "")
            for check in failed
        ]
        raise LabError(
            "this machine cannot run the lab yet:\n" + "\n".join(lines),
            hint="`invoke doctor` shows all checks",
        )
