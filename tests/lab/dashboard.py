"""What a person does with the dashboard: log in, look at an instance and its console."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

from tests.lab.browser import browser
from tests.lab.driving import INVOKE, LIMIT, PROJECT, ending, environment


@contextmanager
def forwarded(lab: str) -> Iterator[str]:
    """`invoke dashboard`, as a person runs it; gives the address that it prints."""
    process = subprocess.Popen(
        [str(INVOKE), "dashboard", "--lab", lab, "--port", "0"],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**environment(), "PYTHONUNBUFFERED": "1"},
        text=True,
    )
    with ending(process, LIMIT):
        assert process.stdout is not None
        line = process.stdout.readline()
        print(line, end="", file=sys.stderr)
        try:
            yield line.split()[0]
        finally:
            process.terminate()
            process.wait()


def look(lab: str, server: str, place: Path) -> Path:
    """Log in as demo, see `server` in the list, open its console; the screenshots are in `place`."""
    rc = (PROJECT / ".stacklab" / "labs" / lab / "openrc-demo").read_text(encoding="utf-8")
    found = re.search(r"OS_PASSWORD='(.+)'", rc)
    assert found is not None
    with forwarded(lab) as url, browser(place / "profile") as window:
        window.open(url)
        window.wait_for('name="username"')
        window.type("#id_username", "demo")
        window.type("#id_password", found[1])
        window.click("#loginBtn")
        window.wait_for("/auth/logout/")
        window.open(f"{url}project/instances/")
        window.wait_for(server)
        picture = place / "dashboard.png"
        window.screenshot(picture)
        link = re.search(rf'href="(/[^"]+/project/instances/[0-9a-f-]+/)"[^>]*>\s*{server}', window.source())
        assert link is not None
        window.open(f"{urljoin(url, link[1])}?tab=instance_details__console")
        window.wait_for("console_embed")
        window.screenshot(place / "console.png")
    return picture
