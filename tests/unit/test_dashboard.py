"""The dashboard on 127.0.0.1: pages with the consoles' addresses replaced, consoles byte by byte."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

import pytest
import requests

from stacklab import dashboard, namespace
from stacklab.errors import InvalidInput, LabError
from stacklab.plan import Plan


class Horizon(BaseHTTPRequestHandler):
    """A page with a console in it, a redirect with two cookies, what a form sends."""

    def do_GET(self) -> None:
        if self.path == "/horizon/":
            page = f'<iframe src="http://10.0.0.11:{dashboard.CONSOLE_PORT}/vnc.html?token=x"></iframe>'
            self._send(200, page, "text/html; charset=utf-8")
        elif self.path == "/horizon/plain":
            self._send(200, f"http://10.0.0.11:{dashboard.CONSOLE_PORT}/", "text/plain")
        else:
            self.send_response(302)
            # Django's redirects are relative, Apache's are not.
            self.send_header(
                "Location", "/horizon/" if self.path == "/horizon/login" else "http://10.0.0.11/horizon/"
            )
            self.send_header("Set-Cookie", "a=1; Path=/")
            self.send_header("Set-Cookie", "b=2; Path=/")
            self.end_headers()

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._send(
            200,
            f"{sent} {self.headers['Cookie']} {self.headers['Referer']} {self.headers['Host']}",
            "text/plain",
        )

    def _send(self, code: int, text: str, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


class Console(socketserver.BaseRequestHandler):
    """Says back what it gets, in capitals."""

    def handle(self) -> None:
        while content := self.request.recv(1024):
            self.request.sendall(content.upper())


@contextmanager
def served(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]  # type: ignore[index, misc]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def url(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The dashboard's address; the controller's ports are this machine's."""
    monkeypatch.setattr(namespace, "entered", lambda plan: nullcontext())
    monkeypatch.setenv("NO_PROXY", "*")
    real = socket.create_connection

    def here(address: tuple[str, int], *rest: object, **more: object) -> socket.socket:
        host, port = address
        return real(("127.0.0.1" if host == "10.0.0.11" else host, ports.get(port, port)), *rest, **more)  # type: ignore[arg-type]

    with (
        served(HTTPServer(("127.0.0.1", 0), Horizon)) as web,
        served(socketserver.TCPServer(("127.0.0.1", 0), Console)) as console,
    ):
        ports = {dashboard.HTTP_PORT: web, dashboard.CONSOLE_PORT: console}
        monkeypatch.setattr(socket, "create_connection", here)
        with dashboard.forwarded(two_node) as found:
            yield found


def console_of(url: str) -> tuple[str, int]:
    at = urlsplit(requests.get(url, timeout=10).text.split('"')[1])
    assert at.hostname is not None
    assert at.port is not None
    return at.hostname, at.port


def test_a_page_and_its_console(url: str) -> None:
    host, port = console_of(url)
    assert host == "127.0.0.1"
    with socket.create_connection((host, port), timeout=10) as console:
        for text in (b"frame", b"buffer"):
            console.sendall(text)
            assert console.recv(1024) == text.upper()


def test_only_pages_are_changed(url: str) -> None:
    assert requests.get(f"{url}plain", timeout=10).text == f"http://10.0.0.11:{dashboard.CONSOLE_PORT}/"


def test_redirects_cookies_forms(url: str) -> None:
    session = requests.Session()
    answer = session.get(f"{url}login", timeout=10, allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/horizon/")
    assert session.cookies.get_dict() == {"a": "1", "b": "2"}
    posted = session.post(f"{url}login", data={"user": "demo"}, headers={"Referer": url}, timeout=10)
    # As from the controller's own pages: its web server knows itself by no other name.
    assert posted.text == "user=demo a=1; b=2 http://10.0.0.11/horizon/ 10.0.0.11"
    answer = requests.get(url.removesuffix("/"), timeout=10, allow_redirects=False)
    assert answer.headers["Location"] == url


def test_a_dashboard_that_is_away(two_node: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "entered", lambda plan: nullcontext())
    monkeypatch.setenv("NO_PROXY", "*")

    def refused(*_: object, **__: object) -> socket.socket:
        raise ConnectionRefusedError("nobody listens")

    with dashboard.forwarded(two_node) as found:
        monkeypatch.setattr("http.client.socket.create_connection", refused)
        with socket.socket() as direct:
            direct.connect(("127.0.0.1", urlsplit(found).port or 0))
            direct.sendall(b"GET /horizon/ HTTP/1.0\r\n\r\n")
            answer = b""
            while content := direct.recv(4096):
                answer += content
    assert answer.startswith(b"HTTP/1.0 502 ")
    assert b"nobody listens" in answer


def test_a_port_that_is_taken(two_node: Plan) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(LabError, match=f"cannot listen on 127.0.0.1:{port}"),
            dashboard.forwarded(two_node, port),
        ):
            pass


@pytest.mark.parametrize("text", ["abc", "1.5", "65536", "-1", "", "٣"])
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"port: .* is none"):
        dashboard.port(text)


def test_ports() -> None:
    assert [dashboard.port(text) for text in ("0", "8080", "65535")] == [0, 8080, 65535]
