"""Why a stage can be reused or has to run: its inputs are kept beside its key, and compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stacklab import cloud, el, files, guests, packstack, snapshots, storage
from stacklab.base import Golden
from stacklab.plan import Plan

if TYPE_CHECKING:
    from stacklab.stages import Progress, Stage, Start


# Part of each stage's key: raise one when what the stage does changes, and labs run it anew.
VERSIONS = {"nodes": 1, "openstack": 1, "cloud": 1, "images": 1, "verified": 1}
# Records of this many stages stay; a lab has five at a time, and each is some 10 kB.
KEPT = 50


def inputs(plan: Plan, golden: Golden) -> dict[str, dict[str, Any]]:
    """What each stage's key is the hash of, as plain values under names that people know."""
    # Names are not part of it: what was imported under another name is the same lab.
    shape = {
        name: value for name, value in plan.as_json().items() if name not in ("lab", "reasons", "virt_type")
    }
    later = ("services", "named_services", "answers", "tenant", "name", "description", "file")
    for name in later:
        shape["topology"].pop(name)  # these belong to later stages, or to none
    for name in ("pool_start", "pool_end"):
        shape["topology"]["provider_network"].pop(name)  # Neutron's alone; the host has the gateway
    lines = (line.partition("=") for line in packstack.shape(plan).splitlines())
    own: dict[str, dict[str, Any]] = {
        "nodes": {
            **shape,
            "golden image": golden.name,
            "seed": files.tree_digest(files.PROJECT / "stacklab" / "data" / "seed"),
        },
        "openstack": {
            "answer file": {key: value for key, found, value in lines if found},
            **el.inputs(plan),
            **storage.inputs(plan),
        },
        "cloud": cloud.definition(plan),
        "images": {"probe guest": guests.probe_key(golden.key)},
        "verified": {},
    }
    return {name: {"version of the stage": VERSIONS[name], **own[name]} for name in own}


def record(plan: Plan, stage: Stage) -> None:
    """Keep what a stage's key was made of, when the stage begins."""
    value = {"stage": stage.name, "previous": stage.previous, "inputs": stage.inputs}
    place = plan.directory / "stages"
    files.write_json(place / f"{stage.key}.json", value, mode=0o600)
    by_age = sorted(place.glob("[!.]*.json"), key=lambda path: path.stat().st_mtime)
    for old in by_age[:-KEPT]:
        old.unlink()


def explain(plan: Plan, stages: Sequence[Stage], begin: Start, there: Progress) -> list[str]:
    """For each stage, in words, why it need not run or what makes it run."""
    words = [f"there already ({begin.source})"] * begin.done
    known = _known(plan, there)
    changed = ""
    for stage in stages[begin.done :]:
        before = known.get(stage.name)
        if before is None and not changed:
            reason = "did not end" if there.working == stage.name else "was never made"
        elif before is not None and (found := list(differences(before, _plain(stage.inputs)))):
            reason = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
        elif changed:
            reason = f"lies on the stage {changed}"
        else:
            reason = "was made, but no snapshot has it any more"
        changed = changed or stage.name
        words.append(f"to be done: {reason}")
    return words


def _known(plan: Plan, there: Progress) -> dict[str, dict[str, Any]]:
    """The inputs of each stage of the newest state that is known: the running nodes', else a snapshot's."""
    newest_first = reversed(snapshots.listed(plan))
    for state in (there.key, *(snapshot.key for snapshot in newest_first)):
        found = {saved["stage"]: saved["inputs"] for saved in chain(plan, state).values()}
        if found:
            return found
    return {}


def chain(plan: Plan, key: str) -> dict[str, dict[str, Any]]:
    """What is kept of a stage that was begun and of those that it lies on, by their keys."""
    found: dict[str, dict[str, Any]] = {}
    while key and (saved := files.read_json(plan.directory / "stages" / f"{key}.json")):
        found[key] = saved
        key = saved["previous"]
    return found


def _plain(value: Any) -> Any:
    """The value as it comes back from a file."""
    return json.loads(json.dumps(value, default=str))


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Every value that differs, as `path: before → after`. Lists of things with names go by name."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*after, *before]):
            inner = f"{path}.{name}" if path else name
            yield from differences(before.get(name), after.get(name), inner)
    elif _named(before) and _named(after):
        old, new = ({one["name"]: one for one in value} for value in (before, after))
        yield from differences(old, new, path)
    elif isinstance(after, dict) and before is None:
        yield f"{path}: new"
    elif isinstance(before, dict) and after is None:
        yield f"{path}: gone"
    elif before != after:
        yield f"{path}: {_short(before)} → {_short(after)}"


def _named(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, dict) and "name" in one for one in value)


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else text[:37] + "…"
