"""A real Keystone and a real Glance on 127.0.0.1, from the package index, in a venv of their own.

The first time it takes a minute or two; the venv and the seeded databases are kept in the cache,
so that later each session starts both in seconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from keystoneauth1.adapter import Adapter
from keystoneauth1.identity.v3 import Password
from keystoneauth1.session import Session

from stacklab import files
from tests.integration import needs

REQUIREMENTS = ("keystone==30.0.0", "glance==33.0.0", "cheroot==11.1.2")
IMAGE_SIZE_CAP = 24 << 20
USER_QUOTA = 72 << 20
TOKEN_SECONDS = 3
# How long the server waits for the next byte of a connection.
SERVER_PATIENCE = 4
# In the seeded catalogue until a session starts.
_KEYSTONE_URL, _GLANCE_URL = "http://127.0.0.1:1/v3", "http://127.0.0.1:1"
_SECRET = "only-on-127.0.0.1"
_USERS = {"demo": "member", "builder": "admin"}

_SERVE = """
import importlib, os, signal, sys
from cheroot import wsgi
from sqlalchemy import engine, event
port, module = int(sys.argv[1]), sys.argv[2]
arguments, sys.argv = sys.argv, sys.argv[:1]

# SQLite refuses at once to make a writer of a reader while another one writes.
@event.listens_for(engine.Engine, "before_cursor_execute", retval=True)
def immediately(connection, cursor, statement, parameters, context, executemany):
    return "BEGIN IMMEDIATE" if statement == "BEGIN" else statement, parameters

application = importlib.import_module(module).application
server = wsgi.Server(("127.0.0.1", port), application, numthreads=8, timeout=float(arguments[3]))
server.max_request_body_size = 0
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
server.start()
"""

_KEYSTONE = """
[DEFAULT]
log_file = {root}/keystone.log
[database]
connection = sqlite:///{root}/keystone.db?timeout=60
[fernet_tokens]
key_repository = {root}/fernet
[credential]
key_repository = {root}/credential
[cache]
enabled = true
backend = dogpile.cache.memory
[token]
expiration = {expiration}
[identity]
password_hash_algorithm = bcrypt
password_hash_rounds = 4
"""

_GLANCE = """
[DEFAULT]
log_file = {root}/glance.log
workers = 0
enabled_backends = file:file
node_staging_uri = file://{root}/staging
image_size_cap = {cap}
user_storage_quota = {quota}
enabled_import_methods = [glance-direct,web-download]
[import_filtering_opts]
allowed_hosts = [127.0.0.1]
allowed_ports = []
[database]
connection = sqlite:///{root}/glance.db?timeout=60
[glance_store]
default_backend = file
[file]
filesystem_store_datadir = {root}/images
[os_glance_tasks_store]
filesystem_store_datadir = {root}/tasks
[os_glance_staging_store]
filesystem_store_datadir = {root}/staging
[paste_deploy]
flavor = keystone
config_file = {venv}/etc/glance/glance-api-paste.ini
[keystone_authtoken]
www_authenticate_uri = http://127.0.0.1:{keystone}/v3
auth_url = http://127.0.0.1:{keystone}/v3
auth_type = password
username = glance
password = {secret}
project_name = service
user_domain_id = default
project_domain_id = default
service_token_roles_required = true
[oslo_concurrency]
lock_path = {root}/locks
"""


@dataclass(frozen=True)
class Services:
    """Where the two answer; `glance` and `keystone` are ports on 127.0.0.1."""

    keystone: int
    glance: int

    def adapter(
        self,
        user: str = "builder",
        *,
        port: int | None = None,
        password: str = _SECRET,
        keystone: int | None = None,
    ) -> Adapter:
        """Glance as `user` (of a project of the same name), through other ports of 127.0.0.1 if given."""
        auth = Password(
            auth_url=f"http://127.0.0.1:{keystone or self.keystone}/v3",
            username=user,
            password=password,
            project_name=user,
            user_domain_id="default",
            project_domain_id="default",
        )
        endpoint = f"http://127.0.0.1:{port}" if port else None
        return Adapter(Session(auth=auth), service_type="image", endpoint_override=endpoint)

    def cloud(self, user: str = "builder", *, port: int | None = None, **more: Any) -> dict[str, Any]:
        """The same as an entry of clouds.yaml; `more` goes into its `auth`."""
        auth = {
            "auth_url": f"http://127.0.0.1:{self.keystone}/v3",
            "username": user,
            "password": _SECRET,
            "project_name": user,
            "user_domain_id": "default",
            "project_domain_id": "default",
            **more,
        }
        override = {"image_endpoint_override": f"http://127.0.0.1:{port}"} if port else {}
        return {"auth": auth, "region_name": "RegionOne", **override}


def prepared() -> tuple[Path, Path]:
    """The venv with both services, and the template of a directory with seeded databases; from the cache."""
    key = hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode()).hexdigest()[:12]
    requirements = hashlib.sha256(" ".join((*REQUIREMENTS, sys.version)).encode()).hexdigest()[:12]
    home = files.cache_dir() / f"test-openstack-{requirements}"
    with _locked(home.with_suffix(".lock")):
        venv = _installed(home)
        template = home / f"seeded-{key}"
        if not template.is_dir():
            for old in home.glob("seeded-*"):
                shutil.rmtree(old)
            _seed(venv, template)
    return venv, template


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Both services, with what a test needs to kill and start them."""
    root = tmp_path_factory.mktemp("openstack")
    try:
        venv, template = prepared()
    except RuntimeError as error:
        needs.lacking(str(error))
    shutil.copytree(template, root, dirs_exist_ok=True)
    with Running(venv, root) as found:
        yield found


@pytest.fixture(scope="session")
def services(running: Running) -> Services:
    """Where they answer."""
    return running.ports


@pytest.fixture
def adapter(services: Services) -> Adapter:
    """Glance as an administrator of the project `builder`, emptied."""
    found = services.adapter()
    rows = [
        row
        for hidden in ("false", "true")
        for row in found.get("/v2/images", params={"os_hidden": hidden, "limit": "500"}).json()["images"]
    ]
    for row in rows:
        if row["protected"]:
            change = [{"op": "replace", "path": "/protected", "value": False}]
            kind = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
            found.patch(f"/v2/images/{row['id']}", json=change, headers=kind)
        found.delete(f"/v2/images/{row['id']}")
    return found


class _locked:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.handle = path.open("w")

    def __enter__(self) -> None:
        fcntl.flock(self.handle, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self.handle.close()


def _installed(home: Path) -> Path:
    # A venv cannot be renamed: a stamp inside says that it is whole.
    venv = home / "venv"
    if not (venv / "whole").is_file():
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=120)
        pip = [str(venv / "bin" / "pip"), "install", "-q", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, *REQUIREMENTS], capture_output=True, text=True, timeout=1200, check=False
        )
        if done.returncode:
            raise RuntimeError(f"Keystone and Glance cannot be installed: {done.stderr[-300:]}")
        (venv / "whole").touch()
    return venv


class Running:
    """Both services as processes; ended by their ids. `image_size_cap` and `quota` in bytes."""

    def __init__(
        self, venv: Path, root: Path, image_size_cap: int = IMAGE_SIZE_CAP, quota: int = USER_QUOTA
    ) -> None:
        self.venv, self.root = venv, root
        self.limits = {"cap": image_size_cap, "quota": quota}
        self.ports = Services(_free_port(), _free_port())
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Running:
        _configure(self.venv, self.root, self.ports, self.limits)
        try:
            self._start(self.ports.keystone, "keystone", self.root)
            self.start_glance(wait=False)
            for port in (self.ports.keystone, self.ports.glance):
                self._wait(port)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill_glance(self) -> None:
        """End Glance as a crash does."""
        process = self.processes[self.ports.glance]
        process.kill()
        process.wait()

    def start_glance(self, wait: bool = True) -> None:
        """Start Glance on its port."""
        self._start(self.ports.glance, "glance", self.root)
        if wait:
            self._wait(self.ports.glance)

    def brief_keystone(self) -> int:
        """The port of a second Keystone on the same database, whose tokens last TOKEN_SECONDS."""
        directory = self.root / "brief"
        directory.mkdir(exist_ok=True)
        text = _KEYSTONE.format(root=self.root, expiration=TOKEN_SECONDS)
        (directory / "keystone.conf").write_text(text)
        port = _free_port()
        self._start(port, "keystone", directory)
        self._wait(port)
        return port

    def _start(self, port: int, name: str, directory: Path) -> None:
        argv = [str(self.venv / "bin" / "python"), "-c", _SERVE, str(port), f"{name}.wsgi.api"]
        with (self.root / f"{name}.out").open("ab") as out:
            self.processes[port] = subprocess.Popen(
                [*argv, str(SERVER_PATIENCE)],
                env=_environment(directory),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.root,
            )

    def _wait(self, port: int) -> None:
        _wait(f"http://127.0.0.1:{port}/", self.processes[port], self.root)


def _environment(root: Path) -> dict[str, str]:
    own = {"OS_KEYSTONE_CONFIG_DIR": str(root), "OS_GLANCE_CONFIG_DIR": str(root)}
    return {**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, **own}


def _configure(venv: Path, root: Path, ports: Services, limits: Mapping[str, int]) -> None:
    for name in ("fernet", "credential", "images", "staging", "tasks", "locks"):
        (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    values = {
        "root": root,
        "venv": venv,
        "keystone": ports.keystone,
        "secret": _SECRET,
        "expiration": 3600,
        **limits,
    }
    (root / "keystone.conf").write_text(_KEYSTONE.format(**values))
    (root / "glance-api.conf").write_text(_GLANCE.format(**values))
    if (root / "seeded").is_file():
        with sqlite3.connect(root / "keystone.db") as database:
            for old, new in ((_KEYSTONE_URL, ports.keystone), (_GLANCE_URL, ports.glance)):
                url = old.replace(":1", f":{new}")
                database.execute("update endpoint set url = ? where url = ?", (url, old))


def _seed(venv: Path, template: Path) -> None:
    """Databases with users, projects and a catalogue."""
    work = template.with_name(f".seeding-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    _configure(venv, work, Services(1, 1), {"cap": IMAGE_SIZE_CAP, "quota": USER_QUOTA})
    keystone = [str(venv / "bin" / "keystone-manage"), "--config-file", str(work / "keystone.conf")]
    glance = [str(venv / "bin" / "glance-manage"), "--config-file", str(work / "glance-api.conf")]
    bootstrap = ["bootstrap", "--bootstrap-password", _SECRET, "--bootstrap-region-id", "RegionOne"]
    for interface in ("admin", "public", "internal"):
        bootstrap += [f"--bootstrap-{interface}-url", _KEYSTONE_URL]
    for argv in (
        [*keystone, "db_sync"],
        [*glance, "db_sync"],
        [*keystone, "fernet_setup"],
        [*keystone, "credential_setup"],
        [*keystone, *bootstrap],
    ):
        owner = ["--keystone-user", "root", "--keystone-group", "root"]
        more = owner if argv[-1].endswith("_setup") and os.getuid() == 0 else []
        done = subprocess.run(
            [*argv, *more], env=_environment(work), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{argv}: {done.stderr[-2000:]}"
    with Running(venv, work) as found:
        _create_users(found.ports.keystone)
    for log in (*work.glob("*.log"), *work.glob("*.out")):
        log.unlink()
    (work / "seeded").touch()
    work.rename(template)


_Call = Callable[..., Any]


def _create_users(port: int) -> None:
    call = _logged_in(f"http://127.0.0.1:{port}/v3")
    roles = {role["name"]: role["id"] for role in call("GET", "/roles")["roles"]}
    service = ("admin", "service") if "service" in roles else ("admin",)
    _user(call, "glance", "service", [roles[name] for name in service])
    for name, role in _USERS.items():
        _user(call, name, name, [roles[role]])
    glance = call("POST", "/services", {"service": {"name": "glance", "type": "image"}})["service"]["id"]
    for interface in ("public", "internal", "admin"):
        endpoint = {"interface": interface, "region_id": "RegionOne", "url": _GLANCE_URL}
        call("POST", "/endpoints", {"endpoint": {"service_id": glance, **endpoint}})


def _logged_in(base: str) -> _Call:
    """Keystone's API as its administrator: method, path and body to the answer's body."""
    token = ""

    def send(method: str, path: str, body: Any = None) -> tuple[Any, Any]:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(base + path, method=method, data=data)
        request.add_header("Content-Type", "application/json")
        request.add_header("X-Auth-Token", token)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
            return answer.headers, json.loads(text) if text else None

    admin = {"name": "admin", "domain": {"id": "default"}, "password": _SECRET}
    scope = {"project": {"name": "admin", "domain": {"id": "default"}}}
    identity = {"methods": ["password"], "password": {"user": admin}}
    login = {"auth": {"identity": identity, "scope": scope}}
    token = send("POST", "/auth/tokens", login)[0]["X-Subject-Token"]
    return lambda *request: send(*request)[1]


def _user(call: _Call, name: str, project: str, roles: Sequence[str]) -> None:
    made = call("POST", "/projects", {"project": {"name": project, "domain_id": "default"}})
    new = {"name": name, "password": _SECRET, "domain_id": "default"}
    user = call("POST", "/users", {"user": new})["user"]["id"]
    for role in roles:
        call("PUT", f"/projects/{made['project']['id']}/users/{user}/roles/{role}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[bytes], root: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError:
            return  # 300 Multiple Choices: it answers
        except OSError:
            time.sleep(0.1)
        else:
            return
    said = "".join(path.read_text()[-1500:] for path in root.glob("*.out"))
    raise AssertionError(f"{url} does not answer\n{said}")
