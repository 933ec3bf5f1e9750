"""Packstack watched: its output line by line, puppets that die, errors explained, secrets kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stacklab import files, packstack, redact, remote
from stacklab.errors import CommandFailed, LabError
from stacklab.packstack import TimedOut, Watch
from stacklab.plan import Plan
from stacklab.run import Result

GREEN, RED, OFF = "\x1b[32m", "\x1b[31m", "\x1b[0m"
# As Packstack 21.0.1 writes it: state_message() pads to a column and colours the state.
OUTPUT = f"""Welcome to the Packstack setup utility

The installation log file is available at: /var/tmp/packstack/20260101-000000-x/openstack-setup.log

Installing:
{"Clean Up".ljust(62)}[ {GREEN}DONE{OFF} ]
{"Setting up ssh keys".ljust(62)}[ {GREEN}DONE{OFF} ]
{"Copying Puppet modules and manifests".ljust(62)}[ {GREEN}DONE{OFF} ]
Applying 10.0.0.11_controller.pp

{"10.0.0.11_controller.pp:".ljust(62)}[ {GREEN}DONE{OFF} ]
Applying 10.0.0.31_compute.pp

{"10.0.0.31_compute.pp:".ljust(62)}[ {GREEN}DONE{OFF} ]
{"Applying Puppet manifests".ljust(62)}[ {GREEN}DONE{OFF} ]
{"Finalizing".ljust(62)}[ {GREEN}DONE{OFF} ]

 **** Installation completed successfully ******

Additional information:
 * A new answerfile was created
"""
FAILED = f"""Applying 10.0.0.11_controller.pp
{"10.0.0.11_controller.pp:".ljust(62)}[ {RED}ERROR{OFF} ]
{"Applying Puppet manifests".ljust(62)}[ {RED}ERROR{OFF} ]

{RED}ERROR : Error appeared during Puppet run: 10.0.0.11_controller.pp
Error: Could not find resource 'Package[x]'
You will find full trace in log /var/tmp/packstack/x/manifests/10.0.0.11_controller.pp.log{OFF}
Please check log file /var/tmp/packstack/x/openstack-setup.log for more information
"""


@pytest.fixture
def watch(two_node: Plan) -> Watch:
    return Watch(two_node)


def feed(watch: Watch, output: str) -> None:
    for line in output.splitlines():
        watch.line(line)


def test_a_good_run(watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    feed(watch, OUTPUT)
    assert watch.succeeded
    assert watch.errors == []
    assert capsys.readouterr().err.splitlines() == [
        "applying the controller manifest on controller",
        "the controller manifest on controller: done after 0.0 s",
        "applying the compute manifest on compute1",
        "the compute manifest on compute1: done after 0.0 s",
    ]


def test_the_time_of_each_manifest(
    watch: Watch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch.line("Applying 10.0.0.11_controller.pp")
    watch.line("Applying 10.0.0.31_compute.pp")  # both at once
    now[0] += 12
    watch.line("10.0.0.31_compute.pp:   [ DONE ]")
    now[0] += 240
    watch.line("10.0.0.11_controller.pp:   [ DONE ]")
    assert capsys.readouterr().err.splitlines()[2:] == [
        "the compute manifest on compute1: done after 12 s",
        "the controller manifest on controller: done after 4 min 12 s",
    ]


def test_a_failed_run(watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    feed(watch, FAILED)
    assert not watch.succeeded
    assert watch.errors[:2] == [
        "ERROR : Error appeared during Puppet run: 10.0.0.11_controller.pp",
        "Error: Could not find resource 'Package[x]'",
    ]
    assert "the controller manifest on controller: failed after 0.0 s" in capsys.readouterr().err


def test_an_address_that_is_no_nodes_is_shown_as_it_is(
    watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch.line("\rApplying 192.0.2.9_post_install.pp\r")
    assert capsys.readouterr().err == "applying the post install manifest on 192.0.2.9\n"


class Probes:
    """Stands in for ssh: each node tells its states one after the other; then the test ends the watch."""

    def __init__(self, watch: Watch, states: dict[str, list[str | CommandFailed]]) -> None:
        self.watch, self.states = watch, states
        self.asked: list[tuple[str, str]] = []

    def script(self, plan: Plan, node: Any, name: str, *args: str, **_: Any) -> Result:
        left = self.states.get(node.name)
        if not left:
            if not any(self.states.values()):
                self.watch._stop.set()
            return Result(0, "")
        state = left.pop(0)
        if isinstance(state, CommandFailed):
            raise state
        return Result(0, state)

    def ssh(self, plan: Plan, node: Any, command: str, **_: Any) -> Result:
        self.asked.append((node.name, command))
        return Result(0, "")


@pytest.fixture
def probe(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Probes]:
    def run(**states: list[str | CommandFailed]) -> Probes:
        probes = Probes(watch, states)
        monkeypatch.setattr(packstack, "PROBE_SECONDS", 0.0)
        monkeypatch.setattr(remote, "script", probes.script)
        monkeypatch.setattr(remote, "ssh", probes.ssh)
        watch._probe_loop()
        return probes

    return run


def row(state: str, manifest: str = "10.0.0.11_controller.pp") -> str:
    return f"{manifest}\t{state}\tNotice: /Stage[main]/Mysql::Server/Package[mysql-server]: created\n"


def test_a_dead_puppet_ends_packstack(watch: Watch, probe: Callable[..., Probes]) -> None:
    watch.line("Applying 10.0.0.11_controller.pp")
    probes = probe(controller=[row("dead")] * packstack.DEAD_PROBES)
    assert watch.dead == "the controller manifest on controller"
    assert probes.asked == [("controller", "pkill -f 'packstack --answer-file'")]


@pytest.mark.parametrize(
    "states",
    [
        [row("dead")] * (packstack.DEAD_PROBES - 1),
        [row("dead"), row("dead"), row("alive"), row("dead"), row("dead")],
        [row("alive")] * 9,
        [row("dead", "10.0.0.31_compute.pp")] * 9,  # left by a run before
        [CommandFailed("busy")] * 9,
        [""] * 9,
        ["odd\n"] * 9,
    ],
    ids=["just ending", "between two runs", "alive", "not applied now", "busy node", "none", "odd"],
)
def test_a_puppet_is_not_called_dead_lightly(
    states: list[str | CommandFailed], watch: Watch, probe: Callable[..., Probes]
) -> None:
    watch.line("Applying 10.0.0.11_controller.pp")
    assert probe(controller=states).asked == []
    assert watch.dead == ""


def test_each_node_is_asked_of_its_own_puppet(watch: Watch, probe: Callable[..., Probes]) -> None:
    watch.line("Applying 10.0.0.11_controller.pp")
    watch.line("Applying 10.0.0.31_compute.pp")
    busy = CommandFailed("busy")
    probe(controller=[busy] * 3, compute1=[row("dead", "10.0.0.31_compute.pp")] * 3)
    assert watch.dead == "the compute manifest on compute1"


def test_probing_ends_with_its_block(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packstack, "PROBE_SECONDS", 0.01)
    asked: list[str] = []

    def script(plan: Plan, node: Any, name: str, **_: Any) -> Result:
        asked.append(name)
        return Result(0, row("alive"))

    monkeypatch.setattr(remote, "script", script)
    with watch.probing():
        time.sleep(0.05)
        assert asked == []  # nothing is being applied yet
        watch.line("Applying 10.0.0.11_controller.pp")
        end = time.monotonic() + 5
        while not asked and time.monotonic() < end:
            time.sleep(0.01)
    assert set(asked) == {"probe-puppet"}
    asked.clear()
    time.sleep(0.05)
    assert asked == []


def log(place: Path, node: str, name: str, *lines: str, age: int = 0) -> None:
    path = place / node / f"{name}.pp.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    os.utime(path, (1_000_000 - age, 1_000_000 - age))


MYSQL = "Error: Could not prefetch mysql_user provider 'mysql': Command mysql is missing"


def test_first_error_is_the_first_real_one(tmp_path: Path) -> None:
    log(
        tmp_path,
        "controller",
        "10.0.0.11_controller",
        f"{GREEN}Notice: Compiled catalog{OFF}",
        f"\x1b[1;31m{MYSQL}{OFF}",
        "Warning: the Error: in this line is not one",
        f"\x1b[1;31mError: /Stage[main]/A: change failed{OFF}",
        "Error: /Stage[main]/B: skipped because of A",
    )
    assert packstack.first_error(tmp_path) == (
        "controller, 10.0.0.11_controller.pp: Error: /Stage[main]/A: change failed"
    )


def test_first_error_of_several_logs_is_that_of_the_oldest(tmp_path: Path) -> None:
    log(tmp_path, "compute1", "10.0.0.31_compute", "Error: later", age=10)
    log(tmp_path, "controller", "10.0.0.11_controller", "Error: earlier", age=20)
    log(tmp_path, "controller", "10.0.0.11_prescript", MYSQL, age=30)
    assert packstack.first_error(tmp_path).endswith("Error: earlier")


def test_no_error_at_all(tmp_path: Path) -> None:
    assert packstack.first_error(tmp_path) == ""
    log(tmp_path, "controller", "10.0.0.11_controller", "Notice: fine", MYSQL)
    (tmp_path / "controller" / "openstack-setup.log").write_text("Error: not a puppet's\n")
    assert packstack.first_error(tmp_path) == ""


@pytest.fixture
def explain(watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LabError]:
    place = tmp_path / "fetched"
    place.mkdir()
    monkeypatch.setattr(packstack, "fetch_logs", lambda plan: place)

    def run(line: str = "", error: LabError | None = None) -> LabError:
        if line:
            log(place, "controller", "10.0.0.11_controller", line)
        return packstack._explain(watch.plan, watch, error or CommandFailed("ssh ended with exit code 1"))

    return run


@pytest.mark.parametrize(
    "line",
    [
        "Error: Command exceeded timeout",
        "Error: /Stage[main]/Keystone: execution expired",
        "Error: 'openstack token issue' running for more than 40 seconds",
        "Error: Connection timed out - connect(2)",
        "Error: Net::OpenTimeout",
    ],
)
def test_slowness_is_worth_another_try(line: str, explain: Callable[..., LabError]) -> None:
    found = explain(line)
    assert isinstance(found, TimedOut)
    assert line in found.message
    assert found.hint == "the machine is loaded: let it rest, then run `invoke up` again"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("Error: ERROR 1045 (28000): no", "MariaDB has another lab's password: `invoke down`, then `up`"),
        (
            "Error: Access denied for user 'root'@'localhost'",
            "MariaDB has another lab's password: `invoke down`, then `up`",
        ),
        ("Error: write: No space left on device", "a node's disk is full: see `df` on the host"),
        ("Error: Evaluation Error: Unknown variable: 'x'", "a Puppet module is missing or too old"),
        ("Error: could not find class nssdb", "a Puppet module is missing or too old"),
        (
            "Error: no address for brvxlan",
            "an interface that the answer file names has no address on that node",
        ),
        ("Error: something new", "the first error is the one to look at"),
    ],
)
def test_other_errors_get_their_hint(line: str, hint: str, explain: Callable[..., LabError]) -> None:
    found = explain(line)
    assert type(found) is LabError
    assert f"Packstack failed: controller, 10.0.0.11_controller.pp: {line}\n  logs: " in found.message
    assert found.hint == hint


def test_the_deadline_is_slowness_whatever_the_logs_say(explain: Callable[..., LabError]) -> None:
    error = CommandFailed("ssh controller packstack did not end within 3000 s")
    assert isinstance(explain(error=error), TimedOut)
    assert isinstance(explain("Error: something new", error), TimedOut)


def test_without_a_puppet_error_packstacks_own_is_shown(
    watch: Watch, explain: Callable[..., LabError]
) -> None:
    feed(watch, "ERROR : list index out of range\nPlease check log file x")
    found = explain()
    assert type(found) is LabError
    assert found.message.startswith(
        "Packstack failed: ERROR : list index out of range Please check log file x\n  logs: "
    )


def test_a_dead_puppet_is_named(watch: Watch, explain: Callable[..., LabError]) -> None:
    watch.dead = "the controller manifest on controller"
    assert explain().message.startswith("the controller manifest on controller: its puppet died\n  logs: ")


def test_an_explanation_tells_no_secret(explain: Callable[..., LabError]) -> None:
    redact.add(["s3cret-one"])
    assert "Error: mysql -ps3cret-one" not in explain("Error: mysql -ps3cret-one failed").message


class Ssh:
    """Stands in for ssh in a deployment: the controller prints what the test wants."""

    def __init__(self, output: str, error: CommandFailed | None = None, cut: str = "") -> None:
        self.output, self.error, self.cut = output, error, cut
        self.commands: list[tuple[str, str, str]] = []

    def __call__(
        self,
        plan: Plan,
        node: Any,
        command: str,
        *,
        stdin: str = "",
        each_line: Callable[[str], None] | None = None,
        **_: Any,
    ) -> Result:
        self.commands.append((node.name, command, stdin))
        if each_line is not None:
            for line in self.output.splitlines():
                each_line(line)
            if self.error is not None:
                raise self.error
        # Asked at the end: which manifests were cut short.
        return Result(0, self.cut if "Applied catalog in" in stdin else "")


def deploy(plan: Plan, ssh: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ssh", ssh)
    plan.directory.mkdir(parents=True)
    packstack.deploy(plan)


def test_deploy(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = Ssh(OUTPUT)
    deploy(two_node, ssh, monkeypatch)
    answers = (two_node.directory / "answers.txt").read_text()
    (node, put, text), (same, command, _), *checks = ssh.commands
    assert (node, same) == ("controller", "controller")
    # Packstack has gathered all logs on the controller, and removed them elsewhere.
    assert [(name, words.split()[0]) for name, words, _ in checks] == [("controller", "bash")]
    assert "/root/answers.txt" in put and text == answers
    assert command == "PYTHONUNBUFFERED=1 packstack --answer-file=/root/answers.txt --timeout=900"
    assert (two_node.directory / "answers.txt").stat().st_mode & 0o7777 == 0o600
    secret = packstack.secrets(two_node)["CONFIG_KEYSTONE_ADMIN_PW"]
    assert f"CONFIG_KEYSTONE_ADMIN_PW={secret}\n" in answers


def test_emulated_nodes_get_more_time(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    emulated = replace(two_node, emulated=True)
    assert "--timeout=4500" in packstack.commands(emulated)[0]
    found: list[float] = []
    monkeypatch.setattr(remote, "run", lambda argv, timeout, **_: found.append(timeout))
    for plan in (two_node, emulated):
        remote.ssh(plan, plan.topology.controller, "true", timeout=60)
    assert found == [60, 300]


@pytest.mark.parametrize(
    "error", [None, CommandFailed("ssh ended with exit code 1")], ids=["code 0", "code 1"]
)
def test_deploy_that_does_not_succeed(
    error: CommandFailed | None, two_node: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LabError, match=r"Packstack failed: ERROR : Error appeared during Puppet run"):
        deploy(two_node, Ssh(FAILED, error), monkeypatch)


def test_an_end_without_success_is_a_failure(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match="ended without saying that it succeeded"):
        deploy(two_node, Ssh("Installing:\n"), monkeypatch)


def test_a_manifest_that_was_cut_short_is_a_failure(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match=r"^the compute manifest on compute1: its puppet died"):
        deploy(two_node, Ssh(OUTPUT, cut="10.0.0.31_compute\n"), monkeypatch)


def test_logs_of_all_nodes_are_fetched(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    redact.add(["s3cret-one"])
    left = two_node.directory / "logs" / "packstack" / "controller" / "older.log"
    left.parent.mkdir(parents=True)
    left.touch()

    def ssh(plan: Plan, node: Any, command: str, **_: Any) -> Result:
        if node.name == "compute1":
            raise CommandFailed("no route to host")
        return Result(0, "./x/openstack-setup.log\n./x/manifests/a.pp.running\n./x/manifests/b.pp.finished\n")

    def run(argv: Sequence[str], **_: Any) -> Result:
        return Result(0, f"{argv[-1]} s3cret-one\n")

    monkeypatch.setattr(remote, "ssh", ssh)
    monkeypatch.setattr(packstack, "run", run)
    place = packstack.fetch_logs(two_node)
    assert {str(path.relative_to(place)): path.read_text() for path in place.rglob("*.log")} == {
        "controller/openstack-setup.log": "cat /var/tmp/packstack/./x/openstack-setup.log ********\n",
        "controller/a.pp.log": "cat /var/tmp/packstack/./x/manifests/a.pp.running ********\n",
        "controller/b.pp.log": "cat /var/tmp/packstack/./x/manifests/b.pp.finished ********\n",
    }
    assert (place / "controller" / "a.pp.log").stat().st_mode & 0o7777 == 0o600


def test_secrets_are_drawn_once_and_kept(two_node: Plan, make_plan: Callable[..., Plan]) -> None:
    drawn = packstack.secrets(two_node)
    assert {"CONFIG_KEYSTONE_ADMIN_PW", "CONFIG_MARIADB_PW", "DEMO_PASSWORD"} <= set(drawn)
    path = two_node.directory / "secrets.json"
    assert path.stat().st_mode & 0o7777 == 0o600
    text = path.read_bytes()
    assert packstack.secrets(two_node) == drawn
    assert path.read_bytes() == text
    other = packstack.secrets(make_plan(lab="other"))
    assert not set(other.values()) & set(drawn.values())


def test_a_new_secret_is_added_to_those_kept(two_node: Plan) -> None:
    drawn = packstack.secrets(two_node)
    path = two_node.directory / "secrets.json"
    kept = {name: value for name, value in drawn.items() if name != "DEMO_PASSWORD"}
    files.write_json(path, kept, mode=0o600)
    again = packstack.secrets(two_node)
    assert again == {**kept, "DEMO_PASSWORD": again["DEMO_PASSWORD"]}
    assert again["DEMO_PASSWORD"] != drawn["DEMO_PASSWORD"]
    assert packstack.secrets(two_node) == again


def test_secrets_are_hidden_from_then_on(two_node: Plan) -> None:
    for value in packstack.secrets(two_node).values():
        assert redact.text(f"it is {value}!") == "it is ********!"


def test_the_shape_has_no_secret_and_stays_the_same(two_node: Plan) -> None:
    drawn = packstack.secrets(two_node)
    shape = packstack.shape(two_node)
    assert shape == packstack.shape(two_node)
    assert not [name for name, value in drawn.items() if value in shape]
    assert "CONFIG_COMPUTE_HOSTS=10.0.0.31\n" in shape


def test_the_shape_follows_the_datapath(make_plan: Callable[..., Plan]) -> None:
    assert packstack.shape(make_plan(datapath="system")) != packstack.shape(make_plan(datapath="netdev"))
