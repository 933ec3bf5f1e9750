"""The checks of services: what they must not take for an answer. What is right is seen in a real lab."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace as Thing
from typing import Any

import pytest
import requests

from stacklab import remote
from stacklab.errors import NotHealthy
from stacklab.plan import Plan
from stacklab.verify import heat, instances, magnum, swift, telemetry, volumes
from stacklab.verify.context import PREFIX, Context


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that passes only when somebody sleeps."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr("stacklab.verify.context.time", Thing(monotonic=lambda: now[0], sleep=sleep))


def answer(status: int, content: bytes = b"") -> Thing:
    return Thing(status_code=status, content=content, text=content.decode("latin-1"))


class Store:
    """Swift with faults to choose."""

    def __init__(self, *, checks: bool = True, flips: bool = False, status: int = 200) -> None:
        self.kept = b""
        self.made: list[str] = []
        self.checks, self.flips, self.status = checks, flips, status

    def create_container(self, name: str) -> None:
        self.made.append(name)

    def put(self, path: str, data: bytes, headers: dict[str, str]) -> Thing:
        assert path == f"/{PREFIX}/random-bytes"
        if self.checks and headers["ETag"] == "0" * 32:
            return answer(422)
        self.kept = data
        return answer(201)

    def get(self, path: str) -> Thing:
        last = self.kept[-1] ^ 1 if self.flips else self.kept[-1]
        return answer(self.status, self.kept[:-1] + bytes([last]))

    def objects(self, container: str) -> list[Thing]:
        return [Thing(name="random-bytes")]

    def get_endpoint(self) -> str:
        return "http://10.0.0.11:8080/v1/AUTH_1"


def rings(monkeypatch: pytest.MonkeyPatch, *addresses: str, answers: dict[str, int]) -> None:
    """swift-get-nodes says these addresses, whose servers answer with a status each, and a handoff."""
    curls = [
        f'curl -g -I -XHEAD "http://{address}:6000/disk1/7/AUTH_1/{PREFIX}/random-bytes"'
        for address in (*addresses, "10.0.0.99")
    ]
    said = "Partition\t7\n" + "\n".join(curls) + " # [Handoff]\n"

    def ssh(plan: Plan, node: Any, command: str) -> Thing:
        assert command == f"swift-get-nodes /etc/swift/object.ring.gz AUTH_1 {PREFIX} random-bytes"
        return Thing(output=said)

    def head(session: requests.Session, url: str, timeout: float) -> Thing:
        assert not session.trust_env
        return Thing(status_code=answers[url.split("/")[2].partition(":")[0]])

    monkeypatch.setattr(remote, "ssh", ssh)
    monkeypatch.setattr(requests.Session, "head", head)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"10.0.0.51": 200}, ""),
        ({"10.0.0.51": 404}, "on none of its devices: object1, disk1 answers 404"),
        ({"10.0.0.11": 200}, "place objects on 10.0.0.11 instead of 10.0.0.51"),
        ({}, "have no place for an object"),
    ],
)
def test_where_an_object_is(
    answers: dict[str, int],
    message: str,
    make_plan: Callable[..., Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rings(monkeypatch, *answers, answers=answers)
    if not answers:
        monkeypatch.setattr(remote, "ssh", lambda *_: Thing(output="[Errno 2] No such file"))
    rows = swift.check(Context(make_plan("storage"), None, Thing(object_store=Store())))
    if not message:
        assert list(rows)[-1].result == "object1, disk1"
        return
    with pytest.raises(NotHealthy, match=message):
        list(rows)


@pytest.mark.parametrize(
    ("store", "message"),
    [
        (Store(), ""),
        (Store(checks=False), "took an object with a wrong checksum"),
        (Store(flips=True), "gave back other bytes"),
        (Store(status=503), "answered 503 instead of 200"),
    ],
)
def test_swift(store: Store, message: str, two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    rings(monkeypatch, "10.0.0.11", answers={"10.0.0.11": 200})
    context = Context(two_node, None, Thing(object_store=store))
    if not message:
        assert [row.what for row in swift.check(context)] == ["object put", "object got", "object's place"]
        return
    with pytest.raises(NotHealthy, match=message):
        list(swift.check(context))


class Disks:
    """Cinder and Nova; the guest behind `consoles` says what it finds."""

    def __init__(self, held: str, status: str = "") -> None:
        self.status, self.broken = "available", status
        self.consoles = {
            "w": "STACKLAB-PROBE metadata instance-id=i-00000001 hostname=w\n",
            "r": "STACKLAB-PROBE metadata instance-id=i-00000002 hostname=r\n",
        }
        self.held = held
        self.block_storage = Thing(
            create_volume=lambda name, size: Thing(id="v"),
            get_volume=lambda volume: Thing(status=self.broken or self.status),
        )
        self.compute = Thing(
            create_volume_attachment=self.attach,
            delete_volume_attachment=self.detach,
            get_server_console_output=lambda server: {"output": self.consoles[server]},
        )

    def attach(self, server: Any, volume_id: str) -> None:
        self.status = "in-use"
        held = "" if server.id == "w" else self.held
        self.consoles[server.id] += f"STACKLAB-PROBE volume held {held}\nSTACKLAB-PROBE volume written\n"

    def detach(self, server: Any, volume: Any) -> None:
        self.status = "available"


def admin(host: str) -> Thing:
    """Who sees where a volume is."""
    return Thing(block_storage=Thing(get_volume=lambda volume: Thing(host=host)))


def test_a_volume_on_the_wrong_node(make_plan: Callable[..., Plan]) -> None:
    context = Context(make_plan("storage"), admin("controller.lab.test@nfs#nfs"), Disks(""))
    with pytest.raises(NotHealthy, match=r"is on controller\.lab\.test@nfs#nfs instead of block1\.lab\.test"):
        list(volumes.check(context))


@pytest.mark.parametrize(
    ("held", "status", "message"),
    [
        ("i-00000001", "", ""),
        ("i-00000002", "", "held 'i-00000002' where i-00000001 was written"),
        ("", "", "held 'nothing'"),
        ("", "error", "the volume is in error"),
        ("", "creating", "no volume that is available within 180 s"),
    ],
)
def test_volumes(held: str, status: str, message: str, two_node: Plan) -> None:
    servers = {"provider": Thing(id="w", name="writer"), "tenant": Thing(id="r", name="reader")}
    context = Context(two_node, admin("controller.lab.test@nfs#nfs"), Disks(held, status), servers)
    if not message:
        rows = [row.result for row in volumes.check(context)]
        assert rows[0] == "1 GiB, available, on controller"
        assert rows[-1] == "holds what i-00000001 wrote"
        return
    with pytest.raises(NotHealthy, match=message):
        list(volumes.check(context))


def test_a_stack_that_fails(two_node: Plan) -> None:
    stack = Thing(id="s", status="CREATE_FAILED", status_reason="no valid host", outputs=[])
    orchestration = Thing(create_stack=lambda **values: stack, get_stack=lambda _: stack)
    with pytest.raises(NotHealthy, match="the stack is CREATE_FAILED: no valid host"):
        list(heat.check(Context(two_node, None, Thing(orchestration=orchestration))))


def test_the_stack_is_made_of_our_template(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    output = {"output_key": "address", "output_value": "203.0.113.9"}
    stack = Thing(id="s", status="CREATE_COMPLETE", outputs=[output])

    def create(**values: Any) -> Thing:
        made.append(values)
        return stack

    orchestration = Thing(
        create_stack=create,
        get_stack=lambda _: stack,
        delete_stack=lambda _: None,
        wait_for_delete=lambda _, wait: None,
    )
    monkeypatch.setattr(instances, "ping", lambda address: "answers" if address == "203.0.113.9" else "")
    rows = list(heat.check(Context(two_node, None, Thing(orchestration=orchestration))))
    assert [row.what for row in rows] == ["Heat stack", "Heat stack's server", "Heat stack deleted"]
    assert set(made[0]["parameters"]) == set(made[0]["template"]["parameters"])
    kinds = {resource["type"] for resource in made[0]["template"]["resources"].values()}
    assert {"OS::Neutron::Net", "OS::Nova::Server", "OS::Neutron::FloatingIP"} <= kinds


def test_no_measure(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    gnocchi = Thing(get=lambda path, raise_exc: Thing(ok=False))
    monkeypatch.setattr(telemetry, "_service", lambda connection, kind: gnocchi)
    context = Context(two_node, None, None, {"provider": Thing(id="1", name="web")})
    with pytest.raises(NotHealthy, match="Gnocchi has no cpu of web within 240 s"):
        list(telemetry.check(context))


@pytest.mark.parametrize(
    ("services", "message"),
    [([], "none has registered"), ([{"host": "controller", "state": "down"}], "not up: controller")],
)
def test_magnum(services: list[Any], message: str, two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Thing(get=lambda path: Thing(json=lambda: {"mservices": services}))
    monkeypatch.setattr(magnum, "_magnum", lambda connection: found)
    with pytest.raises(NotHealthy, match=message):
        list(magnum.check(Context(two_node, None, None)))
