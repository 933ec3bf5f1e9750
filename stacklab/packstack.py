"""The stage `openstack`: the real Packstack, run on the controller and watched.

Packstack itself waits for ever when a puppet dies (its wait_for_puppet polls for a
file), so there is a liveness probe and an overall deadline here.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

from stacklab import answers, files, keytable, redact, remote, services, ui
from stacklab.errors import CommandFailed, LabError
from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.run import run

ANSWER_FILE = "/root/answers.txt"
DEADLINE = 3000.0
PROBE_SECONDS = 10.0
# Probes in a row that find a manifest without its puppet.
DEAD_PROBES = 3


class TimedOut(LabError):
    """The run failed because something was too slow: worth one more try from clean nodes."""


def secrets(plan: Plan) -> dict[str, str]:
    """The lab's secrets, drawn at the first call and kept (mode 0600); hidden in all output from now on."""
    path = plan.directory / "secrets.json"
    kept: dict[str, str] = files.read_json(path) or {}
    drawn = {**keytable.draw(plan.packstack), "DEMO_PASSWORD": token_hex(12), **kept}
    if drawn != kept:
        files.write_json(path, drawn, mode=0o600)
    redact.add(drawn.values())
    return drawn


def answer_file(plan: Plan, drawn: Mapping[str, str], installed: Sequence[Node] = ()) -> str:
    """The lab's answer file. Raises InvalidInput for an override that this Packstack does not take."""
    wanted = {**services.answers(plan.topology, plan.provider), **plan.topology.answers}
    return answers.render(
        replace(plan.topology, answers=wanted),
        packstack=plan.packstack,
        secrets=drawn,
        datapath=plan.datapath,
        workers=answers.workers(plan.topology),
        virt_type=plan.virt_type,
        installed=installed,
    )


def shape(plan: Plan) -> str:
    """The answer file with placeholders for the secrets: what decides the stage's key."""
    return answer_file(
        plan, {name: "x" * len(value) for name, value in keytable.draw(plan.packstack).items()}
    )


def commands(plan: Plan) -> tuple[str, str]:
    """What runs on the controller: Packstack, and the mapping of compute hosts."""
    return (
        f"PYTHONUNBUFFERED=1 packstack --answer-file={ANSWER_FILE} --timeout={900 * plan.patience:.0f}",
        "su -s /bin/sh nova -c 'nova-manage cell_v2 discover_hosts --by-service'",
    )


def map_hosts(plan: Plan) -> None:
    """Map every compute host to its cell.

    Packstack's last manifest does it too, but only once, and a nova-compute that takes
    a few seconds longer to register is never used ("not mapped to any cell").
    """
    log = plan.directory / "logs" / "packstack.log"
    remote.ssh(plan, plan.topology.controller, commands(plan)[1], log=log, timeout=120)


def deploy(plan: Plan, installed: Sequence[Node] = ()) -> None:
    """Run Packstack to its end; nodes that are `installed` already are left alone.

    Raises TimedOut when it failed for slowness, LabError with the first real error
    otherwise; its logs are then in the lab's logs/packstack/.
    """
    text = answer_file(plan, secrets(plan), installed)
    files.write(plan.directory / "answers.txt", text, mode=0o600)
    controller = plan.topology.controller
    remote.put(plan, controller, text, ANSWER_FILE)
    log = plan.directory / "logs" / "packstack.log"
    log.parent.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    watch = Watch(plan)
    try:
        with watch.probing():
            remote.ssh(plan, controller, commands(plan)[0], log=log, timeout=DEADLINE, each_line=watch.line)
    except CommandFailed as error:
        raise _explain(plan, watch, error) from error
    except KeyboardInterrupt:
        _end_all(plan)
        raise
    if not watch.succeeded:
        raise _explain(plan, watch, LabError("Packstack ended without saying that it succeeded"))
    cut = remote.script(plan, controller, "check-manifests").output.splitlines()
    if cut:
        watch.dead = ", ".join(watch.title(manifest) for manifest in cut)
        raise _explain(plan, watch, LabError("a manifest was not applied to its end"))


def _end_all(plan: Plan) -> None:
    """End Packstack and every Puppet run: on a node they go on without whoever asked for them."""
    for node in plan.topology.nodes:
        with suppress(CommandFailed):
            remote.ssh(
                plan, node, "pkill -f '[p]ackstack --answer-file|[p]uppet apply'", check=False, timeout=15
            )


class Watch:
    """Follows Packstack: which manifest runs where since when, and whether its puppet is alive."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.succeeded = False
        self.errors: list[str] = []
        self.dead = ""
        self._since: dict[str, float] = {}
        self._last: dict[str, str] = {}
        self._missed: dict[str, int] = {}
        self._stop = threading.Event()
        self._names = {node.management: node.name for node in plan.topology.nodes}

    def line(self, text: str) -> None:
        """Take one line of Packstack's output."""
        plain = re.sub(r"\x1b\[[0-9;]*m|\r", "", text).strip()
        if found := re.match(r"Applying (\S+)\.pp$", plain):
            self._since[found[1]] = time.monotonic()
            ui.say(f"applying {self.title(found[1])}")
        elif found := re.match(r"(\S+\.pp):\s+\[ (DONE|ERROR) \]", plain):
            name = found[1].removesuffix(".pp")
            seconds = time.monotonic() - self._since.pop(name, time.monotonic())
            ui.took(self.title(name), seconds, failed=found[2] != "DONE")
        elif "Installation completed successfully" in plain:
            self.succeeded = True
        elif plain.startswith("ERROR :") or self.errors:
            self.errors.append(plain)
        elif plain.endswith("[ DONE ]"):
            ui.detail(plain.removesuffix("[ DONE ]").strip())

    def title(self, manifest: str) -> str:
        """A manifest's name for people: what is applied where."""
        address, _, kind = manifest.partition("_")
        return f"the {kind.replace('_', ' ')} manifest on {self._names.get(address, address)}"

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Look at the puppets every few seconds for as long as the block runs."""
        thread = threading.Thread(target=self._probe_loop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(timeout=30)

    def _probe_loop(self) -> None:
        while not self._stop.wait(PROBE_SECONDS):
            if not self._since:
                continue
            for node in self.plan.topology.nodes:
                try:
                    found = remote.script(self.plan, node, "probe-puppet", timeout=30).output
                except CommandFailed:
                    continue  # a busy node; the deadline bounds it
                for row in found.splitlines():
                    self._seen(*[*row.split("\t"), "", ""][:3])
            if self.dead:
                self._end_packstack()
                return

    def _seen(self, manifest: str, state: str, last: str) -> None:
        name = manifest.removesuffix(".pp")
        since = self._since.get(name)
        if since is None:
            return
        ui.detail(f"{self.title(name)}, {ui.duration(time.monotonic() - since)}: {last}")
        missed = self._missed[name] = self._missed.get(name, 0) + 1 if state == "dead" else 0
        if missed >= DEAD_PROBES:
            self.dead = self.title(name)

    def _end_packstack(self) -> None:
        # It would wait for ever for the end of a puppet that is gone.
        remote.ssh(
            self.plan, self.plan.topology.controller, "pkill -f 'packstack --answer-file'", check=False
        )


_SLOW = re.compile(
    r"running for more than \d+ seconds|execution expired|timed? ?out|Timeout|did not end within",
    re.IGNORECASE,
)
_HINTS = (
    (
        re.compile(r"1045|Access denied for user 'root'"),
        "MariaDB has another lab's password: `invoke down`, then `up`",
    ),
    (re.compile(r"No space left"), "a node's disk is full: see `df` on the host"),
    (_SLOW, "the machine is loaded: let it rest, then run `invoke up` again"),
    (
        re.compile(r"[Cc]ould not (find|resolve)|Unknown (function|variable)"),
        "a Puppet module is missing or too old",
    ),
    (re.compile(r"no address for"), "an interface that the answer file names has no address on that node"),
)


def _explain(plan: Plan, watch: Watch, error: LabError) -> LabError:
    place = fetch_logs(plan)
    said = first_error(place) or " ".join(watch.errors)
    # Not searched in the whole message: the command's own text names a time-out too.
    slow = bool(_SLOW.search(said)) or "did not end within" in error.message
    if watch.dead:
        message = f"{watch.dead}: its puppet died"
    else:
        message = f"Packstack failed: {redact.text(said or error.message)}"
    hint = next(
        (text for pattern, text in _HINTS if pattern.search(said)), "the first error is the one to look at"
    )
    kind = TimedOut if slow and not watch.dead else LabError
    return kind(f"{message}\n  logs: {place}", hint=hint)


def fetch_logs(plan: Plan) -> Path:
    """Bring Packstack's logs of all nodes into the lab's logs/packstack/; returns that place."""
    place = plan.directory / "logs" / "packstack"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for node in plan.topology.nodes:
        with_logs = "cd /var/tmp/packstack && find . -name '*.log' -o -name '*.running' -o -name '*.finished'"
        try:
            listed = remote.ssh(plan, node, with_logs, check=False).output.split()
        except CommandFailed:
            continue  # the node is gone; the others' logs are worth having
        for name in listed:
            target = (
                place / node.name / Path(name).name.replace(".running", ".log").replace(".finished", ".log")
            )
            content = run(
                [*remote.ssh_argv(plan, node), f"cat /var/tmp/packstack/{name}"], check=False, timeout=60
            ).output
            files.write(target, redact.text(content), mode=0o600)
    return place


# The order in which Packstack applies its manifests.
_ORDER = ("controller", "network", "compute", "controller_post")
_ERROR = re.compile(r"^(Error:|Syntax error at|Duplicate declaration)")
# Packstack passes over these too.
_EXPECTED = re.compile(
    r"Command mysql is missing|Could not prefetch database_grant|NetworkManager is not running"
    r"|Failed to download metadata"
)


def first_error(place: Path) -> str:
    """The first real error of the puppets' logs, in the order of the manifests; '' where there is none."""

    def order(path: Path) -> tuple[int, str]:
        kind = path.name.removesuffix(".pp.log").partition("_")[2]
        return (_ORDER.index(kind) if kind in _ORDER else len(_ORDER), path.name)

    for path in sorted(place.rglob("*.pp.log"), key=order):
        for line in path.read_text(encoding="utf-8").splitlines():
            plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
            if _ERROR.search(plain) and not _EXPECTED.search(plain):
                return f"{path.parent.name}, {path.name.removesuffix('.log')}: {plain}"
    return ""
