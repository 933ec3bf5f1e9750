"""A proxy on 127.0.0.1 between a client and Glance that counts, and breaks what a test wants broken."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["cut", "lost", "hold", "stall", "swallow", "answer", "flip", "resize", "call"]

_BLOCK = 65536


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that `match` is found in ("PUT /v2/…").

    cut: the connection breaks once `at` of the body (0 to 1) has gone up. lost: Glance gets all, its
    answer gets lost. hold: so too, but the connection stays. stall: from `at` on nothing is read any
    more, nor the connection closed. swallow: from `at` on all is read but goes nowhere. answer: `code`
    without Glance having been asked. flip: one bit changes on the way. resize: the header says one byte
    more. call: `then` is called at `at`.
    """

    kind: Kind
    at: float = 0.5
    times: int = 1
    match: str = r"^PUT .*/(file|stage) "
    code: int = 500
    headers: str = ""
    text: str = "said by the test"
    then: Callable[[], None] = lambda: None


@dataclass
class Request:
    """What passed: the line it began with, and the bytes of its body that came from the client."""

    line: str
    body: int = 0


class _Cut(Exception):
    pass


@dataclass
class Proxy:
    """Requests one by one, each over a connection of its own. `pace` in bytes a second, 0: at once.

    `most_at_once`: how many uploads were under way at the same time. `held`: Glance has given an
    answer that is held back.
    """

    target: int
    faults: list[Fault] = field(default_factory=list)
    pace: float = 0.0
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._puts = self.most_at_once = 0
        self._closed = threading.Event()
        self.held = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def puts(self) -> list[str]:
        """The paths that data was sent to."""
        return [one.line.split()[1] for one in self.requests if one.line.startswith("PUT ")]

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return sum(one.body for one in self.requests)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, _Cut):
            self._pass(client)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _fault(self, line: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, line):
                    fault.times -= 1
                    return fault
        return None

    def _pass(self, client: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            block = client.recv(_BLOCK)
            if not block:
                return
            data += block
        head, _, data = data.partition(b"\r\n\r\n")
        line = head.split(b"\r\n", 1)[0].decode()
        found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        size = int(found[1]) if found else 0
        request = Request(line)
        self.requests.append(request)
        fault = self._fault(line)
        if fault and fault.kind == "answer":
            self._answer(client, fault, request, size, data)
            return
        if fault and fault.kind == "resize":
            head = re.sub(rb"(?i)(x-openstack-image-size: *)\d+", rb"\g<1>" + str(size + 1).encode(), head)
        server = socket.create_connection(("127.0.0.1", self.target))
        self._sockets.append(server)
        head = re.sub(rb"(?i)\r\nconnection: *[^\r]*", b"", head) + b"\r\nConnection: close\r\n\r\n"
        server.sendall(head)
        kind = fault.kind if fault else ""
        down = threading.Thread(target=self._down, args=(server, client, kind), daemon=True)
        down.start()
        self._count(line, 1)
        try:
            self._up(client, server, fault, request, size, data)
        except _Cut:
            for end in (server, client):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            raise
        finally:
            self._count(line, -1)
        down.join()

    def _count(self, line: str, change: int) -> None:
        with self._lock:
            self._puts += change if line.startswith("PUT ") else 0
            self.most_at_once = max(self.most_at_once, self._puts)

    def _up(
        self,
        client: socket.socket,
        server: socket.socket,
        fault: Fault | None,
        request: Request,
        size: int,
        data: bytes,
    ) -> None:
        kind = fault.kind if fault else ""
        limit = int(size * fault.at) if fault else size
        start, called = time.monotonic(), False
        while True:
            if fault and request.body + len(data) >= limit and not called:
                if kind == "cut":
                    server.sendall(data[: limit - request.body])
                    raise _Cut
                if kind == "stall":
                    self._closed.wait()
                    raise _Cut
                called = True
                if kind == "call":
                    fault.then()
                if kind == "flip" and data:
                    data = data[:-1] + bytes([data[-1] ^ 1])
            request.body += len(data)
            if kind != "swallow" or request.body < limit:
                server.sendall(data)
            if request.body >= size:
                break
            if self.pace:
                time.sleep(max(0.0, start + request.body / self.pace - time.monotonic()))
            data = client.recv(min(_BLOCK, size - request.body))
            if not data:
                raise _Cut
        if kind == "swallow":
            self._closed.wait()

    def _down(self, server: socket.socket, client: socket.socket, kind: str) -> None:
        with suppress(OSError):
            while block := server.recv(_BLOCK):
                if kind not in ("lost", "hold"):
                    client.sendall(block)
        if kind == "hold":
            self.held.set()
            self._closed.wait()
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _answer(self, client: socket.socket, fault: Fault, request: Request, size: int, data: bytes) -> None:
        # The rest is read too, or the kernel would reset the connection before the answer is read.
        request.body = len(data)
        while request.body < size and (block := client.recv(_BLOCK)):
            request.body += len(block)
        text = fault.text.encode()
        client.sendall(
            f"HTTP/1.1 {fault.code} Answer\r\nContent-Type: text/plain\r\n{fault.headers}"
            f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode()
            + text
        )
