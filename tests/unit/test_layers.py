"""Layers merged into one: real overlayfs mounts show the same before and after."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from stacklab.providers import layers


@contextmanager
def mounted(place: Path, lower: Sequence[Path], upper: Path | None = None) -> Iterator[Path]:
    """The overlay of `lower` (the newest first), writable into `upper`."""
    target, work = place / "merged", place / "work"
    target.mkdir(exist_ok=True)
    options = f"lowerdir={':'.join(map(str, lower))}"
    if upper is not None:
        shutil.rmtree(work, ignore_errors=True)
        upper.mkdir(parents=True)
        work.mkdir()
        options += f",upperdir={upper},workdir={work}"
    argv = ["mount", "-t", "overlay", "overlay", "-o", options, str(target)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no overlay mount here: {done.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)


def seen(root: Path) -> dict[str, tuple[object, ...]]:
    """All that a node could see: kinds, modes, owners, contents, links, times."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        about = path.lstat()
        content: object = None
        if stat.S_ISREG(about.st_mode):
            content = (path.read_bytes(), about.st_mtime_ns)
        elif stat.S_ISLNK(about.st_mode):
            content = path.readlink()
        found[str(path.relative_to(root))] = (about.st_mode, about.st_uid, about.st_gid, content)
    return found


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def golden(root: Path) -> None:
    for name in ("kept", "changed", "deleted", "file-to-directory", "deleted-and-back", "dir/a", "dir/b"):
        put(root / name, f"golden {name}")
    for name in ("gone/x", "replaced/old", "emptied/x", "to-file/x", "to-link/x", "twice/old", "deep/er/old"):
        put(root / name, f"golden {name}")


def first(root: Path) -> None:
    put(root / "changed", "first")
    (root / "deleted").unlink()
    (root / "deleted-and-back").unlink()
    shutil.rmtree(root / "gone")
    shutil.rmtree(root / "replaced")
    put(root / "replaced" / "new", "first")
    shutil.rmtree(root / "twice")
    shutil.rmtree(root / "deep")
    put(root / "dir" / "mine", "first")
    put(root / "new" / "x", "first")
    put(root / "linked", "first")
    os.link(root / "linked", root / "linked-too")
    (root / "file-to-directory").unlink()
    os.chown(root / "kept", 7, 8)


def second(root: Path) -> None:
    # A directory where the layer below deleted one: what was in it must not come back.
    put(root / "twice" / "new", "second")
    put(root / "deep" / "er" / "new", "second")
    put(root / "file-to-directory" / "x", "second")
    put(root / "deleted-and-back", "second")
    (root / "dir" / "a").unlink()
    (root / "dir").chmod(0o750)
    shutil.rmtree(root / "to-file")
    put(root / "to-file", "second")
    shutil.rmtree(root / "to-link")
    (root / "to-link").symlink_to("dir")
    (root / "emptied" / "x").unlink()
    put(root / "linked", "second")


def third(root: Path) -> None:
    shutil.rmtree(root / "new")
    put(root / "new", "a file now")
    shutil.rmtree(root / "replaced")
    put(root / "replaced" / "newest", "third")
    (root / "to-file").unlink()
    put(root / "to-file" / "y", "third")
    (root / "deleted-and-back").unlink()
    (root / "to-link").unlink()
    put(root / "to-link" / "z", "third")


@pytest.fixture
def stack(tmp_path: Path) -> list[Path]:
    """The layers as overlayfs itself writes them, the newest first; the golden image is the last."""
    golden(tmp_path / "golden")
    found = [tmp_path / "golden"]
    steps: tuple[Callable[[Path], None], ...] = (first, second, third)
    for change in steps:
        upper = tmp_path / change.__name__
        with mounted(tmp_path, found, upper) as root:
            change(root)
        found.insert(0, upper)
    return found


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_merged_layer_shows_the_same(count: int, stack: list[Path], tmp_path: Path) -> None:
    with mounted(tmp_path, stack) as root:
        expected = seen(root)
    assert "twice/old" not in expected and "deep/er/old" not in expected and "gone/x" not in expected
    own = stack[:count]
    before = [seen(layer) for layer in own]
    layers.merge(own, tmp_path / "whole")
    with mounted(tmp_path, [tmp_path / "whole", *stack[count:]]) as root:
        assert seen(root) == expected
    assert [seen(layer) for layer in own] == before  # snapshots lie on them


def test_files_that_were_one_stay_one(stack: list[Path], tmp_path: Path) -> None:
    layers.merge([stack[2]], tmp_path / "whole")
    one, two = tmp_path / "whole" / "linked", tmp_path / "whole" / "linked-too"
    assert one.stat().st_ino == two.stat().st_ino


@pytest.mark.parametrize("place", ["directory", "file"])
@pytest.mark.parametrize("mark", ["trusted.overlay.redirect", "trusted.overlay.metacopy"])
def test_layers_that_refer_to_each_other_are_refused(place: str, mark: str, tmp_path: Path) -> None:
    (tmp_path / "layer" / "directory").mkdir(parents=True)
    put(tmp_path / "layer" / "file", "x")
    try:
        os.setxattr(tmp_path / "layer" / place, mark, b"/elsewhere")
    except PermissionError:
        pytest.skip("only root sets overlayfs's marks")
    with pytest.raises(layers.Entangled, match="refers to another layer"):
        layers.merge([tmp_path / "layer"], tmp_path / "whole")
