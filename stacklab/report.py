"""`invoke report`: one self-contained HTML page of what was done to a lab, made from its timeline."""

from __future__ import annotations

import html
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from stacklab import files, releases, timeline, ui

_TEMPLATE = releases.DATA / "report.html"
# What of a golden image's packages is worth a line.
_PACKAGES = (
    *("nova-api", "neutron-server", "keystone", "glance-api", "placement-api", "cinder-api", "swift-proxy"),
    *("heat-api", "openvswitch-switch", "mariadb-server", "rabbitmq-server", "libvirt-daemon-system"),
    *("openstack-nova-api", "openstack-neutron", "openstack-keystone", "openstack-glance", "openvswitch"),
)

SNAPSHOT_COLUMNS = ("snapshot", "stage", "key of the stage", "age", "size", "of it, its own")
_NODE_COLUMNS = ("node", "roles", "management", "cpus", "memory, MiB", "disk, GiB")


@dataclass
class Span:
    """One step: when it began and ended (seconds since the epoch; `end` is None where it was cut off)."""

    title: str
    depth: int
    start: float
    stage: str = ""
    end: float | None = None
    failed: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Run:
    """One command. `result` is done, failed, interrupted, or '' while there is no end of it."""

    command: str
    start: float
    end: float
    lab: dict[str, Any]
    versions: dict[str, str]
    result: str = ""
    error: str = ""
    hint: str = ""
    spans: list[Span] = field(default_factory=list)
    reused: list[dict[str, str]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)


def run_of(events: Sequence[dict[str, Any]]) -> Run:
    """The run that these events tell of, begun by its event `run`."""
    first, *rest = events
    run = Run(first["command"], first["time"], first["time"], first["lab"], first["versions"])
    open_spans: list[Span] = []
    top = Span("", 0, first["time"])  # lines before the first step
    for event in rest:
        run.end = max(run.end, event["time"])
        match event["event"]:
            case "begin":
                span = Span(event["title"], len(open_spans), event["time"], event["stage"])
                open_spans.append(span)
                run.spans.append(span)
            case "end" if open_spans:
                span = open_spans.pop()
                span.end, span.failed = event["time"], event["failed"]
            case "took":
                start = event["time"] - event["seconds"]
                run.spans.append(
                    Span(event["title"], len(open_spans), start, "", event["time"], event["failed"])
                )
            case "said":
                (open_spans[-1] if open_spans else top).notes.append(event["text"])
            case "reused":
                run.reused.append(event)
            case "table":
                run.tables.append(event)
            case "over":
                run.result = event["result"]
                run.error, run.hint = event.get("error", ""), event.get("hint", "")
    return run


def write(directory: Path, target: Path, *, running: bool, snapshots: Sequence[Sequence[str]] = ()) -> None:
    """Write the report of the lab in `directory` to `target`.

    `running` says that a command is at work on the lab now: the last run's end is then open.
    `snapshots` are rows of SNAPSHOT_COLUMNS.
    """
    runs = [run_of(events) for events in timeline.read(directory / timeline.FILE)]
    lab: dict[str, Any] = runs[-1].lab if runs else {"name": directory.name, "nodes": []}
    golden = files.read_json(directory / "golden.json") or {}
    newest = runs[-1] if runs else None
    # After a reset or a verify it is the last run that made stages which tells most.
    making = next((run for run in reversed(runs) if any(span.stage for span in run.spans)), newest)
    shown = [run for run in dict.fromkeys((newest, making)) if run]
    parts = [_run(run, running and run is newest) for run in shown] or ["<p>Nothing was run yet.</p>"]
    if snapshots:
        parts.append(_section("Snapshots", _table(SNAPSHOT_COLUMNS, snapshots)))
    if lab["nodes"]:
        parts.append(_section("Nodes", _table(_NODE_COLUMNS, lab["nodes"])))
    if earlier := [run for run in reversed(runs) if run not in shown]:
        parts.append(_section("Other runs", "".join(map(_folded, earlier))))
    parts.append(_section("Versions", _table(("what", "version"), _versions(newest, golden))))
    template = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
    page = template.substitute(
        title=_escaped(f"Lab {lab['name']}"),
        facts=_facts(lab, golden),
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        body="\n".join(parts),
    )
    files.write(target, page)


def _facts(lab: dict[str, Any], golden: dict[str, Any]) -> str:
    found = [
        ("topology", lab.get("topology")),
        ("provider", lab.get("provider")),
        ("distribution", lab.get("distribution")),
        ("OpenStack", lab.get("release")),
        ("Packstack", lab.get("packstack")),
        ("golden image", golden.get("name")),
    ]
    return "".join(
        f"<span><b>{name}</b> {_escaped(str(value))}</span>" for name, value in found if value is not None
    )


def _versions(run: Run | None, golden: dict[str, Any]) -> list[tuple[str, str]]:
    rows = list(run.versions.items()) if run else []
    manifest = Path(golden.get("directory", "")) / "packages.txt"
    if golden and manifest.is_file():
        for line in manifest.read_text(encoding="utf-8", errors="replace").splitlines():
            name, version, *_ = [*line.split(), "", ""]
            if name in _PACKAGES:
                rows.append((f"{name} (golden image)", version))
    return rows


# -- one run -----------------------------------------------------------------------------


def _run(run: Run, running: bool) -> str:
    return f'<section class="run"><h2>{_head(run, running)}</h2>{_body(run, running)}</section>'


def _folded(run: Run) -> str:
    return f'<details class="run"><summary>{_head(run, False)}</summary>{_body(run, False)}</details>'


def _head(run: Run, running: bool) -> str:
    state, text = _state(run, running)
    when = f"{datetime.fromtimestamp(run.start):%Y-%m-%d %H:%M:%S}"
    return (
        f'<span class="badge {state}">{text}</span> <b>{_escaped(run.command)}</b> '
        f'<span class="dim">{when}, {ui.duration(run.end - run.start)}</span>'
    )


def _body(run: Run, running: bool) -> str:
    tables = "".join(
        f"<h3>{_escaped(table['title'])}</h3>" + _table(table["columns"], table["rows"])
        for table in run.tables
    )
    return _error(run, running) + _strip(run) + _bars(run) + _reused(run) + tables


def _state(run: Run, running: bool) -> tuple[str, str]:
    if not run.result:
        return ("open", "running") if running else ("failed", "cut off")
    return run.result, run.result


def _error(run: Run, running: bool) -> str:
    if run.error:
        hint = f'<p class="hint">{_escaped(run.hint)}</p>' if run.hint else ""
        return f'<div class="error"><pre>{_escaped(run.error)}</pre>{hint}</div>'
    if not run.result and not running:
        last = next((span.title for span in reversed(run.spans) if span.end is None), "its beginning")
        words = f"The process was killed, or the machine stopped, in the middle of “{_escaped(last)}”."
        then = "The next <code>up</code> goes on from the last whole state."
        return f'<div class="error"><p>{words} {then}</p></div>'
    if run.result == "interrupted":
        return '<div class="error"><p>Stopped by Ctrl-C.</p></div>'
    return ""


def _strip(run: Run) -> str:
    """The stages side by side: what was made, what was there already, what failed, what was not reached."""
    made = {span.stage: span for span in run.spans if span.stage}
    had = {event["name"]: event["how"] for event in run.reused if event["what"] == "stage"}
    if not made and not had:
        return ""
    boxes = []
    # Not from `stages`: an old timeline may tell of stages that there are no more.
    names = list(dict.fromkeys([*had, *made, *("nodes", "openstack", "cloud", "images", "verified")]))
    for name in names:
        if name in made:
            span = made[name]
            state = "open" if span.end is None else "failed" if span.failed else "done"
            text = ui.duration((span.end or run.end) - span.start)
        else:
            state, text = ("reused", had[name]) if name in had else ("none", "not reached")
        boxes.append(f'<div class="{state}"><b>{_escaped(name)}</b><span>{_escaped(text)}</span></div>')
    return f'<div class="strip">{"".join(boxes)}</div>'


def _bars(run: Run) -> str:
    """Every step as a bar on the run's own scale."""
    total = max(run.end - run.start, 0.001)
    rows = []
    for span in sorted(run.spans, key=lambda span: (span.start, span.depth)):
        end = run.end if span.end is None else span.end
        left, width = 100 * (span.start - run.start) / total, 100 * (end - span.start) / total
        state = "open" if span.end is None else "failed" if span.failed else "stage" if span.stage else "done"
        notes = "".join(f"<li>{_escaped(note)}</li>" for note in span.notes)
        rows.append(
            f'<div class="row depth{min(span.depth, 4)}"><div class="name" title="{_escaped(span.title)}">'
            f'{_escaped(span.title)}</div><div class="track">'
            f'<div class="bar {state}" style="left:{left:.2f}%;width:{width:.2f}%"></div></div>'
            f'<div class="took">{ui.duration(end - span.start)}</div></div>'
            + (f'<ul class="notes depth{min(span.depth, 4)}">{notes}</ul>' if notes else "")
        )
    if not rows:
        return ""
    return f'<div class="bars">{_scale(total)}{"".join(rows)}</div>'


def _scale(total: float) -> str:
    """Marks at round times, at most eight of them."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600)
    step = next((step for step in steps if total / step <= 8), 7200)
    marks = "".join(
        f'<span style="left:{100 * at / total:.2f}%">{_mark(at)}</span>'
        for at in range(0, int(total * 0.96) + 1, step)
    )
    return f'<div class="row scale"><div></div><div class="track">{marks}</div><div></div></div>'


def _mark(seconds: int) -> str:
    return f"{seconds} s" if seconds < 60 else f"{seconds // 60}:{seconds % 60:02d}"


def _reused(run: Run) -> str:
    """What else was there already; of the stages the strip tells."""
    found = [event for event in run.reused if event["what"] != "stage"]
    return "".join(
        '<p class="dim">' + _escaped(f"{event['what']} {event['name']}: from {event['how']}") + "</p>"
        for event in found
    )


# -- pieces ------------------------------------------------------------------------------


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_escaped(title)}</h2>{body}</section>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{_escaped(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_escaped(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _escaped(text: str) -> str:
    return html.escape(text)
