"""The verification's own parts: what counts as an answer, and what is removed afterwards."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace as Thing
from typing import Any, ClassVar
from urllib.parse import parse_qs

import pytest
from openstack.exceptions import HttpException

from stacklab import cloud, namespace, packstack, remote, settle, verify
from stacklab.errors import CommandFailed, NotHealthy
from stacklab.model import Node
from stacklab.plan import Plan
from stacklab.run import Result
from stacklab.verify import horizon, instances
from stacklab.verify.context import Context, until

SERVER = Thing(id="4711", name="stacklab-verify-tenant")


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("stacklab.verify.context.time", made)
    return made


class Guest(BaseHTTPRequestHandler):
    """The page that the probe guest serves."""

    page = ""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.page.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def guest() -> Iterator[str]:
    """A guest's address, of this machine."""
    with HTTPServer(("127.0.0.1", 0), Guest) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("page", "answer"),
    [
        ("hostname: x\ninstance-id: i-0000002a\n", "metadata says i-0000002a"),
        ("instance-id=i-00ff\n", "metadata says i-00ff"),
        ("instance-id: none yet\n", ""),
        ("<html>It works</html>", ""),
        ("", ""),
    ],
)
def test_page(page: str, answer: str, guest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guest, "page", page)
    # A proxy of the host's knows nothing of the lab.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert instances._page(guest, 10) == answer


def console(text: Any) -> Any:
    return Thing(compute=Thing(get_server_console_output=lambda server: text))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ({"output": "Linux\nSTACKLAB-PROBE booted 12.34 s\n"}, "shows the boot (12.34 s)"),
        ("STACKLAB-PROBE booted 3 s", "shows the boot (3 s)"),
        ({"output": "STACKLAB-PROBE dhcp 203.0.113.101/24\n"}, ""),
        ({"output": ""}, ""),
    ],
)
def test_console(text: Any, answer: str) -> None:
    assert instances._console(console(text), SERVER) == answer


def test_an_answer_is_waited_for(clock: Clock) -> None:
    answers: list[Any] = [OSError("refused"), "", ConnectionResetError(), "answers"]

    def question() -> str:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return str(answer)

    assert until("ping", 60, question) == "answers"
    assert clock.now == 3


def test_no_answer_shows_the_end_of_the_console(
    two_node: Plan, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "quick", lambda plan: "network agents: down")
    text = "\n".join(f"line {number}" for number in range(1, 31))
    with pytest.raises(NotHealthy) as caught:
        context = Context(two_node, None, console({"output": text}))
        instances._answer(context, SERVER, "203.0.113.7", "ping", lambda: "")
    first, *tail = caught.value.message.splitlines()
    assert first == (
        "stacklab-verify-tenant at 203.0.113.7: no ping within 240 s (network agents: down); "
        "its console says:"
    )
    assert tail == [f"    line {number}" for number in range(16, 31)]
    assert "/var/log/neutron on controller" in caught.value.hint
    assert clock.now >= instances.ANSWER_SECONDS


def test_other_errors_are_not_waited_for(clock: Clock) -> None:
    def question() -> str:
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        until("ping", 60, question)


def states(plan: Plan, *found: Any) -> Context:
    left = list(found)
    compute = Thing(get_server=lambda _: left.pop(0) if len(left) > 1 else left[0])
    return Context(plan, None, Thing(compute=compute))


def server(status: str, **more: Any) -> Thing:
    return Thing(id="1", name="stacklab-verify-x", status=status, task_state="spawning", fault=None, **more)


def test_active(two_node: Plan, clock: Clock) -> None:
    active = server("ACTIVE")
    assert instances.active(states(two_node, server("BUILD"), server("BUILD"), active), active) is active
    assert clock.now == 2


def test_an_instance_in_error_says_why(two_node: Plan, clock: Clock) -> None:
    failed = server("ERROR")
    failed.fault = {"message": "No valid host was found."}
    with pytest.raises(NotHealthy) as caught:
        instances.active(states(two_node, server("BUILD"), failed), failed)
    assert caught.value.message == "instance stacklab-verify-x failed: No valid host was found."
    assert "nova-compute.log" in caught.value.hint
    failed.fault = None
    with pytest.raises(NotHealthy, match="no reason given"):
        instances.active(states(two_node, failed), failed)


@pytest.mark.parametrize(("emulated", "seconds"), [(False, 300), (True, 1500)])
def test_an_instance_that_never_gets_active(
    two_node: Plan, clock: Clock, emulated: bool, seconds: int
) -> None:
    plan = dataclasses.replace(two_node, emulated=emulated)
    with pytest.raises(NotHealthy, match=rf"was still BUILD \(spawning\) after {seconds} s"):
        instances.active(states(plan, server("BUILD")), server("BUILD"))


class Demo:
    """A project with things of a verification and others'."""

    current_project_id = "demo-project"

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.waited: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.names = ["stacklab-verify-provider", "web", "stacklab-verify-tenant", "my-stacklab-verify"]
        self.compute = Thing(
            servers=lambda: [Thing(name=name) for name in self.names],
            delete_server=self.delete_server,
            wait_for_delete=lambda server, wait: self.waited.append(server.name),
        )
        self.network = Thing(
            ips=self.ips,
            delete_ip=lambda ip: self.removed.append(ip.name),
            security_groups=self.groups,
            delete_security_group=self.delete_group,
        )

    def delete_server(self, server: Any, ignore_missing: bool) -> None:
        assert ignore_missing
        self.removed.append(server.name)

    def ips(self, **query: Any) -> list[Thing]:
        self.asked.append(query)
        return [Thing(name="the test's address")]

    def groups(self, **query: Any) -> list[Thing]:
        self.asked.append(query)
        return [Thing(name="the test's group")]

    def delete_group(self, group: Any) -> None:
        # Neutron refuses while an instance's port still uses it.
        assert self.waited == ["stacklab-verify-provider", "stacklab-verify-tenant"]
        self.removed.append(group.name)


def test_sweep_removes_its_own_only(two_node: Plan) -> None:
    demo = Demo()
    instances.sweep(Context(two_node, None, demo))
    assert demo.removed == [
        "the test's address",
        "stacklab-verify-provider",
        "stacklab-verify-tenant",
        "the test's group",
    ]
    assert demo.asked == [
        {"description": "stacklab-verify"},
        {"name": "stacklab-verify", "project_id": "demo-project"},
    ]


def test_an_unhealthy_lab_is_not_booted_on(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "quick", lambda plan: "nova API: answers 503")
    with pytest.raises(NotHealthy, match=r"^nova API: answers 503$"):
        verify.verify(two_node)


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (None, ""),
        (NotHealthy("no login"), "no login\n"),
        (HttpException("Server Error", http_status=500), "horizon: Server Error\n"),
    ],
)
def test_what_was_made_goes_whatever_happens(
    fails: Exception | None, said: str, two_node: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def made(name: str) -> Any:
        def check(context: Context) -> Iterator[verify.Row]:
            seen.append(name)
            yield verify.Row(name, "answers", 1.0)
            if fails and name == "horizon":
                raise fails

        def sweep(context: Context) -> None:
            seen.append(f"sweep {name}")
            if "nova" in seen and fails:
                raise HttpException("not swept")

        return Thing(check=check, sweep=sweep)

    monkeypatch.setattr(settle, "quick", lambda plan: "")
    monkeypatch.setattr(namespace, "entered", lambda plan: nullcontext())
    monkeypatch.setattr(cloud, "connect", lambda plan, who, retries: seen.append(who))

    def script(plan: Plan, node: Node, name: str) -> Result:
        seen.append(f"{name} {node.name}")
        if node.name == "compute1":
            raise CommandFailed("no route to host")
        return Result(0, "port tapx: no tag")

    monkeypatch.setattr(remote, "script", script)
    monkeypatch.setattr(verify, "CHECKS", tuple((name, made(name)) for name in ("nova", "horizon", "swift")))
    with pytest.raises(NotHealthy, match=said) if fails else nullcontext():
        rows = verify.verify(two_node)
        assert [row.what for row in rows] == ["services and agents", "nova", "horizon"]
    # Only the lab's services; before, for what a killed verification left, and after, last things first.
    swept = ["sweep horizon", "sweep nova"]
    looked = ["network-state controller", "network-state compute1"] if fails else []
    assert seen == ["admin", "demo", *swept, "nova", "horizon", *looked, *swept]
    logs = two_node.directory / "logs" / "verify"
    assert [path.name for path in logs.glob("*")] == (["controller.log"] if fails else [])


def test_all_that_could_not_be_removed_is_named(two_node: Plan) -> None:
    def sweep(context: Context) -> None:
        raise HttpException("Server Error")

    checks = [(name, Thing(sweep=sweep)) for name in ("nova", "swift")]
    with pytest.raises(NotHealthy) as raised:
        verify._sweep(Context(two_node, None, None), checks)  # type: ignore[arg-type]
    assert [line.split(":")[0] for line in raised.value.message.splitlines()] == ["swift", "nova"]
    assert raised.value.hint == "on the controller: /var/log/swift; on the controller: /var/log/nova"


class Dashboard(BaseHTTPRequestHandler):
    """Horizon's login: a form with a token of the session's, which has to come back with its cookie."""

    late: ClassVar[list[str]] = []  # pages that Apache gives up on
    quote = '"'

    def do_GET(self) -> None:
        if self.path in self.late:
            self.late.remove(self.path)
            self._send(504, "Gateway Timeout")
        elif self.path in ("/horizon/", "/horizon/project/instances/"):
            page = '<a href="/horizon/auth/logout/">stacklab-verify-tenant'
            self._send(200, page if "sessionid=in" in self._cookies() else "log in first")
        else:
            form = '<input type="hidden" name="csrfmiddlewaretoken" value="t0k3n">'
            self._send(200, form.replace('"', self.quote), ("Set-Cookie", "csrftoken=t0k3n; Path=/"))

    def do_POST(self) -> None:
        sent = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        assert "csrftoken=t0k3n" in self._cookies()
        assert sent["csrfmiddlewaretoken"] == ["t0k3n"]
        right = sent["username"] == ["demo"] and sent["password"] == ["right"]
        cookie = ("Set-Cookie", f"sessionid={'in' if right else 'out'}; Path=/")
        elsewhere = ("Location", "/horizon/")
        self._send(302 if right else 200, "", cookie, *([elsewhere] if right else []))

    def _cookies(self) -> str:
        return self.headers.get("Cookie", "")

    def _send(self, code: int, text: str, *headers: tuple[str, str]) -> None:
        self.send_response(code)
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(Context, "controller", f"127.0.0.1:{server.server_port}")
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("dashboard")
def test_horizon_loads_longer_than_apache_waits(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = ["/horizon/auth/login/", "/horizon/", "/horizon/", "/horizon/project/instances/"]
    monkeypatch.setattr(Dashboard, "late", pages)
    monkeypatch.setattr(packstack, "secrets", lambda plan: {"DEMO_PASSWORD": "right"})
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert len(list(horizon.check(Context(two_node, None, None, {"tenant": SERVER})))) == 2
    assert pages == []


@pytest.mark.usefixtures("dashboard")
@pytest.mark.parametrize("quote", ['"', "'"])  # Django's today, and 1.11's
def test_horizon_login(quote: str, two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dashboard, "quote", quote)
    monkeypatch.setattr(packstack, "secrets", lambda plan: {"DEMO_PASSWORD": "right"})
    context = Context(two_node, None, None, {"tenant": SERVER})
    assert [row.what for row in horizon.check(context)] == ["Horizon", "Horizon's instances"]
    context.servers["provider"] = Thing(name="stacklab-verify-provider")
    with pytest.raises(NotHealthy, match=r"list \(200\) lacks stacklab-verify-provider"):
        list(horizon.check(context))
    monkeypatch.setattr(packstack, "secrets", lambda plan: {"DEMO_PASSWORD": "old"})
    with pytest.raises(NotHealthy, match="does not let demo in"):
        list(horizon.check(context))
