"""What is secret is never shown."""

from __future__ import annotations

import pytest

from stacklab import redact, ui


@pytest.fixture(autouse=True)
def nothing_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "_secrets", set())


def test_every_place_of_every_secret_is_hidden() -> None:
    redact.add(["s3cret-one", "s3cret-two"])
    assert redact.text("s3cret-one:s3cret-two,s3cret-one\n") == "********:********,********\n"


def test_what_is_not_known_stays() -> None:
    assert redact.text("s3cret-one") == "s3cret-one"


def test_a_short_value_would_hide_ordinary_words() -> None:
    redact.add(["admin", "", "secret"])
    assert redact.text("admin has a secret") == "admin has a ********"


def test_secrets_are_added_to_those_before() -> None:
    redact.add(["first-secret"])
    redact.add(value for value in ["second-secret"])
    assert redact.text("first-secret second-secret") == "******** ********"


def test_step_lines_warnings_and_tables_are_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    redact.add(["s3cret-one"])
    with ui.step("using s3cret-one"):
        ui.warn("s3cret-one is weak")
    ui.table("", ("what",), [("s3cret-one",)])
    said = capsys.readouterr()
    assert "s3cret-one" not in said.err + said.out
    assert said.err.splitlines()[:2] == ["using ********", "  warning: ******** is weak"]
    assert "********" in said.out
