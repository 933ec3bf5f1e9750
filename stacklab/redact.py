"""Keeps a lab's secrets out of everything that is shown or logged."""

from __future__ import annotations

from collections.abc import Iterable

_secrets: set[str] = set()


def add(values: Iterable[str]) -> None:
    """Hide these values from now on. Shorter than 6 characters they would hide ordinary words."""
    _secrets.update(value for value in values if len(value) >= 6)


def text(value: str) -> str:
    """`value` with every known secret replaced."""
    for secret in _secrets:
        value = value.replace(secret, "********")
    return value
