"""A server on 127.0.0.1 that cuts, refuses, changes its mind and lies, as a test tells it to."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = random.Random(1).randbytes(3 << 20)


class Server(ThreadingHTTPServer):
    """Serves `content` under every path, or a `tree` of paths; each of `cuts` ends one answer early.

    A cut is the number of bytes that still come. `asked` lists every path that was asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tree: dict[str, bytes] | None = None
        self.content = CONTENT
        self.tag = '"one"'
        self.cuts: list[int] = []
        self.codes: list[int] = []
        self.ranges: list[str] = []
        self.asked: list[str] = []
        self.takes_ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/image.qcow2"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.path)
        content = server.content if server.tree is None else server.tree.get(self.path)
        wanted = self.headers.get("Range", "")
        server.ranges.append(wanted)
        if server.codes or content is None:
            self.send_response(404 if content is None else server.codes.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", wanted)
        if match and server.takes_ranges and self.headers.get("If-Range") == server.tag:
            start = int(match[1])
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            end = len(content)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.tag)
        self.end_headers()
        if server.cuts and len(content) > 4096:
            self.wfile.write(body[: server.cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def running() -> Iterator[Server]:
    """A server for as long as the block runs."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
