"""Checks of single values from a file: each notes its problem and goes on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import Any

from stacklab.errors import Problem

# Regular expressions of whole values; the JSON schema for editors has the same.
HOSTNAME = "[a-z]([a-z0-9-]*[a-z0-9])?"
_LABEL = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
DOMAIN = rf"{_LABEL}(\.{_LABEL})*"
# Linux allows 64 characters for a host name; a node's own name may take 30 of them.
DOMAIN_LENGTH = 32
SIZE = "([0-9]{1,9}) *([MG])i?B"


@dataclass
class Checker:
    """Collects problems. A method whose check fails notes it and returns something empty of the same type."""

    file: str
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: str, message: str) -> None:
        self.problems.append(Problem(self.file, path, message))

    def mapping(
        self, path: str, value: Any, known: Iterable[str] = (), required: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The items of a mapping. With `known` keys, a key without a value counts as left out."""
        if value is None and path:
            value = {}
        if not isinstance(value, dict):
            shown = "an empty file" if value is None else show(value)
            self.problem(path, f"{shown} is not a mapping: write keys and values, such as 'key: value'")
            return {}
        known = tuple(known)
        strange: list[str] = []
        items: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                self.problem(path, f"the key {show(key)} is not text: put it in quotes")
            elif known and key not in known:
                self.problem(join(path, key), unknown("key", key, known))
                strange.append(key)
            elif not known or item is not None:
                items[key] = item
        for key, advice in (required or {}).items():
            # A misspelt key was reported already; that it is missing too would be the same mistake again.
            if key not in items and not difflib.get_close_matches(key, strange, cutoff=0.5):
                self.problem(join(path, key), f"'{key}' is missing: {advice}")
        return items

    def text(self, path: str, value: Any) -> str:
        if isinstance(value, str):
            return value.strip()
        self.problem(path, f"{show(value)} is not text: write a line of text, in quotes if need be")
        return ""

    def choice(self, top: Mapping[str, Any], key: str, known: tuple[str, ...]) -> str:
        """One of the known names; the first is the default."""
        value = top.get(key, known[0])
        if not isinstance(value, str) or value not in known:
            self.problem(key, unknown(key.replace("_", " "), value, known))
        return str(value)

    def choices(self, path: str, value: Any, known: Iterable[str], kind: str) -> tuple[str, ...]:
        """A list of known names; empty when anything is wrong with it."""
        if not isinstance(value, list) or not value:
            shown = "an empty list" if value == [] else f"{show(value)} is not a list"
            self.problem(path, f"{shown}: write a list in brackets, of {', '.join(known)}")
            return ()
        before = len(self.problems)
        for index, item in enumerate(value):
            if not isinstance(item, str) or item not in known:
                self.problem(path, unknown(kind, item, known))
            elif item in value[:index]:
                self.problem(path, f"'{item}' is there more than once: name it once")
        return tuple(value) if len(self.problems) == before else ()

    def hostname(self, path: str, value: Any, longest: int) -> str:
        sound = isinstance(value, str) and re.fullmatch(HOSTNAME, value)
        if value is not None and not (sound and len(value) <= longest):
            rule = f"lowercase letters, digits and inner dashes, a letter first, at most {longest} characters"
            self.problem(path, f"{show(value)} is not a valid name: take {rule}")
        return str(value)

    def domain(self, path: str, value: Any) -> str:
        if not (isinstance(value, str) and len(value) <= DOMAIN_LENGTH and re.fullmatch(DOMAIN, value)):
            rule = (
                f"lowercase letters, digits and inner dashes between dots, at most {DOMAIN_LENGTH} characters"
            )
            self.problem(path, f"{show(value)} is not a valid domain: take {rule}, such as lab.test")
        return str(value)

    def integer(self, path: str, value: Any, least: int, most: int) -> int:
        # YAML's true is an int to Python.
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        self.problem(path, f"{show(value)} is not possible: take a whole number from {least} to {most}")
        return least

    def size(self, path: str, value: Any, least: int) -> int:
        """A size in MiB; `least` in GiB. GB means GiB, as it does for the memory of a machine."""
        match = re.fullmatch(SIZE, value) if isinstance(value, str) else None
        if match:
            mebibytes = int(match[1]) * (1024 if match[2] == "G" else 1)
            if mebibytes < least * 1024:
                self.problem(path, f"{show(value)} is too small: take {least} GB or more")
            return max(mebibytes, least * 1024)
        if not isinstance(value, bool) and re.fullmatch("[0-9]{1,9}", str(value)):
            self.problem(path, f"{show(value)} has no unit: say {value} GB or {value} GiB")
        else:
            self.problem(path, f"{show(value)} is not a size: say a whole number of MB or GB, such as 8 GB")
        return 0

    def network(self, path: str, value: Any) -> IPv4Network | None:
        try:
            if not isinstance(value, str) or "/" not in value:
                raise ValueError
            network = ip_network(value, strict=False)
        except ValueError:
            self.problem(path, f"{show(value)} is not a network: write it such as 10.0.0.0/24")
            return None
        if isinstance(network, IPv6Network):
            self.problem(path, f"{value} is IPv6: take an IPv4 network, such as 10.0.0.0/24")
            return None
        wrong = ""
        if value.split("/")[0] != str(network.network_address):
            wrong = f"has host bits set: {network} was probably meant"
        elif not 8 <= network.prefixlen <= 28:
            size = "small" if network.prefixlen > 28 else "large"
            wrong = f"is too {size}: take a prefix from /8 to /28, such as /24"
        elif network.is_loopback or network.is_multicast or network.is_link_local or network.is_reserved:
            wrong = "has a special purpose: take a private network, such as 10.0.0.0/24"
        if wrong:
            self.problem(path, f"{value} {wrong}")
        return None if wrong else network

    def any_address(self, path: str, value: Any) -> IPv4Address | None:
        """An address of whatever network."""
        try:
            if not isinstance(value, str):
                raise ValueError
            return IPv4Address(value)
        except ValueError:
            self.problem(path, f"{show(value)} is not an IPv4 address: write it such as 10.0.0.11")
            return None

    def address(self, path: str, value: Any, network: IPv4Network | None) -> IPv4Address | None:
        """A host's address. None also when its network is not known, since nothing can be checked then."""
        address = self.any_address(path, value)
        if address is None or network is None:
            return None
        wrong = ""
        if address not in network:
            wrong = f"is not in {network}: take an address of that network"
        elif address in (network[0], network[-1]):
            kind = "network" if address == network[0] else "broadcast"
            wrong = f"is the {kind} address of {network}: take one from {network[1]} to {network[-2]}"
        if wrong:
            self.problem(path, f"{address} {wrong}")
        return None if wrong else address


def unknown(kind: str, value: Any, known: Iterable[str]) -> str:
    known = tuple(known)
    close = difflib.get_close_matches(value, known, n=1, cutoff=0.5) if isinstance(value, str) else []
    advice = f"did you mean '{close[0]}'? " if close else ""
    return f"unknown {kind} {show(value)}: {advice}known: {', '.join(known)}"


def join(path: str, key: str) -> str:
    key = key if re.fullmatch(r"[\w-]{1,60}", key) else show(key)
    return f"{path}.{key}" if path else key


def show(value: Any) -> str:
    """A value for a message: short and on one line, whatever it is; as YAML would have it, not Python."""
    if value is None:
        return "nothing"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    text = repr(value) if isinstance(value, str) else str(value).lower()
    return text if len(text) <= 60 else f"{text[:56]}...'"
