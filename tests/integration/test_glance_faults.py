"""Everything that can go wrong between a client and Glance, on real ones.

After each fault one thing must be true, see `Case.holds`: the new image is active with the right hash
and the old one hidden, or there is none of the new one and the old one is active and visible.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from keystoneauth1.adapter import Adapter

from stacklab import files, glance, glance_api, glance_send, upload
from stacklab.errors import LabError
from stacklab.guests import GuestImage
from stacklab.upload import Job
from tests.integration.glance_proxy import Fault, Proxy

if TYPE_CHECKING:
    from tests.integration.openstack_services import Running, Services

pytest_plugins = [f"{__package__}.openstack_services" if __package__ else "openstack_services"]
pytestmark = pytest.mark.integration

MIB = 1 << 20
SIZE = 4 * MIB
# Of an upload: two lists of what is there, POST, two PATCHes for the right to publish, PUT, GET, PATCH,
# two lists to rotate by, PATCH of the older one, a list of who is visible after that.
REQUESTS = 12
POST, ALLOWED, PUT, COMMIT, ROTATE = 2, 3, 5, 7, 10


def guest(path: Path, size: int = SIZE) -> GuestImage:
    data = os.urandom(size)
    path.write_bytes(data)
    return GuestImage("probe", path, "raw", hashlib.sha512(data).hexdigest(), size, 1, 64)


@dataclass
class Case:
    """An older image in Glance, a newer one to upload through the proxy."""

    services: Services
    adapter: Adapter
    proxy: Proxy
    older: GuestImage
    older_id: str
    image: GuestImage

    def upload(self, **more: Any) -> glance.Uploaded:
        through = more.pop("adapter", None) or self.services.adapter(port=self.proxy.port)
        how = {"visibility": "public", "deadline": 60.0, **more}
        return glance.upload(through, how.pop("image", self.image), **how)

    def succeeds(self, **more: Any) -> str:
        done = self.upload(**more)
        self.holds(done.id)
        return done.id

    def fails(self, match: str, **more: Any) -> LabError:
        with pytest.raises(LabError, match=match) as caught:
            self.upload(**more)
        self.holds()
        return caught.value

    def rows(self) -> list[dict[str, Any]]:
        return [
            row
            for hidden in ("false", "true")
            for row in self.adapter.get("/v2/images", params={"os_hidden": hidden}).json()["images"]
        ]

    def holds(self, new_id: str = "") -> None:
        """The invariant; with `new_id` that image has to be the one that is in place."""
        known = {self.image.sha512, self.older.sha512}
        rows = {row["id"]: row for row in self.rows()}
        for row in rows.values():
            assert row["status"] == "active", row
            data = self.adapter.get(f"/v2/images/{row['id']}/file").content
            assert hashlib.sha512(data).hexdigest() == row["os_hash_value"]
            assert row["os_hash_value"] in known, f"corrupt and active: {row}"
        assert set(rows) == {self.older_id, *([new_id] if new_id else [])}
        visible = [row for row in rows.values() if not row["os_hidden"]]
        wanted = new_id or self.older_id
        sha512 = (self.image if new_id else self.older).sha512
        assert [(row["id"], row["name"], row["visibility"], row["os_hash_value"]) for row in visible] == [
            (wanted, "probe", "public", sha512)
        ]


@pytest.fixture
def case(
    services: Services, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Case]:
    monkeypatch.setattr(files, "cache_dir", lambda: tmp_path / "cache")
    for name, seconds in {
        "FIRST_PAUSE": 0.1,
        "LONGEST_PAUSE": 0.3,
        "SAVING": 20.0,
        "ANSWER": 1.5,
    }.items():
        monkeypatch.setattr(glance_send, name, seconds)
    monkeypatch.setattr(glance_api, "STALLED", 2.0)
    older = guest(tmp_path / "older", MIB)
    older_id = glance.upload(adapter, older, visibility="public", deadline=60).id
    proxy = Proxy(services.glance)
    yield Case(services, adapter, proxy, older, older_id, guest(tmp_path / "newer"))
    proxy.close()


# -- the connection ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "method"),
    [(0.0, ""), (0.25, ""), (0.5, ""), (0.99, ""), (0.0, "glance-direct"), (0.99, "glance-direct")],
)
def test_cut(case: Case, share: float, method: str) -> None:
    case.proxy.faults.append(Fault("cut", at=share))
    new = case.succeeds(method=method)
    # Sent again, whole, to the same id. Glance calls an image queued before it has cleared its staging
    # area, and answers 409 until then.
    path = f"/v2/images/{new}/{'stage' if method else 'file'}"
    assert set(case.proxy.puts()) == {path}
    assert len(case.proxy.puts()) == 2 or (method and len(case.proxy.puts()) > 2)
    assert case.proxy.sent >= SIZE


@pytest.mark.parametrize("kind", ["cut", "lost"])
@pytest.mark.parametrize("method", ["", "glance-direct"])
def test_cut_before_the_answer(case: Case, kind: Any, method: str) -> None:
    case.proxy.faults.append(Fault(kind, at=1.0))
    case.succeeds(method=method)
    # Where only the answer was lost, Glance has everything and nothing is sent twice. A cut may
    # reach a busy Glance before it has read the last bytes: then it gets them again.
    assert len(case.proxy.puts()) in ((1,) if kind == "lost" else (1, 2))


def test_an_import_is_over_when_its_task_is(case: Case) -> None:
    """Glance saves an active image once more before the task ends: what is changed before is lost."""
    text = '{"tasks": [{"status": "processing", "created_at": "2026-01-01T00:00:00Z"}]}'
    kind = "Content-Type: application/json\r\n"
    case.proxy.faults.append(
        Fault("answer", times=12, match="^GET .*/tasks ", code=200, headers=kind, text=text)
    )
    case.succeeds(method="glance-direct")
    sent = [request.line.split()[0:2] for request in case.proxy.requests]
    tasks = [number for number, (_, path) in enumerate(sent) if path.endswith("/tasks")]
    commit = [number for number, (verb, _) in enumerate(sent) if verb == "PATCH"][
        2
    ]  # after two for the right to publish
    assert len(tasks) >= 13
    assert tasks[12] < commit


def test_cut_again_and_again(case: Case) -> None:
    case.proxy.faults.append(Fault("cut", at=0.5, times=3))
    case.succeeds()
    assert len(case.proxy.puts()) == 4


def test_cut_for_ever(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glance_send, "ATTEMPTS", 3)
    case.proxy.faults.append(Fault("cut", times=99))
    assert case.fails("did not take probe, 3 times over").hint


@pytest.mark.parametrize("number", range(REQUESTS))
def test_answer_lost(case: Case, number: int) -> None:
    """Of each request in turn: Glance has done it, the client does not know."""
    fault = Fault("lost", at=1.0, match="")
    skip = Fault("call", match="", times=number)
    case.proxy.faults += [skip, fault]
    case.succeeds()
    assert fault.times == 0


def test_half_open_and_given_up(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Glance still waits when the client's patience ends: another image takes its place."""
    monkeypatch.setattr(glance_send, "SAVING", 1.0)
    case.proxy.faults.append(Fault("stall"))
    case.succeeds()
    assert len(set(case.proxy.puts())) == 2


def test_half_open_and_waited_for(case: Case) -> None:
    """Everything seems sent, half of it arrived: once Glance gives up, the same image takes it."""
    case.proxy.faults.append(Fault("swallow"))
    new = case.succeeds()
    assert case.proxy.puts()[-1] == f"/v2/images/{new}/file"
    assert len(set(case.proxy.puts())) == 1


def test_killed_and_restarted(case: Case, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> None:
        running.kill_glance()
        running.start_glance(wait=False)

    # Glance leaves the image in `saving` for ever.
    monkeypatch.setattr(glance_send, "SAVING", 8.0)
    case.proxy.pace = 4 * SIZE
    case.proxy.faults.append(Fault("call", then=crash))
    case.succeeds()
    assert len(set(case.proxy.puts())) == 2


def test_killed_for_longer(case: Case, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Glance gone nothing can be cleared up; the next run does it."""
    monkeypatch.setattr(glance_send, "SAVING", 0.5)
    monkeypatch.setattr(glance, "_DISCARD", 0.5)
    case.proxy.pace = 4 * SIZE
    case.proxy.faults.append(Fault("call", then=running.kill_glance))
    with pytest.raises(LabError, match="cannot be reached as builder"):
        case.upload()
    running.start_glance()
    left = [row for row in case.rows() if row["status"] != "active"]
    assert [row["status"] for row in left] == ["saving"]
    case.succeeds()


# -- the data ----------------------------------------------------------------------------


def test_header_of_a_wrong_size(case: Case) -> None:
    case.proxy.faults.append(Fault("resize", times=99))
    assert "proxy" in case.fails("refused probe .* 400").hint


def test_file_of_a_wrong_size(case: Case) -> None:
    case.fails("not what it was", image=replace(case.image, size=SIZE + 1))
    assert case.proxy.puts() == []


@pytest.mark.parametrize("method", ["", "glance-direct"])
def test_one_bit_changes_on_the_way(case: Case, method: str) -> None:
    case.proxy.faults.append(Fault("flip"))
    assert "deleted" in case.fails("it should be active", method=method).hint


def test_content_other_than_its_hash(case: Case) -> None:
    case.fails("it should be active", image=replace(case.image, sha512="0" * 128))


def test_truncated_during_the_upload(case: Case) -> None:
    def truncate() -> None:
        os.truncate(case.image.path, SIZE // 4)

    case.proxy.pace = 8 * MIB
    case.proxy.faults.append(Fault("call", at=0.1, then=truncate))
    case.fails("changing while it is uploaded")


def test_changed_during_the_upload(case: Case) -> None:
    def change() -> None:
        with case.image.path.open("r+b") as handle:
            handle.seek(SIZE - 4096)
            handle.write(bytes(4096))

    case.proxy.pace = 8 * MIB
    case.proxy.faults.append(Fault("call", at=0.1, then=change))
    case.fails("changing while it is uploaded")


def test_deleted_during_the_upload(case: Case) -> None:
    def delete() -> None:
        path = case.proxy.puts()[-1].removesuffix("/file")
        case.services.adapter().delete(path)

    case.proxy.faults.append(Fault("call", then=delete))
    assert case.fails("was deleted while it was being uploaded").hint


def test_size_cap(case: Case, tmp_path: Path) -> None:
    error = case.fails("413", image=guest(tmp_path / "large", 25 * MIB))
    assert "image_size_cap of glance-api" in error.hint
    assert "MiB" in error.hint


def test_quota(case: Case, tmp_path: Path) -> None:
    """72 MiB for a user, in Glance's own accounts."""
    filler = [replace(guest(tmp_path / f"fill{n}", 23 * MIB), name=f"fill-{n}") for n in range(3)]
    for image in filler:
        glance.upload(case.adapter, image, visibility="private", deadline=60)
    with pytest.raises(LabError, match="413") as caught:
        case.upload(image=guest(tmp_path / "more", 8 * MIB))
    assert "images.prune" in caught.value.hint
    for row in case.rows():
        if row["name"].startswith("fill"):
            case.adapter.delete(f"/v2/images/{row['id']}")
    case.holds()


# -- answers -----------------------------------------------------------------------------


def test_token_expires_during_the_upload(case: Case, running: Running) -> None:
    keystone = running.brief_keystone()
    case.proxy.pace = SIZE / 4
    start = time.monotonic()
    case.succeeds(adapter=case.services.adapter(port=case.proxy.port, keystone=keystone))
    assert time.monotonic() - start > 4
    assert len(case.proxy.puts()) == 1


@pytest.mark.parametrize(
    ("code", "headers"), [(401, ""), (409, ""), (500, ""), (503, "Retry-After: 1\r\n")], ids=str
)
def test_answer_once(case: Case, code: int, headers: str) -> None:
    case.proxy.faults.append(Fault("answer", code=code, headers=headers))
    start = time.monotonic()
    case.succeeds()
    assert len(case.proxy.puts()) == 2
    assert code != 503 or time.monotonic() - start >= 1


@pytest.mark.parametrize(
    ("code", "message", "times"),
    [(401, "refused", 2), (403, "refused", 1), (409, "3 times", 3), (500, "3 times", 3), (503, "3 times", 3)],
)
def test_answer_for_ever(
    case: Case, code: int, message: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glance_send, "ATTEMPTS", 3)
    case.proxy.faults.append(Fault("answer", code=code, times=99))
    error = case.fails(f"{message}.*{code} said by the test")
    assert error.hint
    assert len(case.proxy.puts()) == times


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_500_to_the_other_requests(case: Case, method: str) -> None:
    case.proxy.faults.append(Fault("answer", code=500, match=f"^{method} "))
    if method == "DELETE":
        case.fails("it should be active", image=replace(case.image, sha512="0" * 128))
    else:
        case.succeeds()


def test_not_allowed_to_publish(case: Case) -> None:
    """Nothing is sent in vain, nothing is left."""
    member = case.services.adapter("demo", port=case.proxy.port)
    with pytest.raises(LabError, match="make an image public: 403") as caught:
        case.upload(adapter=member)
    assert "private" in caught.value.hint
    assert "shared" in caught.value.hint
    assert case.proxy.puts() == []
    assert [
        row
        for row in case.services.adapter("demo").get("/v2/images").json()["images"]
        if row["id"] != case.older_id
    ] == []
    case.holds()


# -- signals -----------------------------------------------------------------------------

CHILD = """
import json, sys
from pathlib import Path
from stacklab import clouds, upload
from stacklab.guests import GuestImage
path, sha512, size = sys.argv[1:]
image = GuestImage("probe", Path(path), "raw", sha512, int(size), 1, 64)
upload.images(clouds.adapter("test"), [upload.Job(image, "public")])
"""


def child(case: Case, tmp_path: Path) -> subprocess.Popen[str]:
    """A process of its own that uploads, configured by clouds.yaml."""
    clouds = {"clouds": {"test": case.services.cloud(port=case.proxy.port)}}
    (tmp_path / "clouds.yaml").write_text(json.dumps(clouds))
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("OS_")},
        "OS_CLIENT_CONFIG_FILE": str(tmp_path / "clouds.yaml"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(glance.__file__).parents[1]),
    }
    argv = [sys.executable, "-c", CHILD, case.image.path, case.image.sha512, case.image.size]
    return subprocess.Popen(
        [str(word) for word in argv],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)], ids=str
)
@pytest.mark.parametrize("kind", ["call", "stall", "swallow"])
def test_signals_leave_nothing(case: Case, tmp_path: Path, number: int, code: int, kind: Any) -> None:
    """In the middle of the data, while nothing goes through, and while the answer is waited for."""
    reached = threading.Event()
    case.proxy.pace = SIZE
    case.proxy.faults.append(Fault("call", then=reached.set) if kind == "call" else Fault(kind))
    with child(case, tmp_path) as process:
        if kind == "call":
            assert reached.wait(30)
        else:
            wait_for(lambda: bool(case.proxy.puts()))
            time.sleep(1)
        process.send_signal(number)
        start = time.monotonic()
        assert process.wait(timeout=30) == code
        assert time.monotonic() - start < 10
    case.holds()
    assert not list((tmp_path / "cache").glob("**/*.lock"))


def test_second_interrupt_does_not_wait(case: Case, tmp_path: Path) -> None:
    """The first one cannot clear up, since Glance does not answer; what is left is the next run's."""
    case.proxy.faults += [Fault("stall"), Fault("swallow", match="^DELETE ", at=0.0, times=9)]
    with child(case, tmp_path) as process:
        wait_for(lambda: bool(case.proxy.puts()))
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == -signal.SIGINT
        assert time.monotonic() - start < 3


@pytest.mark.parametrize("number", [POST, ALLOWED, PUT, COMMIT, ROTATE])
def test_killed_then_run_again(case: Case, tmp_path: Path, number: int) -> None:
    """SIGKILL once Glance has done one of the requests that change something."""
    case.proxy.faults += [Fault("call", match="", times=number), Fault("hold", at=1.0, match="")]
    with child(case, tmp_path) as process:
        assert case.proxy.held.wait(30)
        process.kill()
        assert process.wait(timeout=10) == -signal.SIGKILL
    never_corrupt(case)
    with child(case, tmp_path) as process:
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 0, said
    [new] = [row["id"] for row in case.rows() if row["id"] != case.older_id]
    case.holds(new)


def test_killed_while_it_sends(case: Case, tmp_path: Path) -> None:
    reached = threading.Event()
    case.proxy.pace = SIZE
    case.proxy.faults.append(Fault("call", then=reached.set))
    with child(case, tmp_path) as process:
        assert reached.wait(30)
        process.kill()
    never_corrupt(case)
    case.proxy.pace = 0
    with child(case, tmp_path) as process:
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 0, said
    [new] = [row["id"] for row in case.rows() if row["id"] != case.older_id]
    case.holds(new)


def never_corrupt(case: Case) -> None:
    """What holds even after SIGKILL: one that is visible under the name, and all active ones are right."""
    rows = case.rows()
    active = [row for row in rows if row["status"] == "active"]
    assert {row["os_hash_value"] for row in active} <= {case.image.sha512, case.older.sha512}
    assert any(row["name"] == "probe" and not row["os_hidden"] for row in active)
    # What is not finished does not bear the name.
    assert all(row["name"] != "probe" for row in rows if row["status"] != "active")


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_interrupt_and_deadline_in_this_process(case: Case) -> None:
    def interrupt(_sent: int, _size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.upload(progress=interrupt)
    case.holds()
    case.fails("deadline", deadline=4, progress=lambda *_: time.sleep(1))


def test_interrupted_pool_stops_all(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four at once, one of them finished: it stays, the others go."""
    jobs = [Job(replace(guest(tmp_path / f"many{n}", MIB), name=f"many-{n}")) for n in range(3)]
    small = Job(replace(guest(tmp_path / "small", 1000), name="small"))
    case.proxy.pace = MIB / 3

    def interrupt() -> None:
        wait_for(lambda: "small: uploaded" in "".join(capsys.readouterr()))
        wait_for(lambda: len(case.proxy.puts()) == 4)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        upload.images(case.services.adapter(port=case.proxy.port), [*jobs, small])
    assert {row["name"] for row in case.rows()} == {"probe", "small"}
    [row] = [row for row in case.rows() if row["name"] == "small"]
    assert (row["status"], row["os_hash_value"]) == ("active", small.image.sha512)
