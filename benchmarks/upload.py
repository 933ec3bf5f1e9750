"""Uploads measured: stacklab against the OpenStack client and openstacksdk, in one run, on one Glance.

    python -m benchmarks.upload [--scale 1.0] [--rounds 3] [--only 4|1]

A real Keystone and Glance run on this machine (as in tests/integration). Every client is a process of
its own, started as a user starts it; wall time, CPU time and peak memory are its process's, from the
kernel. The rounds alternate between the clients; the figures are medians.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from stacklab import files, ui
from tests.integration.openstack_services import Running, prepared

CLIENTS = ("python-openstackclient>=7,<11", "openstacksdk>=4,<5")
MIB = 1 << 20
ROOT = Path(__file__).resolve().parent.parent

# What `invoke images.upload` does: all of its tasks, the same imports, the same calls.
OURS = """
from invoke import task
import tasks  # the project's own, which Invoke would load

@task
def upload(c, files, foreign=False, again=False):
    import json, time
    from pathlib import Path
    from stacklab import catalogue, clouds, guestbuild, guests, images
    from stacklab import upload as uploads
    if not foreign:
        # Whether it was built already; what it was built of is digested for that.
        guestbuild.find(*catalogue.named(catalogue.load(), ["debian-12"]))
    jobs = []
    for path in map(Path, files.split(",")):
        if foreign:
            image = uploads.foreign(path, disk_format="raw")
        else:
            known = json.loads(path.with_suffix(".json").read_text())
            image = guests.GuestImage(path.stem, path, "raw", known["sha512"], known["size"], 0, 0)
        jobs.append(uploads.Job(image))
    adapter = clouds.adapter("bench")
    uploads.images(adapter, jobs)
    if again:
        start = time.monotonic()
        uploads.images(adapter, jobs)
        print(time.monotonic() - start)
"""
SDK = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import openstack
at_once, *names = sys.argv[1:]
cloud = openstack.connect(cloud="bench")
def send(name):
    cloud.create_image(Path(name).stem, filename=name, disk_format="raw", container_format="bare",
                       visibility="private", wait=True)
with ThreadPoolExecutor(int(at_once)) as pool:
    list(pool.map(send, names))
"""


@dataclass(frozen=True)
class Cost:
    """Of one client's process or processes: seconds, seconds, MiB."""

    wall: float
    cpu: float
    peak: float
    said: str = ""


# The kernel counts what a process was before exec as its peak too: so clients start from something small.
METER = """
import os, sys
out, *argv = sys.argv[1:]
child = os.posix_spawn(argv[0], argv, os.environ)
_, status, usage = os.wait4(child, 0)
open(out, "w").write(f"{usage.ru_utime + usage.ru_stime} {usage.ru_maxrss / 1024}")
sys.exit(os.waitstatus_to_exitcode(status) & 255)
"""


def measured(argvs: Sequence[Sequence[str | Path]], environment: dict[str, str], at_once: bool) -> Cost:
    """Run commands one after the other, or all at once; peak memory is of all that run at once."""
    start, cpu, peaks, said = time.monotonic(), 0.0, [], ""
    for group in [list(argvs)] if at_once else [[argv] for argv in argvs]:
        peak = 0.0
        with tempfile.TemporaryDirectory() as directory:
            meters = [Path(directory) / str(number) for number in range(len(group))]
            started = [
                subprocess.Popen(
                    [sys.executable, "-ISc", METER, meter, *map(str, argv)],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for meter, argv in zip(meters, group, strict=True)
            ]
            for meter, process in zip(meters, started, strict=True):
                said = process.communicate()[0]
                if process.returncode:
                    raise SystemExit(f"{process.args!r}: {said[-2000:]}")
                seconds, size = map(float, meter.read_text().split())
                cpu, peak = cpu + seconds, peak + size
        peaks.append(peak)
    return Cost(time.monotonic() - start, cpu, max(peaks), said)


class Bench:
    """The commands of all clients, for one set of files."""

    def __init__(self, work: Path, running: Running, paths: Sequence[Path]) -> None:
        self.work, self.running, self.paths = work, running, list(paths)
        self.adapter = running.ports.adapter()
        self.client = _client_venv()
        (work / "clouds.yaml").write_text(json.dumps({"clouds": {"bench": running.ports.cloud()}}))
        (work / "bench.py").write_text(OURS)
        self.environment = {
            # All clients run from bytecode, as a user's do; only pip writes it where Python may not.
            **{key: value for key, value in os.environ.items() if not key.startswith(("OS_", "PYTHONDONT"))},
            "OS_CLIENT_CONFIG_FILE": str(work / "clouds.yaml"),
            "PYTHONPATH": str(ROOT),
        }
        self.cached = {**self.environment, "XDG_CACHE_HOME": str(work / "cache")}

    def ours(self, *flags: str) -> Cost:
        """stacklab, through Invoke."""
        # Not all of it: where plugins are found is kept there too, and stays for the others.
        shutil.rmtree(self.work / "cache" / "stacklab", ignore_errors=True)
        argv: list[str | Path] = [
            sys.executable,
            "-m",
            "invoke",
            "--search-root",
            self.work,
            "--collection",
            "bench",
            "upload",
            *flags,
        ]
        return measured([[*argv, "--files", ",".join(map(str, self.paths))]], self.cached, False)

    def client_command(self, at_once: bool = False) -> Cost:
        """`openstack image create`, a process for each image."""
        openstack: list[str | Path] = [
            self.client / "bin" / "openstack",
            "--os-cloud",
            "bench",
            "image",
            "create",
            "--private",
        ]
        argvs: list[list[str | Path]] = [
            [*openstack, "--disk-format", "raw", "--container-format", "bare", "--file", path, path.stem]
            for path in self.paths
        ]
        return measured(argvs, self.environment, at_once)

    def sdk(self, at_once: int = 1) -> Cost:
        """openstacksdk's create_image, all images in one process."""
        argv: list[str | Path] = [self.client / "bin" / "python", "-c", SDK, str(at_once), *self.paths]
        return measured([argv], self.environment, False)

    def empty(self) -> None:
        """Delete all images; what was written is on disk before the next one is measured."""
        for row in self.adapter.get("/v2/images").json()["images"]:
            self.adapter.delete(f"/v2/images/{row['id']}")
        os.sync()
        time.sleep(1)


def _client_venv() -> Path:
    home = files.cache_dir() / f"bench-clients-{files.digest(CLIENTS, sys.version)[:12]}"
    if not (home / "whole").is_file():
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([home / "bin" / "pip", "install", "-q", *CLIENTS], check=True)
        (home / "whole").touch()
    return home


def _files(work: Path, count: int, size: int) -> list[Path]:
    """Files of random bytes, and what a build would have written beside them."""
    found = []
    for number in range(count):
        path = work / f"image-{count}-{number}.raw"
        with path.open("wb") as handle:
            for _ in range(size // MIB):
                handle.write(os.urandom(MIB))
        os.utime(path, (0, 0))
        sha512 = hashlib.file_digest(path.open("rb"), "sha512").hexdigest()
        path.with_suffix(".json").write_text(json.dumps({"sha512": sha512, "size": path.stat().st_size}))
        found.append(path)
    return found


def _median(costs: Sequence[Cost]) -> Cost:
    def middle(name: str) -> float:
        return float(statistics.median(getattr(cost, name) for cost in costs))

    return Cost(middle("wall"), middle("cpu"), middle("peak"))


def _compare(
    title: str, clients: dict[str, Callable[[], Cost]], rounds: int, empty: Callable[[], None]
) -> None:
    found: dict[str, list[Cost]] = {name: [] for name in clients}
    for _ in range(rounds):
        for name, client in clients.items():
            empty()
            found[name].append(client())
    medians = {name: _median(costs) for name, costs in found.items()}
    fastest = min(cost.wall for name, cost in medians.items() if not name.startswith("stacklab"))
    reference = medians["openstack image create"]
    rows = [
        (
            name,
            f"{cost.wall:.2f}",
            f"{cost.wall / fastest:.2f}",
            f"{cost.cpu:.2f}",
            f"{cost.cpu / reference.cpu:.2f}",
            f"{cost.peak:.0f}",
            f"{cost.peak / reference.peak:.2f}",
        )
        for name, cost in medians.items()
    ]
    columns = ("client", "wall s", "x fastest other", "CPU s", "x openstack", "peak MiB", "x openstack")
    ui.table(title, columns, rows)


def _again(bench: Bench, rounds: int) -> None:
    """Uploading, then the identical image once more: in the same session, and as a process of its own."""
    first, session, process = [], [], []
    for _ in range(rounds):
        bench.empty()
        cost = bench.ours("--again")
        session.append(float(cost.said.split()[-1]))
        first.append(cost.wall - session[-1])
        process.append(bench.ours().wall)
    wall = statistics.median(first)
    rows = [
        (what, f"{statistics.median(taken):.3f}", f"{wall / statistics.median(taken):.0f}")
        for what, taken in (
            ("upload", first),
            ("identical, same session", session),
            ("identical, new process and login", process),
        )
    ]
    ui.table("Identical re-upload of the single image", ("what", "wall s", "times faster"), rows)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description="Uploads: stacklab, the OpenStack client, openstacksdk.")
    parser.add_argument("--scale", type=float, default=1.0, help="1: 1 GiB and 4 x 256 MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("4", "1"), default="", help="only four images, or only one")
    options = parser.parse_args()
    whole = max(4, int(1024 * options.scale)) * MIB
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stacklab-bench-")))
        venv, template = prepared()
        shutil.copytree(template, work / "openstack")
        running = stack.enter_context(Running(venv, work / "openstack", image_size_cap=1 << 40, quota=0))
        if options.only != "1":
            _four(Bench(work, running, _files(work, 4, whole // 4)), whole, options.rounds)
        if options.only != "4":
            _one(Bench(work, running, _files(work, 1, whole)), whole, options.rounds)


def _four(bench: Bench, whole: int, rounds: int) -> None:
    clients: dict[str, Callable[[], Cost]] = {
        "stacklab, own images": bench.ours,
        "stacklab, foreign files": lambda: bench.ours("--foreign"),
        "openstack image create": bench.client_command,
        "openstack, 4 processes": lambda: bench.client_command(at_once=True),
        "openstacksdk": bench.sdk,
        "openstacksdk, 4 threads": lambda: bench.sdk(4),
    }
    _compare(f"4 x {whole // 4 // MIB} MiB", clients, rounds, bench.empty)
    for path in bench.paths:
        path.unlink()


def _one(bench: Bench, whole: int, rounds: int) -> None:
    clients: dict[str, Callable[[], Cost]] = {
        "stacklab, own image": bench.ours,
        "stacklab, foreign file": lambda: bench.ours("--foreign"),
        "openstack image create": bench.client_command,
        "openstacksdk": bench.sdk,
    }
    _compare(f"1 x {whole // MIB} MiB", clients, rounds, bench.empty)
    _again(bench, rounds)


if __name__ == "__main__":
    main()
