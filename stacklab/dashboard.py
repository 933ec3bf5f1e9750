"""The dashboard and the instances' consoles on 127.0.0.1, for a browser outside the lab's network."""

from __future__ import annotations

import http.client
import re
import selectors
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from stacklab import namespace
from stacklab.errors import InvalidInput, LabError, Problem
from stacklab.plan import Plan

HOST = "127.0.0.1"
HTTP_PORT, CONSOLE_PORT = 80, 6080
BLOCK = 1 << 16  # bytes
SECONDS = 120.0  # Horizon's first page takes a while
# What belongs to one connection is not handed on (RFC 9110, 7.6.1); the body comes unpacked, to be read.
_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("accept-encoding", "content-length"),
    }
)


class _Pages(BaseHTTPRequestHandler):
    """Hands Horizon's pages on, with the consoles' addresses replaced by those on this side."""

    target = ("", 0)
    consoles = (b"", b"")  # what stands in a page, and what has to stand there

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        here, there = (f"http://{host}/" for host in (self.headers.get("Host"), self.target[0]))
        headers = {
            # Apache knows the dashboard by the controller's names only; Django wants forms from there.
            name: self.target[0] if name.lower() == "host" else f"{value}/".replace(here, there)[:-1]
            for name, value in self.headers.items()
            if name.lower() not in _HOP
        }
        try:
            upstream = http.client.HTTPConnection(*self.target, timeout=SECONDS)
            upstream.request(self.command, self.path, body or None, headers)
            answer = upstream.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.send_error(502, f"the dashboard does not answer: {error}")
            return
        finally:
            upstream.close()
        if "text/html" in (answer.getheader("Content-Type") or ""):
            content = content.replace(*self.consoles)
        self.send_response(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value.replace(there, here))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_HEAD = do_PUT = do_PATCH = do_DELETE = _forward

    def log_message(self, format: str, *args: object) -> None:
        """A page is no event to tell of."""


class _Pipe(socketserver.BaseRequestHandler):
    """Hands bytes on, both ways: the console's page and its websocket."""

    target = ("", 0)

    def handle(self) -> None:
        with socket.create_connection(self.target, timeout=SECONDS) as other:
            ends = {self.request: other, other: self.request}
            with selectors.DefaultSelector() as selector:
                for end in ends:
                    selector.register(end, selectors.EVENT_READ)
                while True:
                    for key, _ in selector.select():
                        content = key.fileobj.recv(BLOCK)  # type: ignore[union-attr]
                        if not content:
                            return
                        ends[key.fileobj].sendall(content)


class _Pipes(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def port(text: str) -> int:
    """The port that was asked for. Raises InvalidInput for what is none."""
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise InvalidInput([Problem("", "port", f"{text!r} is none: say a number such as 8080, up to 65535")])
    return int(text)


@contextmanager
def forwarded(plan: Plan, port: int = 0) -> Iterator[str]:
    """Forward for as long as the block runs; gives the dashboard's address on this side.

    `port` on 127.0.0.1 is the dashboard's, 0 takes a free one; the consoles take another free
    one. Raises LabError where the port is taken, and where the lab has no dashboard.
    """
    if "horizon" not in plan.topology.services:
        raise LabError(f"the lab {plan.lab} has no dashboard", hint="give it horizon: `invoke up`")
    controller = plan.topology.controller.management
    try:
        # Made out here, so that they listen here; what they open later, they open in the namespace.
        pages = ThreadingHTTPServer((HOST, port), _Pages)
        pipes = _Pipes((HOST, 0), _Pipe)
    except OSError as error:
        raise LabError(f"cannot listen on {HOST}:{port}: {error.strerror}", hint="say --port") from error
    here = f"http://{HOST}:{pipes.server_address[1]}"
    there = f"http://{controller}:{CONSOLE_PORT}"
    pages.RequestHandlerClass = type(
        "Pages",
        (_Pages,),
        {"target": (controller, HTTP_PORT), "consoles": (there.encode(), here.encode())},
    )
    pipes.RequestHandlerClass = type("Pipe", (_Pipe,), {"target": (controller, CONSOLE_PORT)})
    servers: tuple[socketserver.BaseServer, ...] = (pages, pipes)
    with namespace.entered(plan):
        # A thread is where the thread that started it was, and so are those that it starts.
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.2,), daemon=True).start()
    try:
        yield f"http://{HOST}:{pages.server_address[1]}{plan.dashboard}/"
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
