"""What an image file is by its own bytes, whatever it is called."""

from __future__ import annotations

from pathlib import Path

_DESCRIPTION = "only the description of a vmdk"  # in text; its data are in other files
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", _DESCRIPTION),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"conectix", "vhd"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"\xfd7zXZ\x00", "compressed by xz"),
    (0, b"\x1f\x8b\x08", "compressed by gzip"),
    (0, b"BZh", "compressed by bzip2"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (32769, b"CD001", "iso"),
)


def kind(path: Path) -> str:
    """What a file is: a disk format, or words for what is none; '' where its bytes do not tell."""
    with path.open("rb") as handle:
        for offset, magic, name in _MAGIC:
            handle.seek(offset)
            if handle.read(len(magic)) == magic:
                return name
    return ""


def against(path: Path, disk_format: str) -> str:
    """What speaks against a file's being of that format, such as "it is qcow2, not raw"; '' for nothing."""
    found = kind(path)
    # Kernels and their ramdisks boot as they are compressed.
    if disk_format in ("aki", "ari") and found.startswith("compressed"):
        return ""
    # An ISO of a hybrid kind may be wanted as a raw disk, but a container passed as raw would not boot.
    return f"it is {found}, not {disk_format}" if found not in ("", disk_format, "iso") else ""
