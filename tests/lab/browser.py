"""A real browser without a screen: Chromium by the WebDriver protocol, which needs no library."""

from __future__ import annotations

import base64
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

# No updates, no first-run pages, no requests of the browser's own.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--window-size=1280,800", "--no-proxy-server"),
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id (W3C WebDriver, 12.1)


class Browser:
    """One window. Every call raises for an answer that is no success."""

    def __init__(self, session: str) -> None:
        self._session = session
        self._http = requests.Session()
        self._http.trust_env = False

    def call(self, method: str, path: str, **body: Any) -> Any:
        answer = self._http.request(
            method, f"{self._session}{path}", json=body if method == "POST" else None, timeout=180
        )
        assert answer.ok, answer.text[:500]
        return answer.json()["value"]

    def open(self, url: str) -> None:
        self.call("POST", "/url", url=url)

    def find(self, css: str) -> str:
        found = self.call("POST", "/element", using="css selector", value=css)
        return str(found[ELEMENT])

    def type(self, css: str, text: str) -> None:
        self.call("POST", f"/element/{self.find(css)}/value", text=text)

    def click(self, css: str) -> None:
        self.call("POST", f"/element/{self.find(css)}/click")

    def source(self) -> str:
        return str(self.call("GET", "/source"))

    def wait_for(self, text: str, seconds: float = 90) -> None:
        """Wait until the page has this text in it."""
        end = time.monotonic() + seconds
        while text not in self.source():
            assert time.monotonic() < end, f"the page never showed {text!r}"
            time.sleep(0.5)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Chromium with an empty profile; ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
    base = f"http://127.0.0.1:{port}"
    try:
        http = requests.Session()
        http.trust_env = False
        for _ in range(100):
            try:
                if http.get(f"{base}/status", timeout=5).json()["value"]["ready"]:
                    break
            except requests.ConnectionError:
                time.sleep(0.1)
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        answer = http.post(f"{base}/session", json=wanted, timeout=120)
        assert answer.ok, answer.text[:1000]
        window = Browser(f"{base}/session/{answer.json()['value']['sessionId']}")
        try:
            yield window
        finally:
            window.call("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()
