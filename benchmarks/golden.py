"""Golden images: our build against plain disk-image-create with the same elements, and both unchanged.

    .venv/bin/python -m benchmarks.golden [--distribution rocky-9]

In one run, one after the other, with the same environment and a cache of the run's own. rocky-9
is built against the repositories of the integration tests, debian-12 from the host's mirror.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stacklab import base, dib, distributions, files, goldendib
from stacklab.base import Spec
from stacklab.run import run


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start = time.monotonic()
    action()
    return time.monotonic() - start


def plain(spec: Spec, place: Path) -> None:
    """disk-image-create as somebody would call it, in the same environment; it leaves a qcow2."""
    work = Path(tempfile.mkdtemp(dir=place))
    argv = dib.argv(spec.elements, "qcow2", work / "image")
    argv[argv.index("-t") : argv.index("-t")] = ["--qemu-img-options", "compression_type=zstd"]
    run(argv, log=work / "log", env=goldendib.environment(spec, work, work / "log"), timeout=3600)
    dib.remove_tree(work)


@contextmanager
def sources(name: str, place: Path) -> Iterator[Spec]:
    """What to build, with its repositories served."""
    if name != "rocky-9":
        yield base.spec(name, "libvirt")
        return
    from tests.integration import elfixture

    with elfixture.serving(place / "fixture") as (fixture, server):
        os.environ.update(fixture.environment())
        own = elfixture.row(server)
        distributions.distribution = lambda name: own
        yield base.spec(name, "libvirt", mirror=elfixture.mirror(server))


def main() -> int:
    """Print one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--distribution", default="rocky-9")
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=files.cache_dir()) as directory:
        place = Path(directory)
        with sources(asked.distribution, place) as spec:
            os.environ["XDG_CACHE_HOME"] = str(place)
            ours, theirs = [], []
            for _ in range(asked.rounds):
                theirs.append(timed(lambda: plain(spec, place)))
                dib.remove_tree(base.wanted(spec).directory)
                ours.append(timed(lambda: base.build(spec)))
            unchanged = min(timed(lambda: base.build(spec)) for _ in range(3))
    for what, value in (
        ("plain disk-image-create", f"{min(theirs):.1f} s"),
        ("ours", f"{min(ours):.1f} s"),
        ("ours / plain", f"{min(ours) / min(theirs):.2f}"),
        ("ours, unchanged", f"{unchanged:.3f} s"),
        ("plain, unchanged / ours, unchanged", f"{min(theirs) / unchanged:.0f}"),
    ):
        sys.stdout.write(f"{what:40}{value}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
