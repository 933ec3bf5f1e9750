"""The network namespace of a lab: its commands word for word, and who may enter it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stacklab import namespace
from stacklab.base import Golden
from stacklab.errors import LabError
from stacklab.plan import Plan
from stacklab.providers import lxc
from stacklab.run import Result

IP = "ip -n stacklab-two-node"
MADE = f"""ip netns add stacklab-two-node
{IP} link set lo up
{IP} link add br-mgmt type bridge
{IP} address add 10.0.0.1/24 dev br-mgmt
{IP} link set br-mgmt up
{IP} link add br-provider type bridge
{IP} address add 203.0.113.1/24 dev br-provider
{IP} link set br-provider up
{IP} link add br-tunnel type bridge
{IP} link set br-tunnel up"""
CHECKSUMS = "nsenter --net=/run/netns/stacklab-two-node ethtool -K br-provider tx off"


@pytest.mark.parametrize(("datapath", "expected"), [("system", MADE), ("netdev", f"{MADE}\n{CHECKSUMS}")])
def test_commands(datapath: str, expected: str, make_plan: Callable[..., Plan]) -> None:
    assert (
        "\n".join(" ".join(words) for words in namespace.commands(make_plan(datapath=datapath))) == expected
    )


def test_a_gateway_of_its_own_answers_too(make_plan: Callable[..., Plan]) -> None:
    made = namespace.commands(make_plan("vmware-notes"))
    addresses = [words[5] for words in made if words[3:5] == ["address", "add"]]
    assert addresses == ["10.0.0.1/24", "10.0.0.2/24", "203.0.113.1/24"]


class Ip:
    """Stands in for `run`: writes the commands down, and lists the links that a test wants."""

    def __init__(self, links: str = "", code: int = 0) -> None:
        self.asked: list[str] = []
        self.links = Result(code, links)

    def __call__(self, argv: Sequence[str], **_: Any) -> Result:
        self.asked.append(" ".join(argv))
        return self.links if argv[-1] == "link" else Result(0, "")


WHOLE = "".join(f"{i}: {name}: <UP>\n" for i, name in enumerate(("lo", *namespace.BRIDGES), 1))


def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ip: Ip, *, there: bool) -> None:
    place = tmp_path / "netns"
    if there:
        place.touch()
    monkeypatch.setattr(namespace, "path", lambda plan: place)
    monkeypatch.setattr(namespace, "run", ip)


@pytest.mark.parametrize(
    ("owner", "own", "foreign"),
    [
        ("", True, False),  # made before owners were noted
        ("", False, True),
        ("mine", True, False),
        ("mine", False, True),  # a ruin of one
        ("theirs", True, True),  # after a reboot they were the first
        ("theirs", False, True),
        ("moved away", True, False),
    ],
)
def test_whose_it_is(
    owner: str, own: bool, foreign: bool, two_node: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").mkdir()
    places = {"mine": two_node.directory, "theirs": tmp_path / "theirs", "moved away": tmp_path / "gone"}
    machine(monkeypatch, tmp_path, Ip(), there=False)
    assert not namespace.is_foreign(two_node)
    if owner:
        maker = SimpleNamespace(
            namespace=two_node.namespace, directory=places[owner], topology=two_node.topology
        )
        monkeypatch.setattr(namespace, "commands", lambda plan: [])
        namespace.create(maker, tmp_path / "log")  # type: ignore[arg-type]
    if own:
        two_node.directory.mkdir(parents=True)
    machine(monkeypatch, tmp_path, Ip(), there=True)
    assert namespace.is_foreign(two_node) is foreign
    if foreign:
        with pytest.raises(LabError, match=r"netns belongs to a lab two-node of another checkout"):
            namespace.refuse_foreign(two_node)
    namespace.delete(two_node)
    assert namespace.is_foreign(two_node) is not own, "the owner went with it"


def test_create_on_a_machine_without_it(
    two_node: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ip = Ip()
    machine(monkeypatch, tmp_path, ip, there=False)
    namespace.create(two_node, tmp_path / "log")
    assert ip.asked == [" ".join(words) for words in namespace.commands(two_node)]


def test_create_leaves_a_whole_one_alone(
    two_node: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ip = Ip(WHOLE)
    machine(monkeypatch, tmp_path, ip, there=True)
    namespace.create(two_node, tmp_path / "log")
    assert ip.asked == ["ip -n stacklab-two-node -o link"]


@pytest.mark.parametrize(
    ("links", "code"),
    [(WHOLE.replace("br-tunnel", "br-other"), 0), ("Cannot open network namespace", 1)],
    ids=["a bridge is missing", "only a file"],
)
def test_create_makes_half_a_one_anew(
    links: str, code: int, two_node: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ip = Ip(links, code)
    machine(monkeypatch, tmp_path, ip, there=True)
    namespace.create(two_node, tmp_path / "log")
    assert ip.asked[1:3] == ["ip netns delete stacklab-two-node", "ip netns add stacklab-two-node"]
    assert len(ip.asked) == 2 + len(namespace.commands(two_node))


@pytest.mark.parametrize(("code", "there"), [(0, True), (1, False)])
def test_the_file_of_one_is_none(
    code: int, there: bool, two_node: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path, Ip("lo", code), there=True)
    assert namespace.is_there(two_node) is there


def test_nothing_runs_where_only_the_file_is_left(
    two_node: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path, Ip("", 1), there=True)
    monkeypatch.setattr(lxc, "run", lambda *words, **options: pytest.fail("nobody can enter it"))
    (two_node.directory / "etc-lxc").mkdir(parents=True)
    lxc.Lxc(two_node, Golden("", "", tmp_path)).kill()


def test_delete_is_fine_twice(two_node: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ip = Ip()
    machine(monkeypatch, tmp_path, ip, there=False)
    namespace.delete(two_node)
    assert ip.asked == []


def test_only_the_main_thread_enters(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[BaseException] = []
    entered: list[int] = []
    monkeypatch.setattr(namespace, "_setns", entered.append)
    monkeypatch.setattr(namespace, "path", lambda plan: Path("/proc/self/ns/net"))

    def enter() -> None:
        try:
            with namespace.entered(two_node):
                pass
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert [str(error) for error in caught] == ["only the main thread enters a namespace"]
    assert entered == []
    enter()  # the main thread may
    assert len(entered) == 2


def test_the_way_back_is_taken_after_an_error(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []
    monkeypatch.setattr(namespace, "_setns", entered.append)
    monkeypatch.setattr(namespace, "path", lambda plan: Path("/proc/self/ns/net"))
    with pytest.raises(KeyError), namespace.entered(two_node):
        assert len(entered) == 1
        raise KeyError
    assert len(entered) == 2 and entered[0] != entered[1]


def test_there_is_no_namespace(two_node: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "path", lambda plan: tmp_path / "none")
    with pytest.raises(LabError) as caught, namespace.entered(two_node):
        pass
    assert caught.value.message == "the lab two-node has no network namespace"
    assert caught.value.hint == "run `invoke up`"
