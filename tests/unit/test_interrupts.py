"""Ctrl-C and what is like it: real signals to a real process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from invoke import Context, Exit

from stacklab import files, interrupts, lab, remote, report, stages, timeline, ui
from stacklab.errors import Interrupted
from stacklab.plan import Plan
from stacklab.run import Result, run
from stacklab.snapshots import Snapshot
from stacklab.stages import NAMES, Progress
from stacklab.tasks.common import edge


def saved(plan: Plan, *names: str, of: str = "") -> None:
    """Snapshots, with the records of their stages; `of` is another plan of that lab."""
    for number, name in enumerate(names):
        stage = name if name in NAMES else "cloud"
        one = Snapshot(name, stage, f"{stage}{of}", number, {})
        files.write_json(plan.directory / "snapshots" / f"{name}.json", one.__dict__)
        before = "" if stage == "nodes" else NAMES[NAMES.index(stage) - 1]
        record = {"stage": stage, "previous": before and f"{before}{of}", "inputs": {}}
        files.write_json(plan.directory / "stages" / f"{one.key}.json", record)


def interrupted(plan: Plan) -> Interrupted:
    with pytest.raises(Interrupted) as caught, interrupts.explained(plan):
        raise KeyboardInterrupt
    assert caught.value.exit_code == 130
    return caught.value


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_is_kept_and_what_goes_on(two_node: Plan) -> None:
    saved(two_node, "nodes", "openstack", "mine")
    stages.set_progress(two_node, Progress("cloud", "cloud", working="images"))
    error = interrupted(two_node)
    assert error.message == (
        "interrupted in the middle of the stage images; kept: the snapshots nodes, openstack, mine"
    )
    assert error.hint.startswith(f"`invoke up --topology {two_node.topology.file} --lab two-node` goes on ")
    assert "after the stage cloud; " in error.hint  # the stage of the snapshot "mine"
    assert "`invoke down --lab two-node`" in error.hint


def test_snapshots_of_what_the_lab_was_before_are_not_gone_on_from(two_node: Plan) -> None:
    saved(two_node, "nodes", "openstack")
    saved(two_node, "cloud", "verified", of=" with Horizon")
    stages.set_progress(two_node, Progress("openstack", "openstack", working="cloud"))
    assert "after the stage openstack; " in interrupted(two_node).hint
    stages.set_progress(two_node, Progress(working="restore of nodes"))
    assert "goes on from the deepest of them that fits; " in interrupted(two_node).hint


def test_before_there_is_anything(two_node: Plan) -> None:
    error = interrupted(two_node)
    assert error.message == "interrupted before the first stage; kept: no snapshot yet"
    assert "starts with the nodes" in error.hint


def test_in_the_middle_of_a_restore(two_node: Plan) -> None:
    saved(two_node, "nodes")
    stages.set_progress(two_node, Progress(working="restore of nodes"))
    assert interrupted(two_node).message.startswith("interrupted in the middle of the restore of nodes; ")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """As in a terminal: in the background of a shell SIGINT is not heeded, under nohup SIGHUP is not."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nohup_is_respected(two_node: Plan) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with lab.locked(two_node, "up", anew=True):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_runs_and_is_explained(number: signal.Signals, two_node: Plan) -> None:
    pids: list[int] = []

    def send(line: str) -> None:
        pids.append(int(line))
        os.kill(os.getpid(), number)

    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)]
    start = time.monotonic()
    with pytest.raises(Interrupted), lab.locked(two_node, "up", anew=True), ui.step("a long one"):
        run(["sh", "-c", "sleep 60 & echo $!; wait"], each_line=send)
    assert time.monotonic() - start < 25
    end = time.monotonic() + 20
    while runs(pids[0]):
        assert time.monotonic() < end, "what it had started still runs"
        time.sleep(0.01)
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)] == handlers
    assert not lab.is_busy(two_node.lab)
    (events,) = timeline.read(two_node.directory / timeline.FILE)
    assert report.run_of(events).result == "interrupted"


def test_the_lab_is_busy_meanwhile(two_node: Plan) -> None:
    with lab.locked(two_node, "up", anew=True):
        assert lab.is_busy(two_node.lab)
    assert not lab.is_busy(two_node.lab)


@pytest.mark.usefixtures("ctrl_c")
def test_nobody_waits_for_ssh_after_an_interrupt(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def never(*args: object, **kwargs: object) -> Result:
        calls.append(1)
        return Result(255, "")

    monkeypatch.setattr(remote, "ssh", never)
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        remote.wait_for_ssh(two_node, deadline=60)
    assert time.monotonic() - start < 25
    assert calls


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_any_task_ends_in_order(number: signal.Signals) -> None:
    tidied = []

    @edge
    def task(c: Context) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            tidied.append(number)

    before = signal.getsignal(number)
    with pytest.raises(Exit) as raised:
        task(Context())
    assert raised.value.code == 130 and "interrupted" in raised.value.message
    assert tidied == [number] and signal.getsignal(number) == before
