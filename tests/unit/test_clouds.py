"""Which cloud is meant, and what is said of one that cannot be used. No cloud is asked."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from keystoneauth1 import exceptions as denied

from stacklab import clouds, glance, glance_api, images, redact
from stacklab.errors import InvalidInput, LabError

AUTH = {
    "auth_url": "http://127.0.0.1:9/v3",
    "username": "ann",
    "password": "never-shown-1",
    "project_name": "tests",
    "user_domain_id": "default",
    "project_domain_id": "default",
}


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable and no file of this machine's counts."""
    for name in [name for name in os.environ if name.startswith("OS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(redact, "_secrets", set())
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)


def write(path: Path, **entries: Any) -> None:
    (path / "clouds.yaml").write_text(json.dumps({"clouds": entries}))


def test_a_cloud_by_name(tmp_path: Path) -> None:
    more = {
        "region_name": "North",
        "interface": "internal",
        "image_endpoint_override": "http://127.0.0.1:9/i",
    }
    write(tmp_path, lab={"auth": AUTH, **more}, other={"auth": AUTH})
    found = clouds.adapter("lab")
    assert (found.cloud, found.region_name, found.interface) == ("lab", "North", "internal")
    assert found.endpoint_override == "http://127.0.0.1:9/i"
    assert redact.text("it is never-shown-1") == "it is ********"


@pytest.mark.parametrize("cloud", ["", "envvars"])
def test_variables(cloud: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AUTH.items():
        monkeypatch.setenv(f"OS_{name.upper()}", value)
    monkeypatch.setenv("OS_REGION_NAME", "South")
    found = clouds.adapter(cloud)
    assert (found.cloud, found.region_name) == ("", "South")
    assert found.session.auth.auth_url == AUTH["auth_url"]


def test_variable_os_cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, lab={"auth": AUTH}, other={"auth": {**AUTH, "username": "bob"}})
    monkeypatch.setenv("OS_CLOUD", "other")
    assert clouds.adapter().cloud == "other"


def test_unknown_cloud_lists_those_known(tmp_path: Path) -> None:
    write(tmp_path, lab={"auth": AUTH}, other={"auth": AUTH})
    with pytest.raises(InvalidInput, match="unknown cloud 'labb'") as caught:
        clouds.adapter("labb")
    assert caught.value.hint == "clouds.yaml knows lab, other"


def test_no_cloud_at_all() -> None:
    with pytest.raises(LabError) as caught:
        clouds.adapter()
    assert "--cloud envvars for OS_AUTH_URL" in caught.value.hint
    assert "there is no clouds.yaml" in caught.value.hint
    with pytest.raises(LabError, match="no lab is here") as caught, images.target(None, ""):
        pass
    assert "--cloud envvars" in caught.value.hint


def test_incomplete_and_broken(tmp_path: Path) -> None:
    write(tmp_path, lab={"auth": {"username": "ann", "password": "never-shown-1"}})
    with pytest.raises(LabError, match=r"the cloud lab is not fully described: .*auth_url"):
        clouds.adapter("lab")
    # The SDK passes over a file that is no YAML.
    (tmp_path / "clouds.yaml").write_text("clouds: [")
    with pytest.raises(LabError, match="unknown cloud 'lab'") as caught:
        clouds.adapter("lab")
    assert "Skipping config file" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "lab:",
        "lab: text",
        "lab: {auth: text}",
        "lab: {auth: null}",
        "lab: {auth: {auth_url: 5}}",
        "lab: {auth_type: none, auth: {auth_url: 'http://127.0.0.1:9/v3', username: ann}}",
        "lab: {auth: {auth_url: 'http://[::1', username: ann, password: x, project_name: tests}}",
        f"lab: {{api_timeout: 30s, auth: {json.dumps(AUTH)}}}",
        f"lab: {{cert: [a], key: b, auth: {json.dumps(AUTH)}}}",
        "text",
        "",
    ],
)
def test_a_form_that_the_sdk_does_not_expect(tmp_path: Path, text: str) -> None:
    (tmp_path / "clouds.yaml").write_text(f"clouds:\n  {text}\n")
    with pytest.raises(InvalidInput, match=r"the cloud lab is not described as it should be"):
        clouds.adapter("lab")


def test_a_cloud_without_a_login_is_named_by_its_address(tmp_path: Path) -> None:
    write(tmp_path, lab={"auth_type": "none", "image_endpoint_override": "http://127.0.0.1:9"})
    adapter = clouds.adapter("lab")
    with (
        pytest.raises(LabError, match=r"reached as the user .* at the cloud lab"),
        glance_api.explained(adapter),
    ):
        raise denied.ConnectFailure("nobody is there")


def test_a_file_of_certificates_that_is_not_there(tmp_path: Path) -> None:
    entry = {"auth": {**AUTH, "auth_url": "https://127.0.0.1:9/v3"}, "cacert": "nowhere.pem"}
    write(tmp_path, lab=entry)
    with pytest.raises(LabError, match=r"invalid path: .*nowhere\.pem") as caught:
        glance.list_images(clouds.adapter("lab"))
    assert "cacert" in caught.value.hint


def test_other_errors_of_the_system_stay_what_they_are(tmp_path: Path) -> None:
    write(tmp_path, lab={"auth": AUTH})
    with pytest.raises(PermissionError), glance_api.explained(clouds.adapter("lab")):
        raise PermissionError(13, "Permission denied")


def test_the_sdk_is_whole_afterwards(tmp_path: Path) -> None:
    """In a process of its own: what was imported lightly must not be what others get."""
    write(tmp_path, lab={"auth": AUTH})
    script = """
import sys
from stacklab import clouds
clouds.adapter("lab")
assert not [name for name in sys.modules if name.startswith("openstack")], "left behind"
assert not [name for name in sys.modules if name.startswith("rich")], "slow to import"
import openstack
assert openstack.connect(cloud="lab").config.name == "lab"
assert clouds.adapter("lab").cloud == "lab"
"""
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_cloud_and_user_are_named_when_it_does_not_answer(tmp_path: Path) -> None:
    write(tmp_path, lab={"auth": AUTH})
    with pytest.raises(
        LabError, match=r"ann \(project tests\) at the cloud lab, http://127.0.0.1:9/v3"
    ) as caught:
        glance.list_images(clouds.adapter("lab"))
    assert "never-shown-1" not in caught.value.message


# -- certificates ------------------------------------------------------------------------


def certificate(path: Path, *more: str) -> Path:
    """A self-signed one with its key, in one file."""
    request = ["-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", path, "-out", f"{path}.crt"]
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    argv = ["openssl", "req", *request, *subject, *more]
    subprocess.run([str(word) for word in argv], check=True, capture_output=True, timeout=60)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Starts a TLS server with a certificate; the result is its port."""
    listeners: list[socket.socket] = []

    def start(path: Path) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                    context.wrap_socket(client, server_side=True).close()
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("path", ["/v3", ""])
def test_certificates_that_are_not_trusted(tmp_path: Path, serve: Any, path: str) -> None:
    port = serve(certificate(tmp_path / "own.pem"))
    write(tmp_path, lab={"auth": {**AUTH, "auth_url": f"https://127.0.0.1:{port}{path}"}})
    with pytest.raises(
        LabError, match=rf"certificate of 127.0.0.1:{port} is not trusted: self.signed"
    ) as caught:
        glance.list_images(clouds.adapter("lab"))
    assert "cacert" in caught.value.hint


def test_expired_certificate(tmp_path: Path, serve: Any) -> None:
    dates = ["-not_before", "20200101000000Z", "-not_after", "20200201000000Z"]
    try:
        path = certificate(tmp_path / "old.pem", *dates)
    except subprocess.CalledProcessError:
        path = backdated(tmp_path / "old.pem")
    port = serve(path)
    entry = {"auth": {**AUTH, "auth_url": f"https://127.0.0.1:{port}/v3"}, "cacert": f"{path}.crt"}
    write(tmp_path, lab=entry)
    with pytest.raises(
        LabError, match=rf"of 127.0.0.1:{port} is not trusted: certificate has expired"
    ) as caught:
        glance.list_images(clouds.adapter("lab"))
    assert "renewed" in caught.value.hint


def backdated(path: Path) -> Path:
    """For an openssl that only `ca` of can choose the dates."""
    home = path.parent / "ca"
    home.mkdir()
    (home / "index.txt").touch()
    (home / "serial").write_text("01\n")
    (home / "ca.cnf").write_text(
        f"[ca]\ndefault_ca=d\n[d]\ndir={home}\ndatabase={home}/index.txt\nserial={home}/serial\n"
        f"new_certs_dir={home}\ndefault_md=sha256\npolicy=p\nx509_extensions=x\n"
        "[p]\ncommonName=supplied\n[x]\nsubjectAltName=IP:127.0.0.1\nbasicConstraints=CA:TRUE\n"
    )
    request = ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", path, "-subj", "/CN=127.0.0.1"]
    dates = ["-startdate", "20200101000000Z", "-enddate", "20200201000000Z"]
    sign = ["ca", "-batch", "-selfsign", "-config", home / "ca.cnf", "-in", f"{path}.csr", "-keyfile", path]
    for argv in ([*request, "-out", f"{path}.csr"], [*sign, *dates, "-notext", "-out", f"{path}.crt"]):
        subprocess.run(["openssl", *map(str, argv)], check=True, capture_output=True, timeout=60)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path
