"""The tasks as a user types them, in a copy of the project where no lab is."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from invoke import Context, Exit

from stacklab import files, lab, stages
from stacklab.tasks.common import edge

INVOKE = Path(sys.executable).with_name("invoke")
TASKS = {
    *(
        "build-base",
        *("base.list", "base.show", "base.diff", "base.verify", "base.delete"),
        "up",
        "reset",
        "down",
        "status",
        "ssh",
        "ssh-config",
        "openstack",
        "dashboard",
        "inventory",
        "verify",
        "doctor",
        "report",
        "test",
    ),
    *("topologies.list", "topologies.show", "topologies.validate"),
    *("topologies.diagram", "topologies.schema"),
    *("answers", "releases"),
    *("images.list", "images.build", "images.upload", "images.prune", "images.export-nodepool"),
    *("boxes.list", "boxes.build", "boxes.prune"),
    *("inputs.list", "inputs.fetch"),
    *("snapshots.list", "snapshots.save", "snapshots.restore", "snapshots.delete"),
    *("snapshots.export", "snapshots.import"),
}


@dataclass
class Cli:
    """A checkout of its own, with a cache and a PATH that keep a task from touching the machine."""

    project: Path
    env: dict[str, str]

    def __call__(
        self, *words: str, code: int = 0, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [INVOKE, "--search-root", self.project, *words],
            cwd=cwd or self.project,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    if not INVOKE.is_file():
        pytest.fail(f"{INVOKE} is missing: install the project's dependencies")
    top = tmp_path_factory.mktemp("cli")
    project = top / "project"
    project.mkdir()
    for name in ("stacklab", "elements", "scripts", "topologies"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(files.PROJECT / name, project / name, symlinks=True, ignore=ignore)
    for name in ("tasks.py", "invoke.yaml", "Vagrantfile"):
        shutil.copy(files.PROJECT / name, project / name)
    (top / "bin").mkdir()
    # Looking for a datapath must not load a module here.
    fakes = {"modprobe": "exit 1", "unshare": "echo called >&2; exit 1", "vagrant": "echo called >&2; exit 1"}
    for name, body in fakes.items():
        (top / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (top / "bin" / name).chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("INVOKE_")}
    env |= {
        "PATH": f"{top}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(project),
        "PYTHONDONTWRITEBYTECODE": "",  # the copy is compiled once, whatever this machine's settings are
        "XDG_CACHE_HOME": str(top / "cache"),
        "COLUMNS": "200",
    }
    return Cli(project, env)


def nothing_was_made(cli: Cli) -> bool:
    return not (cli.project / ".stacklab").exists() and not Path(cli.env["XDG_CACHE_HOME"]).exists()


def test_every_task_has_a_summary(cli: Cli) -> None:
    listed = json.loads(cli("--list", "--list-format=json").stdout)
    found = {task["name"]: task["help"] for task in listed["tasks"]}
    for collection in listed["collections"]:
        found |= {f"{collection['name']}.{task['name']}": task["help"] for task in collection["tasks"]}
    assert set(found) == TASKS
    for name, summary in found.items():
        # Imperative and short: it is read in a list.
        assert re.match(r"[A-Z].{10,110}[.:`]", summary or ""), f"{name}: {summary!r}"
        assert "\n" not in summary


@pytest.mark.parametrize("settings", [{}, {"INVOKE_PROVIDER": "libvirt"}], ids=["auto", "set"])
def test_build_base_builds_what_up_would(settings: dict[str, str], cli: Cli) -> None:
    own = replace(cli, env={**cli.env, **settings})
    first, *_ = own("build-base", "--dry-run").stdout.splitlines()
    assert re.fullmatch(r"golden image debian-12-\w+-\w{12}: to be built", first)
    assert first in own("up", "--dry-run").stdout.splitlines()
    assert "-libvirt-" in first or not settings


def test_the_list_for_people(cli: Cli) -> None:
    said = cli("--list").stdout
    for name in TASKS:
        assert re.search(rf"^  {re.escape(name)}  +[A-Z]", said, re.MULTILINE), name


def test_every_flag_has_help(cli: Cli) -> None:
    program = (
        "import tasks\n"
        "for name in tasks.namespace.task_names:\n"
        "    task = tasks.namespace[name]\n"
        "    for argument in task.get_arguments():\n"
        "        print(name, argument.name, (argument.help or '').strip() or 'MISSING')\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=cli.project,
        env=cli.env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "up dry-run only show what would be done" in said.stdout.replace("_", "-")
    assert [line for line in said.stdout.splitlines() if line.endswith("MISSING")] == []


def test_a_broken_topology(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nservises: [keystone]\nnodes:\n"
        "  controller: {roles: [controller, network], management: 10.0.0.11}\n"
        "  compute: {roles: [compute], management: 10.0.1.31}\n"
    )
    for task in (["up", "--topology"], ["up", "--dry-run", "--topology"], ["topologies.validate"]):
        said = cli(*task, str(file), code=2)
        assert said.stderr.splitlines() == [
            f"{file}: servises: unknown key 'servises': did you mean 'services'? known: name, description, "
            "distribution, release, provider, domain, networks, nodes, services, network_agent, answers",
            f"{file}: nodes.compute.management: 10.0.1.31 is not in 10.0.0.0/24: "
            "take an address of that network",
        ]
        assert said.stdout == ""
    assert nothing_was_made(cli)


def test_answers_that_cannot_be(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    nodes = "nodes:\n  all: {roles: [controller, network, compute], management: 10.0.0.11}\n"
    answers = "{CONFIG_DEBUG_MOOD: y, CONFIG_HEAT_INSTALL: y, CONFIG_SERVICE_WORKERS: many}"
    file.write_text(f"name: mine\nanswers: {answers}\n{nodes}")
    for task in (["up", "--topology"], ["up", "--dry-run", "--topology"], ["topologies.validate"]):
        said = cli(*task, str(file), code=2)
        assert said.stderr.splitlines() == [
            f"{file}: answers.CONFIG_DEBUG_MOOD: is no key of this Packstack: CONFIG_DEBUG_MODE?",
            f"{file}: answers.CONFIG_HEAT_INSTALL: 'y' contradicts the lab, which has 'n': change services",
            f"{file}: answers.CONFIG_SERVICE_WORKERS: 'many' is no number from 1 up",
        ]
    assert nothing_was_made(cli)


def test_paths_are_where_the_user_is(cli: Cli, tmp_path: Path) -> None:
    shutil.copy(files.PROJECT / "topologies/two-node.yaml", tmp_path / "my.yaml")
    (tmp_path / "invoke.yaml").write_text("topology: nonsense\n")  # the settings are the checkout's
    assert cli("topologies.validate", "my.yaml", cwd=tmp_path).stdout == "my.yaml: 2 nodes, all right\n"
    assert "on controller: PYTHONUNBUFFERED=1 packstack" in cli("up", "--dry-run", cwd=tmp_path).stdout
    cli("topologies.diagram", "two-node", "--output", "lab.svg", cwd=tmp_path)
    assert (tmp_path / "lab.svg").read_text().startswith("<svg ")
    assert nothing_was_made(cli)


def test_an_unknown_topology(cli: Cli) -> None:
    said = cli("up", "--topology", "tow-node", code=2)
    assert "there is no topology 'tow-node': give the path of a file or a name (two-node" in said.stderr
    assert nothing_was_made(cli)


def test_a_provider_that_cannot_be(cli: Cli) -> None:
    said = cli("up", "--provider", "hyperv", code=2)
    assert "provider: hyperv has no debian-12 image: take lxc, libvirt, virtualbox" in said.stderr
    assert nothing_was_made(cli)


@pytest.mark.parametrize(
    "task",
    [
        ["ssh", "controller"],
        ["status"],
        ["report"],
        ["snapshots.export", "lab.file"],
        ["reset"],
        ["verify"],
        ["openstack", "--", "server", "list"],
        ["snapshots.save", "mine"],
        ["snapshots.export", "a.lab"],
        ["report"],
    ],
    ids=" ".join,
)
def test_without_a_lab(task: list[str], cli: Cli) -> None:
    said = cli(*task, code=1)
    assert said.stderr.splitlines() == [
        "there is no lab here",
        "hint: make one: scripts/stacklab up --topology two-node",
    ]
    assert said.stdout == ""
    assert nothing_was_made(cli)


def test_a_lab_by_a_name_that_is_not_there(cli: Cli) -> None:
    said = cli("status", "--lab", "mine", code=1)
    assert said.stderr.splitlines() == ["there is no lab 'mine' here", "hint: there are: none"]


def test_an_import_of_what_is_no_lab(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a lab")
    said = cli("snapshots.import", str(tmp_path / "text"), "--lab", "mine", code=2)
    assert said.stderr == f"{tmp_path}/text: this is no lab that stacklab exported\n"
    assert nothing_was_made(cli)


def test_down_without_a_lab_is_fine(cli: Cli) -> None:
    assert "there is no lab two-node: nothing to remove" in cli("down").stderr
    assert nothing_was_made(cli)


@pytest.mark.parametrize("name", ["two-node", "all-in-one"])
def test_a_dry_run_shows_all_and_starts_nothing(name: str, cli: Cli) -> None:
    said = cli("up", "--dry-run", "--topology", name)
    reason = "(?:was never made|lies on the stage nodes)"
    found = re.findall(rf"^stage (\S+) \([0-9a-f]{{12}}\): to be done: {reason}$", said.stdout, re.MULTILINE)
    assert found == list(stages.NAMES)
    for command in (
        "disk-image-create -a amd64 -t tar",
        f"ip netns add stacklab-{name}",
        "vagrant up",
        "on controller: PYTHONUNBUFFERED=1 packstack --answer-file=/root/answers.txt",
        "scripts/build-probe-guest.sh",
    ):
        assert f"    {command}" in said.stdout or command in said.stdout
    assert "controller.lab.test" in said.stdout
    assert "called" not in said.stderr
    assert nothing_was_made(cli)


@pytest.mark.parametrize("provider", ["libvirt", "virtualbox", "vmware_desktop"])
def test_a_dry_run_needs_no_tool_of_the_provider(provider: str, cli: Cli) -> None:
    said = cli("up", "--dry-run", "--provider", provider).stdout
    assert re.findall(r"^stage (\S+) ", said, re.MULTILINE) == list(stages.NAMES)
    assert nothing_was_made(cli)


def test_a_dry_run_says_the_same_twice(cli: Cli) -> None:
    assert cli("up", "--dry-run").stdout == cli("up", "--dry-run").stdout


def test_topologies(cli: Cli) -> None:
    said = cli("topologies.list").stdout
    assert re.search(r"two-node +controller, compute1 +One controller", said)
    assert re.search(r"all-in-one +controller +A single node", said)
    shown = json.loads(cli("topologies.show", "two-node").stdout)
    assert [node["management"] for node in shown["nodes"]] == ["10.0.0.11", "10.0.0.31"]
    assert cli("topologies.validate", "two-node").stdout.endswith("two-node.yaml: 2 nodes, all right\n")


def test_releases_and_answers(cli: Cli) -> None:
    assert re.search(r"stein +Stein +end of life +centos-7", cli("releases").stdout)
    assert json.loads(cli("releases", "--release", "zed", "--json").stdout)[0]["packstack"] == "21.0.1"
    said = cli("answers", "--topology", "three-node", "--release", "epoxy").stdout
    assert said.startswith("# Answers for Packstack 26.0.0")
    assert "# topology three-node: nodes\nCONFIG_NETWORK_HOSTS=10.0.0.21\n" in said
    refused = cli("answers", "--release", "epoxy", "--distribution", "debian-12", code=2)
    assert "epoxy does not run on debian-12" in refused.stderr


def test_settings_hold_for_answers_and_validation(cli: Cli) -> None:
    on_rocky = Cli(cli.project, {**cli.env, "INVOKE_DISTRIBUTION": "rocky-9"})
    assert on_rocky("answers").stdout.startswith("# Answers for Packstack 26.0.0")
    in_containers = Cli(cli.project, {**on_rocky.env, "INVOKE_PROVIDER": "lxc"})
    for task in (["up", "--dry-run"], ["answers"], ["topologies.validate", "two-node"]):
        assert "provider: lxc has no rocky-9 image" in in_containers(*task, code=2).stderr
    said = in_containers("answers", "--release", "train", "--distribution", "centos-7").stdout
    assert said.startswith("# Answers for Packstack 15.1.0")
    assert nothing_was_made(cli)


def test_a_mirror_that_is_none(cli: Cli) -> None:
    said = cli("inputs.fetch", "--mirror", "x", code=2).stderr
    assert said == "mirror: 'x' is not a mirror: write it such as https://mirror.example/rocky\n"
    assert nothing_was_made(cli)


def test_a_diagram_is_written_where_it_is_asked_for(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "storage.svg"
    assert cli("topologies.diagram", "storage", "--output", str(target)).stdout == f"{target}\n"
    assert target.read_text().startswith("<svg ")
    refused = cli("topologies.diagram", "storage", "--output", str(tmp_path / "storage.jpg"), code=1)
    assert "storage.jpg is neither .svg nor .png" in refused.stderr


def test_a_diagram_where_no_file_can_be(cli: Cli) -> None:
    refused = cli("topologies.diagram", "two-node", "--output", "/proc/x.svg", code=1)
    assert refused.stderr == "/proc/x.svg cannot be written: No such file or directory\nhint: say --output\n"


def test_a_port_that_is_none(cli: Cli) -> None:
    said = cli("dashboard", "--port", "abc", code=2).stderr
    assert said == "port: 'abc' is none: say a number such as 8080, up to 65535\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device\nhint: "),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "reports"), "reports: Is a directory\nhint: "),
    ],
)
def test_what_the_machine_is_to_blame_for_is_no_bug(error: OSError, said: str) -> None:
    @edge
    def task(c: Context) -> None:
        raise error

    with pytest.raises(Exit) as caught:
        task(Context())
    assert (caught.value.code, str(caught.value)[: len(said)]) == (1, said)


def test_a_lab_of_roots_is_not_denied(labs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without root: nobody else may look into a lab."""
    (labs / "mine").mkdir(parents=True)
    assert lab.existing() == []
    monkeypatch.setattr(os, "access", lambda path, mode: path != labs / "mine")
    assert lab.existing() == ["mine"]

    def denied(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(files, "read_json", denied)
    for act in (lab.open_plan, lambda: lab.plan_for("two-node", "mine")):

        @edge
        def task(c: Context, act: Callable[[], object] = act) -> None:
            act()

        with pytest.raises(Exit) as caught:
            task(Context())
        assert str(caught.value) == "the labs here are root's\nhint: scripts/stacklab TASK (it uses sudo)"


def test_other_errors_of_the_system_are_bugs() -> None:
    @edge
    def task(c: Context) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    with pytest.raises(OSError, match="Bad file"):
        task(Context())
