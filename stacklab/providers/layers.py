"""Layers of overlayfs as directories: one made of several, which together say the same."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from stacklab.errors import LabError
from stacklab.run import run

# https://docs.kernel.org/filesystems/overlayfs.html
_OPAQUE = "trusted.overlay.opaque"
# Both tell of paths in the layers below, which a merged layer no longer has as they were.
_REFERENCES = {"trusted.overlay.redirect", "trusted.overlay.metacopy"}


class Entangled(LabError):
    """The layers refer to each other: this kernel renames directories by reference."""


def merge(layers: Sequence[Path], target: Path) -> None:
    """Make `target` the one layer that `layers` (the newest first) are together.

    What hides something below all of them still does: whiteouts stay, and a directory that
    replaced something is opaque. Raises Entangled where it cannot be done; `target` is then rubbish.
    """
    target.mkdir(parents=True)
    for layer in reversed(layers):
        for directory, names, others in os.walk(layer):
            place = target / Path(directory).relative_to(layer)
            for name in names:
                _make_room_for_directory(Path(directory) / name, place / name)
            for name in others:
                _refuse_references(Path(directory) / name)
                if (place / name).is_dir() and not (place / name).is_symlink():
                    shutil.rmtree(place / name)
        run(["cp", "-a", "--reflink=auto", "--remove-destination", f"{layer}/.", target], timeout=600)


def _make_room_for_directory(source: Path, place: Path) -> None:
    if source.is_symlink():  # os.walk counts links to directories among the directories
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        return
    _refuse_references(source)
    if not os.path.lexists(place):
        return
    if not stat.S_ISDIR(place.lstat().st_mode):
        # What it stood for may be a directory further below, which must not shine through.
        place.unlink()
        place.mkdir()
        os.setxattr(place, _OPAQUE, b"y")
    elif _OPAQUE in os.listxattr(source):
        shutil.rmtree(place)


def _refuse_references(path: Path) -> None:
    if not _REFERENCES.isdisjoint(os.listxattr(path, follow_symlinks=False)):
        raise Entangled(f"{path} refers to another layer")
