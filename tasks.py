"""The tasks of stacklab. Everything they do is in the package; here it gets names, flags and help."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from invoke import Collection, Context, Exit, task

Task = TypeVar("Task", bound=Callable[..., None])


def edge(function: Task) -> Task:
    """Turn errors that a user can act on into a message and an exit code; all others are bugs."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from stacklab import redact
        from stacklab.errors import LabError

        try:
            function(*args, **kwargs)
        except LabError as error:
            text = redact.text(error.message + (f"\nhint: {error.hint}" if error.hint else ""))
            raise Exit(text, code=error.exit_code) from None
        except BrokenPipeError:
            # Whoever read the output, such as `head`, has enough of it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            text = "\ninterrupted; what was whole is kept, and the same command goes on from there"
            raise Exit(text, code=130) from None

    return wrapped  # type: ignore[return-value]


LAB = {"lab": "the lab's name; not needed where there is only one"}
TOPOLOGY = {
    "topology": "a topology's name or file",
    "distribution": "what the nodes run; auto: the topology's choice",
    "provider": "what a node is; auto: what works here",
}


def _plan(c: Context, topology: str, lab: str, distribution: str, provider: str) -> Any:
    from stacklab import lab as labs

    return labs.plan_for(
        topology or c.topology, lab or c.lab, distribution or c.distribution, provider or c.provider
    )


def _open(c: Context, lab: str) -> Any:
    from stacklab import lab as labs

    return labs.open_plan(lab or c.lab)


def _words() -> list[str]:
    """What follows `--`, word by word."""
    return sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []


@task(
    help={
        **TOPOLOGY,
        "lab": "the lab's name; the topology's by default",
        "dry-run": "only show what would be done",
    }
)
@edge
def up(
    c: Context,
    topology: str = "",
    lab: str = "",
    distribution: str = "",
    provider: str = "",
    dry_run: bool = False,
) -> None:
    """Bring a lab up and verify it, or go on with it.

    Golden image, nodes, OpenStack, networks, guest image, two test instances that answer.
    """
    from stacklab import lab as labs
    from stacklab import show

    plan = _plan(c, topology, lab, distribution, provider)
    if dry_run:
        show.plan(plan)
        return
    show.require(plan)
    labs.up(plan, on_verified=show.table)


@task(name="build-base", help={name: TOPOLOGY[name] for name in ("distribution", "provider")})
@edge
def build_base(c: Context, distribution: str = "debian-12", provider: str = "lxc") -> None:
    """Build the golden image that nodes start from.

    Unchanged inputs: nothing to do. Prints the image's directory.
    """
    from stacklab import base, ui

    image = base.build(base.spec(distribution, provider))
    ui.out(str(image.directory))


@task(help={**LAB, "to": "a stage's or a snapshot's name; the last stage by default"})
@edge
def reset(c: Context, to: str = "", lab: str = "") -> None:
    """Bring the lab back to what it was after a stage."""
    from stacklab import lab as labs

    labs.reset(_open(c, lab), to)


@task(help=LAB)
@edge
def down(c: Context, lab: str = "") -> None:
    """Remove a lab and all that `up` made for it.

    Golden images stay in the cache.
    """
    from stacklab import lab as labs

    names = [lab or c.lab] if lab or c.lab else labs.directories()
    if len(names) > 1:
        raise Exit(f"which lab? there are {', '.join(names)}: say --lab", code=2)
    labs.down(*(names or [c.topology]))


@task(help={**LAB, "json": "as JSON on standard output"})
@edge
def status(c: Context, lab: str = "", json: bool = False) -> None:
    """Show nodes, stage, health, addresses, snapshots."""
    from stacklab import show

    show.status(_open(c, lab), as_json=json)


@task(positional=["node"], help={**LAB, "node": "the node's name", "command": "run this instead of a shell"})
@edge
def ssh(c: Context, node: str, command: str = "", lab: str = "") -> None:
    """Open a shell on a node, or run one command there."""
    from stacklab import lab as labs
    from stacklab import remote

    plan = _open(c, lab)
    argv = remote.ssh_argv(plan, labs.node_named(plan, node), *([command] if command else []))
    os.execvp(argv[0], argv)


@task(name="ssh-config", help=LAB)
@edge
def ssh_config(c: Context, lab: str = "") -> None:
    """Print an ssh configuration for the nodes.

    As in `invoke ssh-config >> ~/.ssh/config`.
    """
    from stacklab import seed, ui

    ui.out(seed.ssh_config(_open(c, lab)))


@task(help=LAB)
@edge
def openstack(c: Context, lab: str = "") -> None:
    """Run the OpenStack client in the lab, as admin.

    Its words stand after two dashes: `invoke openstack -- server list`.
    """
    from stacklab import lab as labs

    argv = labs.openstack_argv(_open(c, lab), _words())
    os.execvp(argv[0], argv)


@task(help=LAB)
@edge
def verify(c: Context, lab: str = "") -> None:
    """Boot two test instances and talk to them.

    One on the provider network, one behind a floating IP; both are removed again.
    """
    from stacklab import show

    show.verified(_open(c, lab))


@task(help={**TOPOLOGY, "json": "as JSON on standard output"})
@edge
def doctor(
    c: Context, topology: str = "", distribution: str = "", provider: str = "", json: bool = False
) -> None:
    """Look whether this machine can run a lab.

    Where it cannot, say what to type.
    """
    from stacklab import show

    show.checks(_plan(c, topology, "", distribution, provider), as_json=json)


@task(help={"fast": "linters and unit tests only", "matrix": "what is wider than CI too; hours"})
@edge
def test(c: Context, fast: bool = False, matrix: bool = False) -> None:
    """Run the tests: linters, units, tools, a whole lab.

    Words after two dashes go to pytest instead of the directories of tests.
    """
    choice = "not integration and not lab and not matrix" if fast else "" if matrix else "not matrix"
    # the fast ones first
    tiers = [f"tests/{name}" for name in ("unit", "integration", "lab")]
    argv = [sys.executable, "-m", "pytest", *(["-m", choice] if choice else []), *(_words() or tiers)]
    os.execv(argv[0], argv)


@task(name="list")
@edge
def topologies_list(c: Context) -> None:
    """List the topologies."""
    from stacklab import lab as labs
    from stacklab import show, topology

    show.topologies(topology.available(labs.TOPOLOGIES))


@task(name="show", positional=["topology"], help={"topology": TOPOLOGY["topology"]})
@edge
def topologies_show(c: Context, topology: str) -> None:
    """Print a topology with every default filled in."""
    import dataclasses

    from stacklab import lab as labs
    from stacklab import topology as topologies
    from stacklab import ui

    ui.out(json.dumps(dataclasses.asdict(topologies.load(topology, labs.TOPOLOGIES)), indent=2))


@task(name="validate", positional=["topology"], help={"topology": TOPOLOGY["topology"]})
@edge
def topologies_validate(c: Context, topology: str) -> None:
    """Name everything that is wrong with a topology."""
    from stacklab import lab as labs
    from stacklab import ui

    plan = labs.plan_for(topology)
    ui.out(f"{plan.topology.file}: {len(plan.topology.nodes)} nodes, all right")


IMAGES = {
    "image": "a name of the catalogue, again for more of them; the probe guest by default",
    "catalogue": "a catalogue of your own; images.yaml of the checkout by default",
}
CLOUD = {**LAB, "cloud": "a cloud of clouds.yaml instead of the lab"}


def _lab_or_none(c: Context, lab: str, cloud: str) -> Any:
    return None if cloud else _open(c, lab)


@task(name="list", help={**CLOUD, "catalogue": IMAGES["catalogue"]})
@edge
def images_list(c: Context, catalogue: str = "", cloud: str = "", lab: str = "") -> None:
    """List guest images: in the cache, in the cloud."""
    from stacklab import show

    show.images(_lab_or_none(c, lab, cloud), cloud, catalogue)


@task(name="build", iterable=["image"], help={**IMAGES, "boot": "start each image once, under QEMU"})
@edge
def images_build(c: Context, image: list[str], catalogue: str = "", boot: bool = False) -> None:
    """Build the guest images that changed."""
    from stacklab import images, ui

    for built in images.build(image, catalogue, boot=boot):
        ui.out(str(built.path))


@task(
    name="upload",
    iterable=["image"],
    help={
        **IMAGES,
        **CLOUD,
        "file": "an image file of your own instead of the catalogue's",
        "import": "glance-direct or web-download, where the cloud offers it",
    },
)
@edge
def images_upload(
    c: Context,
    image: list[str],
    catalogue: str = "",
    file: str = "",
    cloud: str = "",
    import_: str = "",
    lab: str = "",
) -> None:
    """Upload guest images to Glance and check them there.

    Identical ones are not sent again.
    """
    from stacklab import images

    with images.target(_lab_or_none(c, lab, cloud), cloud) as glance:
        images.send(glance, image, catalogue, file=file, method=import_)


@task(name="prune", iterable=["image"], help={**CLOUD, "image": IMAGES["image"], "yes": "really delete them"})
@edge
def images_prune(c: Context, image: list[str], cloud: str = "", yes: bool = False, lab: str = "") -> None:
    """Delete older, hidden versions of guest images.

    Without --yes only list what would be deleted.
    """
    from stacklab import show

    show.pruned(_lab_or_none(c, lab, cloud), cloud, image, yes)


@task(
    name="export-nodepool",
    positional=["directory"],
    help={"directory": "an empty directory", "catalogue": IMAGES["catalogue"]},
)
@edge
def images_export_nodepool(c: Context, directory: str, catalogue: str = "") -> None:
    """Write the catalogue for Zuul's nodepool-builder."""
    from pathlib import Path

    from stacklab import images, ui

    for path in images.export(Path(directory), catalogue):
        ui.out(str(path))


@task(name="list", help=LAB)
@edge
def snapshots_list(c: Context, lab: str = "") -> None:
    """List the lab's snapshots."""
    from stacklab import show

    show.all_snapshots(_open(c, lab))


@task(name="save", positional=["name"], help={**LAB, "name": "the new snapshot's name"})
@edge
def snapshots_save(c: Context, name: str, lab: str = "") -> None:
    """Save all nodes as they are now, under a name."""
    from stacklab import lab as labs

    labs.save(_open(c, lab), name)


@task(name="restore", positional=["name"], help={**LAB, "name": "the snapshot's name"})
@edge
def snapshots_restore(c: Context, name: str, lab: str = "") -> None:
    """Bring all nodes back to a snapshot."""
    from stacklab import lab as labs

    labs.reset(_open(c, lab), name)


@task(name="delete", positional=["name"], help={**LAB, "name": "the snapshot's name"})
@edge
def snapshots_delete(c: Context, name: str, lab: str = "") -> None:
    """Delete a snapshot."""
    from stacklab import lab as labs

    labs.forget(_open(c, lab), name)


namespace = Collection(
    up,
    build_base,
    reset,
    down,
    status,
    ssh,
    ssh_config,
    openstack,
    verify,
    doctor,
    test,
    Collection("topologies", topologies_list, topologies_show, topologies_validate),
    Collection("images", images_list, images_build, images_upload, images_prune, images_export_nodepool),
    Collection("snapshots", snapshots_list, snapshots_save, snapshots_restore, snapshots_delete),
)
