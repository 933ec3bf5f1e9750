"""A block-device plugin of diskimage-builder: partitions of a loop device without device-mapper.

dib itself maps partitions by kpartx, which dies on a kernel that has no device-mapper. The
kernel's own partition devices (/dev/loop0p1) serve as well; partx asks for them, and reads the
partition table itself, so that the kernel needs no parser for it.

dib finds this by the entry point in pyproject.toml, under the name of `NAME`.
"""

from __future__ import annotations

from time import sleep
from typing import Any

from diskimage_builder.block_device.exception import BlockDeviceSetupException  # type: ignore[import-untyped]
from diskimage_builder.block_device.level1.partitioning import Partitioning  # type: ignore[import-untyped]
from diskimage_builder.block_device.utils import exec_sudo  # type: ignore[import-untyped]

NAME = "stacklab_partx"
_TRIES = 20
_MAPPER = "/dev/mapper/"


class Partx(Partitioning):  # type: ignore[misc]
    """dib's `partitioning`, with the same configuration, for machines without device-mapper."""

    def create(self) -> None:
        """Write the partition table and have the kernel make the partitions' devices.

        dib calls this once for each partition; the first call does it for all. Raises
        BlockDeviceSetupException when a command fails.
        """
        self.number_of_partitions += 1
        if self.number_of_partitions > 1:
            return
        disk = self.state["blockdev"][self.base]
        self.image_path, self.device_path = disk["image"], disk["device"]
        self.disk_size = self._size_of_block_dev(self.image_path)
        if self.label == "mbr":
            self._create_mbr()
        else:
            self._create_gpt()
        for partition in self.partitions:
            own = self.state["blockdev"][partition.get_name()]
            own["device"] = own["device"].replace(_MAPPER, "/dev/")
            # dib's rollback is `dmsetup remove`.
            partition.rollbacks.clear()
        exec_sudo(["sync"])
        self.partitions[0].add_rollback(_forget, self.device_path)
        exec_sudo(["partx", "--update", self.device_path])

    def umount(self) -> None:
        """Remove the partitions' devices once the last partition is unmounted."""
        self.number_of_partitions -= 1
        if self.number_of_partitions == 0:
            _forget(self.state["blockdev"][self.base]["device"])


def _forget(device: str, pause: float = 1.0) -> Any:
    """Delete the partitions' devices. The kernel may hold them a moment longer than their mounts."""
    for left in reversed(range(_TRIES)):
        try:
            return exec_sudo(["partx", "--delete", device])
        except BlockDeviceSetupException:
            if not left:
                raise
            sleep(pause)
    return None
