"""`down`: nothing of a lab is left, whatever state it was in."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from stacklab import archive, files, lab, namespace, providers, ui
from stacklab.base import Golden
from stacklab.plan import from_json
from stacklab.run import run

_RUN = Path("/run")


def down(name: str) -> None:
    """Remove everything that `up` made for a lab; fine when there is nothing."""
    lab.check_name(name)
    directory = files.labs_dir() / name
    lock = lab.lock_of(name)
    with files.lock(lock, f"the lab {name}", wait=30.0):
        shutil.rmtree(archive.staging(directory), ignore_errors=True)
        if directory.exists():
            with ui.step(f"removing the lab {name}"):
                _remove(directory)
        else:
            ui.say(f"there is no lab {name}: nothing to remove")
        lock.unlink(missing_ok=True)
    _remove_empty()


def _remove(directory: Path) -> None:
    saved = files.read_json(directory / "plan.json")
    # On a full disk nothing could be added to them.
    shutil.rmtree(directory / "logs", ignore_errors=True)
    if saved is not None:
        plan = from_json(saved["plan"])
        if namespace.is_foreign(plan):
            ui.say(f"{namespace.path(plan)} is another checkout's by now, and stays")
        else:
            # Removing needs no image: a lab killed before its nodes were made goes too.
            providers.provider(plan, Golden("", "", Path())).destroy()
    run(["rm", "-rf", "--one-file-system", directory], timeout=600)


def _remove_empty() -> None:
    """Directories and the mount that the last lab leaves behind."""
    netns = _RUN / "netns"
    if netns.is_dir() and not any(netns.iterdir()):
        # ip mounts it onto itself, which Python's own ismount does not see where /run is no tmpfs.
        run(["umount", netns], check=False)
    # Where another lab is at work, removing its mount point would take the mount from it.
    shared = () if any(netns.glob("stacklab-*")) else ("stacklab/cgroups", "stacklab")
    for path in (netns, *(_RUN / name for name in shared), files.labs_dir(), files.labs_dir().parent):
        with suppress(OSError):
            path.rmdir()
