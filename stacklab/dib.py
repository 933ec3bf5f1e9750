"""What golden images and guests share of diskimage-builder: its command, environment and progress."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from importlib import metadata
from pathlib import Path

from stacklab import files, ui
from stacklab.errors import Busy, CommandFailed, LabError
from stacklab.run import run

DATA = Path(__file__).parent / "data" / "guest"
PLUGIN = "stacklab_partx"  # as in partx.yaml and in pyproject.toml
_PLUGINS = "diskimage_builder.block_device.plugin"
_CONTROL = Path("/dev/mapper/control")
_BUILDING = ".building-"


def argv(elements: Sequence[str], kind: str, out: Path) -> list[str]:
    """The command that builds OUT.KIND (tar, raw, …) of `elements`.

    In a mount namespace of its own: a container started meanwhile would copy dib's
    mounts and keep its loop devices busy, and a killed build leaves no mounts behind. And in a
    process namespace: nothing of a build outlives it, where a package manager would go on
    and hold the cache of packages. Its shell is process 1, which no signal but SIGKILL reaches.
    """
    return [
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("unshare", "--mount", "--propagation", "private"),
        *("--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", '"$@"; exit $?', "sh"),
        str(Path(sys.executable).with_name("disk-image-create")),
        *("-a", "amd64", "-t", kind, "-o", str(out)),
        *elements,
    ]


def environment(work: Path, fixed: Mapping[str, str], mirrors: tuple[str, str]) -> dict[str, str]:
    """The environment of a build in `work`: `fixed`, places, and the (archive, security) mirrors."""
    home = work / "tmp" / "home"  # dib writes into it
    home.mkdir(parents=True)
    found = {
        **fixed,
        "HOME": str(home),
        "ELEMENTS_PATH": str(_elements(work / "tmp" / "elements")),
        "DIB_IMAGE_CACHE": str(files.cache_dir() / "dib"),
        "DIB_LOCKFILES": str(work / "tmp" / "locks"),
        "TMP_DIR": str(work / "tmp"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    archive, security = mirrors
    if archive:
        found["DIB_DISTRIBUTION_MIRROR"] = archive
    if security:
        found["DIB_DEBIAN_SECURITY_MIRROR"] = security
    if any(url.startswith("https:") for url in mirrors):
        # Else the apt in the new tree, which is the next to be asked, has nothing to trust.
        found["DIB_MMDEBSTRAP_EXTRA_ARGS"] = "--include=ca-certificates"
    return found


def _elements(target: Path) -> Path:
    """The project's elements, copied to `target` with modes of their own.

    A checkout has those of the umask that it was made under, and they would become the image's.
    """
    shutil.copytree(files.PROJECT / "elements", target, symlinks=True)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(plain_mode(path.stat().st_mode))
    return target


def plain_mode(mode: int) -> int:
    """0755 or 0644, by the owner's x bit: what git keeps of a mode."""
    return 0o755 if mode & 0o100 else 0o644


# A site of apt's whose mirrors are in a file; the slashes before it are apt's.
_LISTED = re.compile(r"mirror\+file:/*(/.+)")


def apt_mirrors(codename: str) -> tuple[str, str]:
    """The build host's own mirrors for `codename`, as (archive, security); '' leaves it to dib.

    The first that is Debian's own, since others call theirs after Debian's release, too, and that
    is read over http or https.
    """
    words = "$(CODENAME) $(COMPONENT) $(SITE) $(ORIGIN)"
    try:
        targets = subprocess.run(
            ["apt-get", "indextargets", "--format", words, "Created-By: Packages"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
    except (FileNotFoundError, subprocess.SubprocessError):
        return "", ""
    sites: dict[str, str] = {}
    for name, site in re.findall(r"^(\S+) main (\S+) Debian$", targets, re.MULTILINE):
        if url := _over_http(site):
            sites.setdefault(name, url)
    return sites.get(codename, ""), sites.get(f"{codename}-security", "")


def _over_http(site: str) -> str:
    """A site of apt's as a URL that dib takes; '' where it is none. Of mirrors in a file the first counts."""
    if listed := _LISTED.fullmatch(site):
        try:
            text = Path(listed[1]).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        found = re.search(r"^https?://\S+", text, re.MULTILINE)
        return found[0] if found else ""
    return site if re.match("https?://", site) else ""


def apt_sources(codename: str, mirrors: tuple[str, str]) -> str:
    """The lines of a sources.list with the (archive, security) mirrors, bars between them; '' for none."""
    archive, security = mirrors
    if not archive:
        return ""
    lines = [f"deb {archive} {suite} main" for suite in (codename, f"{codename}-updates")]
    return "|".join([*lines, f"deb {security} {codename}-security main"] if security else lines)


def has_device_mapper() -> bool:
    """Whether dib's own partitioning (kpartx) can work here: the device opens, not only exists."""
    try:
        with _CONTROL.open("rb"):
            return True
    except OSError:
        return False


def block_device() -> dict[str, str]:
    """What a disk image's build needs in its environment to partition its loop device.

    Nothing where device-mapper works. Raises LabError where the plugin that does
    without is not installed (an installation older than the plugin).
    """
    if has_device_mapper():
        return {}
    if not metadata.entry_points(group=_PLUGINS, name=PLUGIN):
        raise LabError(
            f"this kernel has no device-mapper, and the plugin {PLUGIN} that does without is not installed",
            hint=f"install the project anew: {Path(sys.executable).name} -m pip install -e .",
        )
    return {"DIB_BLOCK_DEVICE_CONFIG": f"file://{DATA / 'partx.yaml'}"}


def element_digests(names: Iterable[str]) -> dict[str, str]:
    """The digest of each of our own elements in `names` and of all that they need; dib's own are "dib"."""
    found: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        own = files.PROJECT / "elements" / name
        found[name] = files.tree_digest(own) if own.is_dir() else "dib"
        if (own / "element-deps").is_file():
            waiting += (own / "element-deps").read_text(encoding="utf-8").split()
    return found


_HOOK = re.compile(r"dib-run-parts Running \S*/([\w-]+\.d)/([^/\s]+)$")
_PACKAGE = re.compile(r"(Setting up|Unpacking) (\S+)")


def progress(line: str) -> None:
    """Show what a build is doing, from a line of its output."""
    if found := _HOOK.search(line):
        ui.detail(f"{found[1]}: {found[2]}")
    elif found := _PACKAGE.search(line):
        ui.detail(f"{found[1]} {found[2]}")


# dib's time stamp, and the mark of a program that it runs in the image.
_PREFIX = re.compile(r"^\d{4}-\d\d-\d\d [\d:.]+ \| (?:> )?")
_FAULT = re.compile(
    r"^\s*(E: (?!Can not write log)|Err:|Error: |Errors during|error: |dpkg: error|the newest kernel|gone: "
    r"|.*[Nn]o space left)"
)
_CLEANUP = re.compile("Unmount |INFO diskimage_builder")


def build(argv: Sequence[str], log: Path, environment: Mapping[str, str], timeout: float) -> None:
    """Run a build to its end, after those that use the same cache of packages: apt does not wait there.

    `timeout` in seconds is for each, the waiting and the build. Raises CommandFailed with the lines
    in which its programs name faults, else with the last ones of the hook that failed: dib's own
    last lines only say what it unmounts.
    """
    faults: list[str] = []
    follow = 0
    hook, last = "", deque[str](maxlen=12)

    def look(line: str) -> None:
        nonlocal follow, hook
        progress(line)
        text = _PREFIX.sub("", line)
        if found := _HOOK.search(line):
            hook = f"in {found[1]}/{found[2]}:"
            last.clear()
        elif not _CLEANUP.match(text):
            last.append(text.rstrip())
        if _FAULT.match(text):
            follow = 4
        elif not text.startswith(" "):
            follow = 0
        if follow:
            # dnf gives its reasons in the lines after it, indented.
            follow -= 1
            faults.append(text.rstrip())

    cache = environment.get("DIB_IMAGE_CACHE")
    waits = (
        files.lock(Path(cache) / "stacklab.lock", "the cache of packages", timeout)
        if cache
        else nullcontext()
    )
    try:
        with waits:
            run(argv, log=log, env=environment, timeout=timeout, each_line=look)
    except CommandFailed as error:
        if not faults and not hook:
            raise
        said = dict.fromkeys(faults[:12]) or [hook, *last]
        text = "\n".join(f"    {line}" for line in said)
        raise CommandFailed(
            f"{'diskimage-builder failed:' if faults else error.message.splitlines()[0]}\n{text}",
            hint="the same command starts the build anew",
        ) from error


def mounted_below(path: Path) -> bool:
    """Whether any process has something of that directory mounted, be it as a layer."""
    for table in Path("/proc").glob("[0-9]*/mountinfo"):
        with suppress(OSError):  # the process is gone
            if f"{path}/" in table.read_text(encoding="utf-8", errors="replace"):
                return True
    return False


def remove_tree(path: Path) -> None:
    """Remove a build's directory, but nothing that may still be mounted below it."""
    if path.exists():
        run(["rm", "-rf", "--one-file-system", path], timeout=600)


def workplace(cache: Path, name: str) -> Path:
    """An empty directory for the build of `name`, whose lock the caller holds.

    What killed builds of others left in `cache` goes: it is gigabytes, and they may never run again.
    """
    work = cache / f"{_BUILDING}{name}"
    _remove_killed(work)
    for left in cache.glob(f"{_BUILDING}*"):
        other = left.name.removeprefix(_BUILDING)
        with suppress(Busy), files.lock(cache / f"{other}.lock", f"the build of {other}"):
            _remove_killed(left)
    work.mkdir(parents=True)
    return work


def _remove_killed(work: Path) -> None:
    """Remove what a killed build left, with the loop devices of its disk."""
    if work.exists():
        listed = run(["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"], check=False).output
        for line in listed.splitlines():
            device, _, file = line.partition(" ")
            if file.strip().startswith(f"{work}/"):
                run(["losetup", "--detach", device])
        remove_tree(work)
