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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from keystoneauth1.adapter import Adapter
from keystoneauth1.identity.v3 import Password
from keystoneauth1.session import Session

from stacklab import files

REQUIREMENTS = ("keystone==30.0.0", "glance==33.0.0", "cheroot==11.1.2")
IMAGE_SIZE_CAP = 24 << 20
# In the seeded catalogue until a session starts.
_KEYSTONE_URL, _GLANCE_URL = "http://127.0.0.1:1/v3", "http://127.0.0.1:1"
_SECRET = "only-on-127.0.0.1"
_USERS = {"demo": "member", "builder": "admin"}

_SERVE = """
import importlib, os, signal, sys
from cheroot import wsgi
port, module = int(sys.argv[1]), sys.argv[2]
sys.argv = sys.argv[:1]
application = importlib.import_module(module).application
server = wsgi.Server(("127.0.0.1", port), application, numthreads=8, timeout=30)
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
enabled = false
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

    def adapter(self, user: str = "builder", *, port: int | None = None, password: str = _SECRET) -> Adapter:
        """Glance as `user` (of a project of the same name), through another port of 127.0.0.1 if given."""
        auth = Password(
            auth_url=f"http://127.0.0.1:{self.keystone}/v3",
            username=user,
            password=password,
            project_name=user,
            user_domain_id="default",
            project_domain_id="default",
        )
        endpoint = f"http://127.0.0.1:{port}" if port else None
        return Adapter(Session(auth=auth), service_type="image", endpoint_override=endpoint)


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    key = hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode()).hexdigest()[:12]
    requirements = hashlib.sha256(" ".join((*REQUIREMENTS, sys.version)).encode()).hexdigest()[:12]
    home = files.cache_dir() / f"test-openstack-{requirements}"
    root = tmp_path_factory.mktemp("openstack")
    with _locked(home.with_suffix(".lock")):
        venv = _installed(home)
        template = home / f"seeded-{key}"
        if not template.is_dir():
            _seed(venv, template)
    shutil.copytree(template, root, dirs_exist_ok=True)
    with _Running(venv, root) as found:
        yield found


@pytest.fixture
def adapter(services: Services) -> Adapter:
    """Glance as an administrator of the project `builder`, emptied."""
    found = services.adapter()
    rows = [
        row
        for hidden in ("false", "true")
        for row in found.get("/v2/images", params={"os_hidden": hidden}).json()["images"]
    ]
    for row in rows:
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
            pytest.skip(f"Keystone and Glance cannot be installed: {done.stderr[-300:]}")
        (venv / "whole").touch()
    return venv


class _Running:
    """Both services as processes; ended by their ids."""

    def __init__(self, venv: Path, root: Path) -> None:
        self.venv, self.root = venv, root
        self.ports = Services(_free_port(), _free_port())
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Services:
        _configure(self.venv, self.root, self.ports)
        try:
            for port, name in ((self.ports.keystone, "keystone"), (self.ports.glance, "glance")):
                self._start(port, name)
            for port, process in zip((self.ports.keystone, self.ports.glance), self.processes, strict=True):
                _wait(f"http://127.0.0.1:{port}/", process, self.root)
        except BaseException:
            self.__exit__()
            raise
        return self.ports

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, port: int, name: str) -> None:
        with (self.root / f"{name}.out").open("ab") as out:
            self.processes.append(
                subprocess.Popen(
                    [self.venv / "bin" / "python", "-c", _SERVE, str(port), f"{name}.wsgi.api"],
                    env=_environment(self.root),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    cwd=self.root,
                )
            )


def _environment(root: Path) -> dict[str, str]:
    own = {"OS_KEYSTONE_CONFIG_DIR": str(root), "OS_GLANCE_CONFIG_DIR": str(root)}
    return {**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, **own}


def _configure(venv: Path, root: Path, ports: Services) -> None:
    for name in ("fernet", "credential", "images", "staging", "tasks", "locks"):
        (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    values = {
        "root": root,
        "venv": venv,
        "keystone": ports.keystone,
        "secret": _SECRET,
        "cap": IMAGE_SIZE_CAP,
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
    _configure(venv, work, Services(1, 1))
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
    with _Running(venv, work) as ports:
        _create_users(ports.keystone)
    for log in (*work.glob("*.log"), *work.glob("*.out")):
        log.unlink()
    (work / "seeded").touch()
    work.rename(template)


def _create_users(port: int) -> None:
    base = f"http://127.0.0.1:{port}/v3"
    token = ""

    def call(method: str, path: str, body: Any = None) -> tuple[Any, Any]:
        request = urllib.request.Request(
            base + path, method=method, data=json.dumps(body).encode() if body else None
        )
        request.add_header("Content-Type", "application/json")
        request.add_header("X-Auth-Token", token)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
            return answer.headers, json.loads(text) if text else None

    admin = {"name": "admin", "domain": {"id": "default"}, "password": _SECRET}
    scope = {"project": {"name": "admin", "domain": {"id": "default"}}}
    identity = {"methods": ["password"], "password": {"user": admin}}
    token = call("POST", "/auth/tokens", {"auth": {"identity": identity, "scope": scope}})[0][
        "X-Subject-Token"
    ]
    roles = {role["name"]: role["id"] for role in call("GET", "/roles")[1]["roles"]}
    for user, project, role in (
        ("glance", "service", "admin"),
        *((name, name, _USERS[name]) for name in _USERS),
    ):
        project_id = call("POST", "/projects", {"project": {"name": project, "domain_id": "default"}})[1][
            "project"
        ]["id"]
        new = {"name": user, "password": _SECRET, "domain_id": "default"}
        user_id = call("POST", "/users", {"user": new})[1]["user"]["id"]
        wanted = (role, "service") if user == "glance" and "service" in roles else (role,)
        for name in wanted:
            call("PUT", f"/projects/{project_id}/users/{user_id}/roles/{roles[name]}")
    service = call("POST", "/services", {"service": {"name": "glance", "type": "image"}})[1]["service"]["id"]
    for interface in ("public", "internal", "admin"):
        endpoint = {
            "service_id": service,
            "interface": interface,
            "region_id": "RegionOne",
            "url": _GLANCE_URL,
        }
        call("POST", "/endpoints", {"endpoint": endpoint})


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
