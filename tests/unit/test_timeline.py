"""The timeline and the report made of it: real files, real pages."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from html.parser import HTMLParser

import pytest

from stacklab import files, redact, report, timeline, ui
from stacklab.errors import LabError
from stacklab.plan import Plan
from stacklab.timeline import Recorder


def runs(plan: Plan) -> list[report.Run]:
    return [report.run_of(events) for events in timeline.read(plan.directory / timeline.FILE)]


def test_a_run_is_told_as_it_was(two_node: Plan) -> None:
    with timeline.recorded(two_node, "up"):
        timeline.reused("golden image", "debian-12-lxc-1", "the cache")
        with ui.step("stage cloud", stage="cloud"):
            with ui.step("flavors"):
                ui.say("five of them")
            ui.took("the network manifest", 12.0)
        ui.table("Verified", ("what", "after"), [("ping", "1 s")])
    (run,) = runs(two_node)
    assert (run.command, run.result, run.error) == ("up", "done", "")
    assert [(s.title, s.depth, s.stage, s.failed) for s in run.spans] == [
        ("stage cloud", 0, "cloud", False),
        ("flavors", 1, "", False),
        ("the network manifest", 1, "", False),
    ]
    assert all(s.end is not None and s.end >= s.start for s in run.spans)
    manifest = run.spans[2]
    assert manifest.end is not None and manifest.end - manifest.start == pytest.approx(12.0)
    assert run.spans[1].notes == ["five of them"]
    assert [(r["what"], r["name"], r["how"]) for r in run.reused] == [
        ("golden image", "debian-12-lxc-1", "the cache")
    ]
    assert run.tables[0]["rows"] == [["ping", "1 s"]]
    assert run.lab["nodes"][0][:3] == ["controller.lab.test", "controller, network", "10.0.0.11"]


def test_how_a_run_failed(two_node: Plan) -> None:
    with pytest.raises(LabError), timeline.recorded(two_node, "up"), ui.step("stage cloud", stage="cloud"):
        raise LabError("no router", hint="look at neutron")
    with pytest.raises(ZeroDivisionError), timeline.recorded(two_node, "up"):
        raise ZeroDivisionError("a bug")
    with pytest.raises(KeyboardInterrupt), timeline.recorded(two_node, "reset"):
        raise KeyboardInterrupt
    failed, bug, stopped = runs(two_node)
    assert (failed.result, failed.error, failed.hint) == ("failed", "no router", "look at neutron")
    assert failed.spans[0].failed
    assert (bug.result, bug.error) == ("failed", "ZeroDivisionError: a bug")
    assert stopped.result == "interrupted"


def test_nobody_is_told_after_the_run(two_node: Plan) -> None:
    with timeline.recorded(two_node, "up"):
        pass
    size = (two_node.directory / timeline.FILE).stat().st_size
    with ui.step("something else"):
        ui.say("of nobody's concern")
    timeline.reused("stage", "nodes", "nowhere")
    assert (two_node.directory / timeline.FILE).stat().st_size == size


def test_secrets_are_in_no_event(two_node: Plan) -> None:
    redact.add(["s3cr3t-of-the-lab"])
    with pytest.raises(LabError), timeline.recorded(two_node, "up s3cr3t-of-the-lab"):
        timeline.reused("s3cr3t-of-the-lab", "s3cr3t-of-the-lab", "s3cr3t-of-the-lab")
        with ui.step("step s3cr3t-of-the-lab"):
            ui.say("said s3cr3t-of-the-lab")
        ui.took("took s3cr3t-of-the-lab", 1)
        ui.table("t", ("c s3cr3t-of-the-lab",), [("r s3cr3t-of-the-lab",)])
        raise LabError("error s3cr3t-of-the-lab", hint="hint s3cr3t-of-the-lab")
    path = two_node.directory / timeline.FILE
    text = path.read_text()
    assert "s3cr3t" not in text
    assert text.count("********") == 11
    assert path.stat().st_mode & 0o777 == 0o600
    assert two_node.directory.stat().st_mode & 0o777 == 0o700


def test_a_torn_line_costs_nothing_but_itself(two_node: Plan) -> None:
    with timeline.recorded(two_node, "up"), ui.step("one"):
        pass
    with (two_node.directory / timeline.FILE).open("ab") as handle:
        handle.write(b'{"event": "begin", "tit')  # a power cut
    with timeline.recorded(two_node, "reset"), ui.step("two"):
        pass
    with (two_node.directory / timeline.FILE).open("ab") as handle:
        handle.write(b'\xff\xfe\n[1]\n"text"\n{"no": "event"}\n')
    first, second = runs(two_node)
    assert [span.title for span in first.spans] == ["one"]
    assert (second.command, second.result) == ("reset", "done")


def test_a_full_disk_stops_no_command_and_hides_no_error(two_node: Plan) -> None:
    two_node.directory.mkdir(parents=True)
    (two_node.directory / timeline.FILE).symlink_to("/dev/full")
    with timeline.recorded(two_node, "snapshots.delete mine"), ui.step("deleting"):
        pass
    with pytest.raises(LabError, match="no"), timeline.recorded(two_node, "up"):
        raise LabError("no")


def test_what_was_there_before_a_kill_is_whole(two_node: Plan) -> None:
    program = """
        import os, signal, sys
        from pathlib import Path
        from stacklab import files, ui
        from stacklab.timeline import Recorder
        recorder = Recorder(Path(sys.argv[1]))
        recorder.event("run", command="up", pid=1, lab={"name": "x", "nodes": []}, versions={})
        with ui.watched(recorder), ui.step("stage openstack", stage="openstack"), ui.step("the manifest"):
            ui.say("half way")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    path = two_node.directory / timeline.FILE
    argv = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    done = subprocess.run(argv, cwd=files.PROJECT, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (run,) = runs(two_node)
    assert run.result == ""
    assert [(span.title, span.end) for span in run.spans] == [
        ("stage openstack", None),
        ("the manifest", None),
    ]
    page = page_of(two_node)
    assert "cut off" in page
    assert "in the middle of “the manifest”" in page


def test_a_long_file_keeps_its_newest_runs(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "KEPT_RUNS", 2)
    for number in range(5):
        with timeline.recorded(two_node, f"run {number}"):
            pass
    assert len(runs(two_node)) == 5
    monkeypatch.setattr(timeline, "LIMIT", 100)
    with timeline.recorded(two_node, "run 5"):
        pass
    assert [run.command for run in runs(two_node)] == ["run 3", "run 4", "run 5"]
    assert (two_node.directory / timeline.FILE).stat().st_mode & 0o777 == 0o600


def test_lines_of_several_threads_stay_lines(two_node: Plan) -> None:
    from concurrent.futures import ThreadPoolExecutor

    recorder = Recorder(two_node.directory / timeline.FILE)
    recorder.event("run", command="up", pid=1, lab={}, versions={})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: recorder.said(f"{n} " + "x" * 5000), range(200)))
    recorder.close()
    (events,) = timeline.read(two_node.directory / timeline.FILE)
    assert len(events) == 201


# -- the page ----------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that every element is closed, and gathers what would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.classes: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "action"):
                self.links.append(value or "")
            if name == "class":
                self.classes.append(value or "")
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(plan: Plan, running: bool = False, target: str = "report.html") -> str:
    report.write(plan.directory, plan.directory / target, running=running)
    return (plan.directory / target).read_text()


def test_the_page_needs_nothing_else(two_node: Plan) -> None:
    with timeline.recorded(two_node, "up"), ui.step("stage nodes", stage="nodes"):
        pass
    text = page_of(two_node)
    page = Page(text)
    assert page.links == []
    assert not re.search(r"url\(|@import|<script|https?://", text)
    assert "default-src 'none'" in text


def test_the_page_of_a_failed_run(two_node: Plan) -> None:
    timeline_of_a_failure(two_node)
    text = page_of(two_node)
    page = Page(text)
    assert "Packstack failed: &lt;no&gt; &amp; why" in text and "hint" in text
    strip = re.findall(r'<div class="(\w+)"><b>(\w+)</b><span>([^<]*)</span>', text)
    assert [(state, name) for state, name, _ in strip] == [
        ("reused", "nodes"),
        ("failed", "openstack"),
        ("none", "cloud"),
        ("none", "images"),
        ("none", "verified"),
    ]
    assert strip[0][2] == "snapshot nodes"
    assert page.classes.count("bar failed") == 2  # the stage and the step in it
    assert page.classes.count("bar done") == 1


def timeline_of_a_failure(plan: Plan) -> None:
    with pytest.raises(LabError), timeline.recorded(plan, "up"):
        timeline.reused("stage", "nodes", "snapshot nodes")
        with ui.step("stage openstack", stage="openstack"):
            ui.took("the controller manifest", 0.1)
            with ui.step("the <network> manifest"):
                raise LabError("Packstack failed: <no> & why", hint="look there")


def test_every_bar_lies_on_the_scale(two_node: Plan) -> None:
    timeline_of_a_failure(two_node)
    places = re.findall(r"left:(-?[\d.]+)%;width:(-?[\d.]+)%", page_of(two_node))
    assert len(places) == 3
    for left, width in places:
        assert float(width) >= 0
        assert float(left) + float(width) <= 100.01


def test_a_run_without_an_end_is_running_or_cut_off(two_node: Plan) -> None:
    recorder = Recorder(two_node.directory / timeline.FILE)
    recorder.event("run", command="up", pid=os.getpid(), lab={"name": "x", "nodes": []}, versions={})
    recorder.begin("stage cloud", "cloud")
    recorder.close()
    assert ">running<" in page_of(two_node, running=True)
    assert ">cut off<" in page_of(two_node, running=False)


def test_earlier_runs_and_versions(two_node: Plan) -> None:
    for command in ("up", "reset", "verify"):
        with timeline.recorded(two_node, command):
            pass
    golden = two_node.directory / "golden"
    files.write(
        golden / "packages.txt", "acl 2.3 amd64\nnova-api 2:26.1.1 all\nneutron-server 2:21.0.0 all\n"
    )
    files.write_json(
        two_node.directory / "golden.json", {"name": "debian-12-lxc-1", "directory": str(golden)}
    )
    text = page_of(two_node)
    Page(text)
    assert re.findall(r"<b>(up|reset|verify)</b>", text) == ["verify", "reset", "up"]
    assert text.index(">verify<") < text.index("Other runs") < text.index(">reset<")
    assert "<td>nova-api (golden image)</td><td>2:26.1.1</td>" in text
    assert "acl" not in text
    assert json.dumps(files.PROJECT.name) not in text


def test_a_lab_where_nothing_was_run(two_node: Plan) -> None:
    two_node.directory.mkdir(parents=True)
    text = page_of(two_node)
    Page(text)
    assert "Nothing was run yet" in text


def test_the_run_that_made_stages_is_shown_beside_the_last(two_node: Plan) -> None:
    for number in range(2):
        with timeline.recorded(two_node, f"up {number}"), ui.step("stage cloud", stage="cloud"):
            pass
    with timeline.recorded(two_node, "reset"):
        timeline.reused("golden image", "debian-12-lxc-1", "the cache")
    text = page_of(two_node)
    Page(text)
    places = [text.index(words) for words in ("<b>reset<", "<b>up 1<", "Other runs", "<b>up 0<")]
    assert places == sorted(places)
    assert "golden image debian-12-lxc-1: from the cache" in text
