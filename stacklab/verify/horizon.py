"""Horizon: demo logs in by the form, as a browser does, and sees the instances."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stacklab import cloud, packstack
from stacklab.errors import NotHealthy
from stacklab.verify.context import Context, Row, Timer, until

if TYPE_CHECKING:
    import requests


def check(context: Context) -> Iterator[Row]:
    """Log in with the form's CSRF token, refuse a wrong password, and find the instances listed."""
    import requests

    timer, limit = Timer(), context.limit(120)
    base = f"http://{context.controller}{context.plan.dashboard}"
    password = packstack.secrets(context.plan)["DEMO_PASSWORD"]
    if _login(requests.Session(), base, "wrong-" + password[:4], limit):
        raise NotHealthy("Horizon let demo in with a wrong password")
    session = requests.Session()
    if not _login(session, base, password, limit):
        raise NotHealthy(
            "Horizon does not let demo in",
            hint="on the controller: /var/log/horizon and /var/log/apache2/error.log",
        )
    yield timer.row("Horizon", "demo logged in; a wrong password is refused")
    page = _page(session, f"{base}/project/instances/", limit)
    unseen = [server.name for server in context.servers.values() if server.name not in page.text]
    if page.status_code != 200 or unseen:
        raise NotHealthy(f"Horizon's list ({page.status_code}) lacks {', '.join(unseen)}")
    yield timer.row("Horizon's instances", ", ".join(server.name for server in context.servers.values()))


def _page(session: requests.Session, url: str, limit: float) -> requests.Response:
    """A page, asked for again while Apache gives up on it: on emulated nodes the first one takes minutes."""
    answers: list[requests.Response] = []

    def asked() -> str:
        answers.append(session.get(url, timeout=limit))
        return "" if answers[-1].status_code == 504 else "answer"

    until(f"answer from {url}", limit, asked)
    return answers[-1]


def _login(session: requests.Session, base: str, password: str, limit: float) -> bool:
    session.trust_env = False
    form = _page(session, f"{base}/auth/login/", limit)
    # In single quotes by Django 1.11, which CentOS 7 has.
    hidden = re.findall(r"""<input type=(["'])hidden\1 name=\1(\w+)\1 value=\1(.*?)\1""", form.text)
    fields = {name: value for _, name, value in hidden}
    fields |= {"username": cloud.DEMO, "password": password}
    answer = session.post(
        f"{base}/auth/login/", data=fields, headers={"Referer": f"{base}/auth/login/"}, timeout=limit
    )
    if answer.status_code == 504:
        answer = _page(session, answer.url, limit)
    return answer.status_code == 200 and "/auth/logout/" in answer.text


def sweep(context: Context) -> None:
    """A session makes nothing that stays."""
