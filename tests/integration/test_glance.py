"""Uploads to a real Glance, whole and broken."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from keystoneauth1.adapter import Adapter

from stacklab import glance
from stacklab.errors import LabError
from stacklab.guests import GuestImage

if TYPE_CHECKING:
    from tests.integration.openstack_services import Services

pytest_plugins = [f"{__package__}.openstack_services" if __package__ else "openstack_services"]
pytestmark = pytest.mark.integration

MIB = 1 << 20
OCTETS = {"Content-Type": "application/octet-stream"}


def guest(path: Path, size: int = 8 * MIB, name: str = "probe") -> GuestImage:
    """An image file with new random content."""
    data = os.urandom(size)
    path.write_bytes(data)
    sha512 = hashlib.sha512(data).hexdigest()
    return GuestImage(
        name, path, "raw", sha512, size, 1, 64, {"os_distro": "debian", "hw_disk_bus": "virtio"}
    )


def upload(adapter: Adapter, image: GuestImage, **more: Any) -> glance.Uploaded:
    return glance.upload(adapter, image, **{"visibility": "public", "deadline": 60.0, **more})


def rows(adapter: Adapter, hidden: bool = False) -> list[dict[str, Any]]:
    found = adapter.get("/v2/images", params={"os_hidden": str(hidden).lower()}).json()["images"]
    return [dict(row) for row in found]


def everything(adapter: Adapter) -> list[dict[str, Any]]:
    return rows(adapter) + rows(adapter, hidden=True)


class Proxy:
    """A TCP proxy on 127.0.0.1; cuts the connection once `cut_after` bytes have gone up, `cuts` times."""

    def __init__(self, port: int, cut_after: int = 1 << 62, cuts: int = 1) -> None:
        self.target, self.cut_after, self.cuts = port, cut_after, cuts
        self.sent = 0
        self.heads: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def puts(self) -> list[str]:
        """The paths that data was sent to."""
        return [head.split()[1].decode() for head in self.heads if head.startswith(b"PUT ")]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        passed = 0
        try:
            while block := client.recv(65536):
                if block.split(b" ", 1)[0] in (b"GET", b"PUT", b"POST", b"PATCH", b"DELETE"):
                    self.heads.append(block[:200])
                passed += len(block)
                self.sent += len(block)
                if passed > self.cut_after and self.cuts > 0:
                    self.cuts -= 1
                    break
                server.sendall(block)
        except OSError:
            pass
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while block := server.recv(65536):
                client.sendall(block)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(services: Services) -> Iterator[Callable[..., Proxy]]:
    made: list[Proxy] = []

    def make(**how: int) -> Proxy:
        made.append(Proxy(services.glance, **how))
        return made[-1]

    yield make
    for one in made:
        one.listener.close()


def test_upload_then_again(
    services: Services, adapter: Adapter, proxy: Callable[..., Proxy], tmp_path: Path
) -> None:
    image = guest(tmp_path / "a")
    told: list[tuple[int, int]] = []
    done = upload(adapter, image, progress=lambda sent, size: told.append((sent, size)))
    assert done.status == "uploaded"
    assert told[-1] == (image.size, image.size)
    assert told == sorted(told)
    [row] = everything(adapter)
    assert (row["id"], row["name"], row["status"], row["visibility"]) == (
        done.id,
        "probe",
        "active",
        "public",
    )
    assert (row["os_hash_value"], row["size"], row["min_ram"]) == (image.sha512, image.size, 64)
    assert (row["os_distro"], row["tags"]) == ("debian", ["stacklab"])

    between = proxy()
    again = upload(services.adapter(port=between.port), image)
    assert again == glance.Uploaded(done.id, "unchanged")
    assert between.heads
    assert between.puts() == []
    assert between.sent < 10_000

    other = replace(image, properties={**image.properties, "os_version": "12"}, min_ram=96)
    assert upload(adapter, other) == glance.Uploaded(done.id, "properties")
    [row] = everything(adapter)
    assert (row["os_version"], row["min_ram"]) == ("12", 96)


def test_changed_content_replaces_and_hides(adapter: Adapter, tmp_path: Path) -> None:
    images = [guest(tmp_path / str(number), MIB) for number in range(3)]
    first, second, third = (upload(adapter, image).id for image in images)
    [visible] = rows(adapter)
    assert (visible["id"], visible["name"]) == (third, "probe")
    [hidden] = rows(adapter, hidden=True)
    assert hidden["id"] == second
    assert hidden["name"].startswith(f"probe-{datetime.now(UTC):%Y}")
    assert first not in {row["id"] for row in everything(adapter)}
    # Back to the one before: not a byte to send, and still only one is visible.
    assert upload(adapter, images[1]) == glance.Uploaded(second, "properties")
    assert [row["id"] for row in rows(adapter)] == [second]
    assert [row["id"] for row in rows(adapter, hidden=True)] == [third]
    listed = {entry.id: entry for entry in glance.list_images(adapter)}
    assert (listed[second].hidden, listed[second].ours, listed[second].name) == (False, True, "probe")
    assert listed[third].hidden


def test_images_of_others_are_left_alone(adapter: Adapter, tmp_path: Path) -> None:
    image = guest(tmp_path / "a", MIB)
    theirs = {"name": "probe", "disk_format": "raw", "container_format": "bare"}
    foreign = adapter.post("/v2/images", json=theirs).json()["id"]
    adapter.put(f"/v2/images/{foreign}/file", data=image.path.read_bytes(), headers=OCTETS)
    done = upload(adapter, image)
    assert done.id != foreign
    after = adapter.get(f"/v2/images/{foreign}").json()
    assert (after["name"], after["os_hidden"], after["visibility"]) == ("probe", False, "shared")


@pytest.mark.parametrize("cuts", [1, 2])
def test_cut_connection_is_sent_again_to_the_same_id(
    cuts: int, services: Services, adapter: Adapter, proxy: Callable[..., Proxy], tmp_path: Path
) -> None:
    image = guest(tmp_path / "a")
    between = proxy(cut_after=image.size // 2, cuts=cuts)
    done = upload(services.adapter(port=between.port), image)
    assert between.puts() == [f"/v2/images/{done.id}/file"] * (cuts + 1)
    [row] = everything(adapter)
    assert (row["id"], row["status"], row["os_hash_value"]) == (done.id, "active", image.sha512)


def test_truncated_file_leaves_the_older_image(adapter: Adapter, tmp_path: Path) -> None:
    older = upload(adapter, guest(tmp_path / "a", MIB))
    image = guest(tmp_path / "b")

    def truncate(sent: int, _size: int) -> None:
        if sent >= image.size // 2:
            os.truncate(image.path, sent)

    with pytest.raises(LabError, match="changing while it is uploaded"):
        upload(adapter, image, progress=truncate)
    [row] = everything(adapter)
    assert (row["id"], row["status"], row["name"], row["os_hidden"]) == (older.id, "active", "probe", False)


def test_content_other_than_its_hash_is_deleted(adapter: Adapter, tmp_path: Path) -> None:
    older = upload(adapter, guest(tmp_path / "a", MIB))
    image = replace(guest(tmp_path / "b", MIB), sha512="0" * 128)
    with pytest.raises(LabError, match="it should be active") as caught:
        upload(adapter, image)
    assert "deleted" in caught.value.hint
    assert [row["id"] for row in everything(adapter)] == [older.id]


def test_deleted_during_upload(services: Services, adapter: Adapter, tmp_path: Path) -> None:
    image = guest(tmp_path / "a")
    deleted: list[str] = []

    def delete(sent: int, _size: int) -> None:
        if sent >= image.size // 2 and not deleted:
            [row] = everything(adapter)
            deleted.append(row["id"])
            services.adapter().delete(f"/v2/images/{row['id']}")

    with pytest.raises(LabError, match="was deleted while it was being uploaded") as caught:
        upload(services.adapter(), image, progress=delete)
    assert caught.value.hint
    assert deleted
    assert everything(adapter) == []


def test_interrupt_and_deadline_leave_nothing(adapter: Adapter, tmp_path: Path) -> None:
    image = guest(tmp_path / "a")

    def interrupt(_sent: int, _size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload(adapter, image, progress=interrupt)
    assert everything(adapter) == []
    with pytest.raises(LabError, match="deadline"):
        upload(adapter, image, deadline=3, progress=lambda *_: time.sleep(1))
    assert everything(adapter) == []


TERMINATED = """
import sys, time
from pathlib import Path
from keystoneauth1.adapter import Adapter
from keystoneauth1.identity.v3 import Password
from keystoneauth1.session import Session
from stacklab import glance
from stacklab.guests import GuestImage
port, password, path, size = sys.argv[1:]
auth = Password(auth_url=f"http://127.0.0.1:{port}/v3", username="builder", password=password,
                project_name="builder", user_domain_id="default", project_domain_id="default")
def slow(*_):
    print("sending", flush=True)
    time.sleep(30)
image = GuestImage("probe", Path(path), "raw", "0" * 128, int(size), 1, 64)
adapter = Adapter(Session(auth=auth), service_type="image")
glance.upload(adapter, image, visibility="private", deadline=60, progress=slow)
"""


def test_sigterm_leaves_nothing(services: Services, adapter: Adapter, tmp_path: Path) -> None:
    image = guest(tmp_path / "a")
    password = str(services.adapter().session.auth.get_cache_id_elements()["password_password"])
    argv = [
        sys.executable,
        "-c",
        TERMINATED,
        str(services.keystone),
        password,
        str(image.path),
        str(image.size),
    ]
    root = Path(glance.__file__).parent.parent
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sending\n"
        assert len(everything(adapter)) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert everything(adapter) == []


def test_stale_leftovers_of_ours_are_swept(adapter: Adapter, tmp_path: Path) -> None:
    def queued(*tags: str) -> str:
        row = {"name": "left", "disk_format": "raw", "container_format": "bare", "tags": list(tags)}
        return str(adapter.post("/v2/images", json=row).json()["id"])

    ours, theirs = queued("stacklab"), queued()
    image = guest(tmp_path / "a", MIB)
    upload(adapter, image, deadline=60)
    assert {ours, theirs} <= {row["id"] for row in everything(adapter)}
    time.sleep(6)
    upload(adapter, image, deadline=4)
    left = {row["id"] for row in everything(adapter)}
    assert ours not in left
    assert theirs in left


def test_refusals_say_what_to_do(services: Services, adapter: Adapter, tmp_path: Path) -> None:
    member = services.adapter("demo")
    with pytest.raises(LabError, match="make an image public") as caught:
        upload(member, guest(tmp_path / "a", MIB))
    assert "administrator" in caught.value.hint
    with pytest.raises(LabError, match="413") as caught:
        upload(member, guest(tmp_path / "b", 25 * MIB), visibility="private")
    assert "image_size_cap" in caught.value.hint
    assert [row for row in everything(member) if row["status"] != "active"] == []
    with pytest.raises(LabError, match=r"demo \(project demo\) at http://127") as caught:
        upload(services.adapter("demo", password="wrong-password"), guest(tmp_path / "c", MIB))
    assert "wrong-password" not in caught.value.message
