"""Tasks on a lab as a whole."""

from __future__ import annotations

import os

from invoke import Context, Exit, task

from stacklab.tasks.common import LAB, TOPOLOGY, edge, open_lab, plan_of, words


@task(
    help={
        **TOPOLOGY,
        "lab": "the lab's name; the topology's by default",
        "dry-run": "only show what would be done",
        "own-network": "libvirt: the lab's networks in a namespace of their own, with a libvirtd there",
    }
)
@edge
def up(
    c: Context,
    topology: str = "",
    lab: str = "",
    distribution: str = "",
    provider: str = "",
    own_network: bool = False,
    dry_run: bool = False,
) -> None:
    """Bring a lab up and verify it, or go on with it.

    Golden image, nodes, OpenStack, networks, guest image, two test instances that answer.
    """
    from stacklab import lab as labs
    from stacklab import show

    plan = plan_of(c, topology, lab, distribution, provider, own_network)
    if dry_run:
        show.plan(plan)
        return
    show.require(plan)
    labs.up(plan, on_verified=show.table)


@task(help={**LAB, "to": "a stage's or a snapshot's name; the last stage by default"})
@edge
def reset(c: Context, to: str = "", lab: str = "") -> None:
    """Bring the lab back to what it was after a stage."""
    from stacklab import lab as labs

    labs.reset(open_lab(c, lab), to)


@task(help=LAB)
@edge
def down(c: Context, lab: str = "") -> None:
    """Remove a lab and all that `up` made for it.

    Golden images stay in the cache.
    """
    from stacklab import lab as labs
    from stacklab import removal

    names = [lab or c.lab] if lab or c.lab else labs.directories()
    if len(names) > 1:
        raise Exit(f"which lab? there are {', '.join(names)}: say --lab", code=2)
    removal.down(*(names or [c.topology]))


@task(help={**LAB, "json": "as JSON on standard output", "watch": "again every 5 seconds, until Ctrl-C"})
@edge
def status(c: Context, lab: str = "", json: bool = False, watch: bool = False) -> None:
    """Show nodes, services, instances, images, addresses, snapshots."""
    from stacklab import status

    status.show(open_lab(c, lab), as_json=json, watch=watch)


@task(help={**LAB, "port": "of 127.0.0.1; 8080 by default", "open": "open it in this machine's browser"})
@edge
def dashboard(c: Context, lab: str = "", port: str = "8080", open: bool = False) -> None:
    """Bring the dashboard and the consoles to 127.0.0.1.

    Until Ctrl-C.
    """
    import threading
    import webbrowser

    from stacklab import dashboard, ui

    number = dashboard.port(port)
    plan = open_lab(c, lab)
    with dashboard.forwarded(plan, number) as url:
        ui.out(f"{url}  user demo or admin, domain Default")
        ui.out(f"passwords: {plan.directory}/openrc-demo, openrc-admin; Ctrl-C ends")
        if open:
            webbrowser.open(url)
        threading.Event().wait()


@task(help=LAB)
@edge
def inventory(c: Context, lab: str = "") -> None:
    """Print the nodes as an Ansible inventory.

    As in `invoke inventory > inventory.yaml && ansible -i inventory.yaml all -m ping`.
    """
    from stacklab import inventory, ui

    ui.out(inventory.inventory(open_lab(c, lab)))


@task(positional=["node"], help={**LAB, "node": "the node's name", "command": "run this instead of a shell"})
@edge
def ssh(c: Context, node: str, command: str = "", lab: str = "") -> None:
    """Open a shell on a node, or run one command there."""
    from stacklab import remote

    plan = open_lab(c, lab)
    argv = remote.ssh_argv(plan, remote.node_named(plan, node), *([command] if command else []))
    os.execvp(argv[0], argv)


@task(name="ssh-config", help=LAB)
@edge
def ssh_config(c: Context, lab: str = "") -> None:
    """Print an ssh configuration for the nodes.

    As in `invoke ssh-config >> ~/.ssh/config`.
    """
    from stacklab import seed, ui

    ui.out(seed.ssh_config(open_lab(c, lab)))


@task(help=LAB)
@edge
def openstack(c: Context, lab: str = "") -> None:
    """Run the OpenStack client in the lab, as admin.

    Its words stand after two dashes: `invoke openstack -- server list`.
    """
    from stacklab import remote

    argv = remote.openstack_argv(open_lab(c, lab), words())
    os.execvp(argv[0], argv)


@task(help=LAB)
@edge
def verify(c: Context, lab: str = "") -> None:
    """Boot two test instances and talk to them.

    One on the provider network, one behind a floating IP; both are removed again.
    """
    from stacklab import show

    show.verified(open_lab(c, lab))


@task(
    help={
        **TOPOLOGY,
        "json": "as JSON on standard output",
        "fix": "first do what is safe: packages, kernel modules, VirtualBox's networks.conf",
    }
)
@edge
def doctor(
    c: Context,
    topology: str = "",
    distribution: str = "",
    provider: str = "",
    json: bool = False,
    fix: bool = False,
) -> None:
    """Look whether this machine can run a lab.

    Where it cannot, say what to type.
    """
    from stacklab import show

    show.checks(plan_of(c, topology, "", distribution, provider), as_json=json, fix=fix)


@task(help={**LAB, "out": "the file to write; report.html in the lab's directory by default"})
@edge
def report(c: Context, out: str = "", lab: str = "") -> None:
    """Write what was done to a lab as one HTML page.

    Stages and steps as bars, errors, what came from the cache. Prints where it is.
    """
    from pathlib import Path

    from stacklab import show

    show.report(lab or c.lab, Path(out) if out else None)
