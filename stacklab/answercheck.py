"""The check of an answer file, by the key table of the Packstack version that is to read it."""

from __future__ import annotations

import configparser
import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping
from functools import partial

from stacklab.errors import Problem
from stacklab.keytable import Key, table

PLACEHOLDER = "PW_PLACEHOLDER"


def check(text: str, packstack: str, file: str) -> list[Problem]:
    """What is wrong with an answer file, by the version's table; `file` names it in the problems.

    What only a node can tell (whether sshd answers, whether a key file is there) is not looked at.
    """
    keys = table(packstack)
    parser = configparser.RawConfigParser()  # as Packstack reads it: no interpolation, case-blind
    try:
        parser.read_string(text)
    except configparser.Error as error:
        # Not the parser's own message: it quotes the line, which may hold a password.
        return [Problem(file, "", f"cannot be read, {_place(error)}")]
    if parser.sections() != ["general"]:
        return [Problem(file, "", "needs the one section [general]")]
    found = {name.upper(): value for name, value in parser.items("general")}
    problems = [unknown(file, name, name, keys) for name in found if name not in keys]
    values = {name: value for name, value in found.items() if name in keys}
    for name, key in keys.items():
        if name not in values:
            problems.append(Problem(file, name, "is missing"))
        elif message := _value_problem(key, values):
            shown = "its value" if key.masked else f"'{values[name]}'"
            problems.append(Problem(file, name, f"{shown} {message}"))
    return problems


def _place(error: configparser.Error) -> str:
    """What kind of error it is, and where."""
    option = str(getattr(error, "option", "")).upper()
    lines = [line for line, _ in getattr(error, "errors", ())] or [getattr(error, "lineno", "?")]
    return f"{type(error).__name__} in line {lines[0]}" + (f": {option}" if option else "")


def unknown(file: str, path: str, name: str, keys: Mapping[str, Key]) -> Problem:
    """An unknown key, with the one that was probably meant."""
    newer = [key.name for key in keys.values() if name.upper() in key.deprecates]
    near = newer or difflib.get_close_matches(name.upper(), keys, n=1)
    return Problem(file, path, "is no key of this Packstack" + (f": {near[0]}?" if near else ""))


def _value_problem(key: Key, values: Mapping[str, str]) -> str:
    """What is wrong with one value; empty if nothing is."""
    value = values[key.name]
    if not value:
        read = key.always or (key.condition and values.get(key.condition[0]) == key.condition[1])
        needed = _NEEDED & set(key.validators) and (read or key.default)
        if backend := _BACKENDS.get(key.name):
            asked = {"CONFIG_CINDER_INSTALL": "y", "CONFIG_CINDER_BACKEND": backend}.items() <= values.items()
            return f"is empty, and CONFIG_CINDER_BACKEND '{backend}' needs it" if asked else ""
        fact = (key.default or "").startswith("%{")
        return "is empty" if needed or fact or key.runtime == "address" or (read and key.runtime) else ""
    if "\n" in value:
        return "goes over several lines"
    if key.runtime == "secret" and value == PLACEHOLDER:
        return "is drawn anew by each run of Packstack"
    rules = [_VALIDATORS[name] for name in key.validators if name in _VALIDATORS]
    rules += [rule for pattern, rule in _KEY_RULES if re.search(pattern, key.name)]
    for rule in rules:
        if message := rule(value, key.options):
            return message
    return _replicas(values) if key.name == "CONFIG_SWIFT_STORAGE_REPLICAS" else ""


def _replicas(values: Mapping[str, str]) -> str:
    """Packstack makes Swift's rings of the controller's devices, a file of its own where none are named."""
    if values.get("CONFIG_SWIFT_INSTALL") != "y":
        return ""
    devices = len([name for name in values.get("CONFIG_SWIFT_STORAGES", "").split(",") if name.strip()]) or 1
    more = int(values["CONFIG_SWIFT_STORAGE_REPLICAS"]) > devices
    return f"is more than {devices}, the number of devices that Packstack makes the rings of" if more else ""


Rule = Callable[[str, tuple[str, ...]], str]


def _each(rule: Rule, value: str, options: tuple[str, ...]) -> str:
    """A rule for every part of a comma-separated value."""
    return next((message for part in value.split(",") if (message := rule(part.strip(), options))), "")


def _one_of(value: str, options: tuple[str, ...]) -> str:
    return "" if value in options else f"is none of {', '.join(options)}"


def _port(value: str, options: tuple[str, ...]) -> str:
    return "" if value.isdecimal() and 0 < int(value) < 65535 else "is no port from 1 to 65534"


def _parses(parse: Callable[[str], object], message: str, value: str, options: tuple[str, ...]) -> str:
    try:
        parse(value)
    except ValueError:
        return message
    return ""


_ip = partial(_parses, ipaddress.ip_address, "is no IP address")
_cidr = partial(_parses, partial(ipaddress.ip_network, strict=False), "is no network like 203.0.113.0/24")


def _host(value: str, options: tuple[str, ...]) -> str:
    labels = re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*", value)
    named = labels and not re.fullmatch(r"[\d.]+", value)
    return "" if named or not _ip(value, options) else "is no address or host name"


def _export(value: str, options: tuple[str, ...]) -> str:
    host, _, path = value.partition(":/")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return "is no export like 10.0.0.41:/path" if _ip(host, options) or not path else ""


def _like(pattern: str, message: str, value: str, options: tuple[str, ...]) -> str:
    return "" if re.fullmatch(pattern, value) else message


def _search(value: str, options: tuple[str, ...]) -> str:
    return "" if any(re.search(option, value) for option in options) else f"is not like {options}"


def _range(value: str, options: tuple[str, ...]) -> str:
    first, _, last = value.partition(":")
    right = first.isdecimal() and last.isdecimal() and int(first) <= int(last)
    return "" if right else "is no range like 10:100"


# Keys that Packstack reads with one backend of Cinder only (plugins/cinder_250.py).
_BACKENDS = {"CONFIG_CINDER_NFS_MOUNTS": "nfs", "CONFIG_CINDER_GLUSTER_MOUNTS": "gluster"}
_NEEDED = {"validate_not_empty", "validate_options", "validate_neutron"}
# Packstack's validators by name. Not here: validate_not_empty (above), and those that need the node
# or python-ldap (validate_file, validate_sshkey, validate_writeable_directory, validate_ldap_*).
_VALIDATORS: Mapping[str, Rule] = {
    "validate_options": _one_of,
    "validate_multi_options": partial(_each, _one_of),
    "validate_neutron": partial(_like, "y", "must be y: Packstack has no other networking"),
    "validate_integer": partial(_like, r"[+-]?\d+", "is no whole number"),
    "validate_float": partial(_like, r"\d+(\.\d*)?", "is no number from 0 up"),
    "validate_port": _port,
    "validate_ip": _ip,
    "validate_multi_ip": partial(_each, lambda value, options: _ip(value.split("/")[0], options)),
    "validate_regexp": _search,
    "validate_multi_regexp": partial(_each, _search),
    "validate_ssh": _host,
    "validate_multi_ssh": partial(_each, _host),
    "validate_ping": _host,
    "validate_multi_ping": partial(_each, _host),
    "validate_export": _export,
    "validate_multi_export": partial(_each, _export),
    "validate_storage": partial(_like, r"/.*", "is no path of a device"),
    "validate_storage_size": partial(_like, r"\d+[GgMmKk]", "is no size like 2G"),
}

# What Packstack finds late, or never; by a pattern of the key's name.
_PAIR = partial(_each, partial(_like, r"[^:\s]+:[^:\s]+", "needs name:name pairs, comma between"))
_KEY_RULES: tuple[tuple[str, Rule], ...] = (
    (r"_(BRIDGE|INTERFACE)_MAPPINGS$|_BRIDGE_IFACES$", _PAIR),
    (r"_FLOATRANGE$", _cidr),
    (r"_TUNNEL_SUBNETS$", partial(_each, _cidr)),
    (r"_(VNI|TUNNEL_ID)_RANGES$", partial(_each, _range)),
    (r"_TUNNEL_IF$", partial(_like, r"[^-\s]+", "has a dash: Packstack cannot find its address")),
    (r"^CONFIG_SERVICE_WORKERS$", partial(_like, r"[1-9]\d*|%\{.+\}", "is no number from 1 up")),
    (r"_(DB_PURGE|TOKEN_ROTATE)_ENABLE$", _one_of),
    (r"_VIRT_TYPE$", partial(_like, r"qemu|kvm|%\{.+\}", "is none of qemu, kvm")),
    (r"^CONFIG_CINDER_VOLUMES_SIZE$", partial(_like, r"\d+G", "is no size like 20G")),
    (r"^CONFIG_SWIFT_STORAGE_(ZONES|REPLICAS)$", partial(_like, r"[1-9]\d*", "is no number from 1 up")),
    (r"^CONFIG_HEAT_AUTH_ENC_KEY$", partial(_like, r"(.{8}){2,4}", "must have 16, 24 or 32 characters")),
)
