"""Packstack's answer file: written whole from a topology, and checked by the version's own key table.

Packstack lets unknown and missing keys pass, and wrong values of many kinds; the table
(data/packstack/VERSION.json, made by scripts/packstack-keys.py) lets us refuse them first.
"""

from __future__ import annotations

import configparser
import difflib
import ipaddress
import json
import re
import secrets as random_source
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from stacklab.errors import InvalidInput, LabError, Problem
from stacklab.model import Topology

DATA = Path(__file__).resolve().parent / "data" / "packstack"
SSH_KEY = "/root/.ssh/id_ed25519.pub"

SECRET_LENGTH = 24
# puppet-heat takes 16, 24 or 32 characters only (heat::engine, auth_encryption_key).
SECRET_LENGTHS = {"CONFIG_HEAT_AUTH_ENC_KEY": 32}
# Two keys for the password of one Keystone user, "trove" (plugins/trove_850.py).
SAME_SECRET = {"CONFIG_TROVE_NOVA_PW": "CONFIG_TROVE_KS_PW"}
PLACEHOLDER = "PW_PLACEHOLDER"

# Not for a topology to choose; and Packstack has no switch for Keystone and Placement.
OWN_SERVICES = ("client", "mariadb")
UNSWITCHED_SERVICES = ("keystone", "placement")
# Agent: tunnel type, prefix of its keys.
AGENTS = {"openvswitch": ("vxlan", "CONFIG_NEUTRON_OVS_"), "ovn": ("geneve", "CONFIG_NEUTRON_OVN_")}

BRIDGE, PHYSICAL_NETWORK, PROVIDER_NIC, TUNNEL_NIC = "br-ex", "extnet", "eth1", "eth2"
# A userspace Open vSwitch finds VXLAN routes through a bridge of its own only; no dash in its name:
# Packstack looks up the fact ipaddress_br_vxlan where Facter 4 has ipaddress_br-vxlan.
TUNNEL_BRIDGE = "brvxlan"

Choices = dict[str, tuple[str, str]]  # by key: a value, and where it comes from


@dataclass(frozen=True)
class Key:
    """A parameter of one Packstack version.

    `runtime`: what Packstack computes the default from ("address", "host-name", "home",
    "secret"). It reads the key where `condition` (another key's value) holds; `always` is
    false also for conditions that only Packstack can tell.
    """

    name: str
    default: str | None
    runtime: str | None
    options: tuple[str, ...]
    validators: tuple[str, ...]
    masked: bool
    deprecates: tuple[str, ...]
    condition: tuple[str, str] | None
    always: bool


@cache
def table(packstack: str) -> Mapping[str, Key]:
    """Every key of this Packstack version by name, in Packstack's order. LabError where there is no table."""
    try:
        raw = json.loads((DATA / f"{packstack}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in DATA.glob("*.json")))
        raise LabError(
            f"no key table for Packstack {packstack} (there are: {known})",
            hint=f"scripts/packstack-keys.py {packstack}",
        ) from None
    conditions = {group["name"]: group["condition"] for group in raw["groups"]}
    return {row["name"]: _key(row, conditions[row["group"]]) for row in raw["parameters"]}


def _key(row: dict[str, Any], condition: dict[str, str] | None) -> Key:
    return Key(
        name=row["name"],
        default=None if row["default"] is None else str(row["default"]),
        runtime=row["runtime"],
        options=tuple(row["options"]),
        validators=tuple(row["validators"]),
        masked=row["masked"],
        deprecates=tuple(row["deprecates"]),
        condition=(condition["key"], condition["equals"]) if condition and "key" in condition else None,
        always=condition is None,
    )


def secret_names(packstack: str) -> tuple[str, ...]:
    """The keys that need a secret of the lab's own, in Packstack's order.

    Those that Packstack would draw itself. Other masked keys (LDAP, NetApp, subscription
    passwords) belong to something outside the lab and keep their empty default.
    """
    keys = table(packstack).items()
    return tuple(name for name, key in keys if key.runtime == "secret" and name not in SAME_SECRET)


def draw(packstack: str) -> dict[str, str]:
    """A new secret for each of `secret_names`: letters and digits.

    The first is a letter: Packstack replaces a value that reads as a number (process_string_nofloat).
    """
    alphabet = string.ascii_letters + string.digits
    return {
        name: random_source.choice(string.ascii_letters)
        + "".join(random_source.choice(alphabet) for _ in range(SECRET_LENGTHS.get(name, SECRET_LENGTH) - 1))
        for name in secret_names(packstack)
    }


def render(
    topology: Topology, *, packstack: str, secrets: Mapping[str, str], datapath: str, workers: int
) -> str:
    """The text of the answer file: every key of the version, each with a comment on where it comes from.

    `datapath` is Open vSwitch's, "system" or "netdev"; `workers` is a number per service.
    Raises InvalidInput for overrides (`answers` of the topology) and services that cannot be,
    LabError where a secret is missing.
    """
    keys = table(packstack)
    problems = _input_problems(topology, keys)
    chosen = _chosen(topology, keys, datapath, workers)
    for name in set(secret_names(packstack)) & secrets.keys():
        chosen[name] = (secrets[name], "drawn for this lab")
    for name, value in topology.answers.items():
        if value.isprintable():
            chosen[name] = (value, f"topology {topology.name}: answers")
    for name, other in SAME_SECRET.items():
        if other in chosen:
            chosen.setdefault(name, (chosen[other][0], f"stacklab: the same user as {other}"))
    missing = [name for name, key in keys.items() if name not in chosen and key.default is None]
    if missing:
        message = f"Packstack {packstack}: no value for {', '.join(missing)}"
        raise LabError(message, hint="the lab's secrets are incomplete, or of another Packstack version")
    lines = [f"# Answers for Packstack {packstack}, written by stacklab", "[general]"]
    for name, key in keys.items():
        value, source = chosen.get(name, (key.default or "", "Packstack's default"))
        lines += ["", f"# {source}", f"{name}={value}"]
    text = "\n".join(lines) + "\n"
    for problem in check(text, packstack, topology.file):
        path = f"answers.{problem.path}" if problem.path in topology.answers else problem.path
        problems.append(Problem(problem.where, path, problem.message))
    if problems:
        raise InvalidInput(problems)
    return text


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
    problems = [_unknown(file, name, name, keys) for name in found if name not in keys]
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


def _input_problems(topology: Topology, keys: Mapping[str, Key]) -> list[Problem]:
    """What of the topology has no place in an answer file."""
    problems = []
    known = {*_switches(keys).values(), *UNSWITCHED_SERVICES}
    for service in topology.services:
        if service not in known:
            message = f"'{service}' is none of {', '.join(sorted(known))}"
            problems.append(Problem(topology.file, "services", message))
    if topology.network_agent not in AGENTS:
        message = f"'{topology.network_agent}' is none of {', '.join(AGENTS)}"
        problems.append(Problem(topology.file, "network_agent", message))
    for name, value in topology.answers.items():
        if name not in keys:
            problems.append(_unknown(topology.file, f"answers.{name}", name, keys))
        elif not value.isprintable():
            problems.append(Problem(topology.file, f"answers.{name}", "a line break or control character"))
    return problems


def _unknown(file: str, path: str, name: str, keys: Mapping[str, Key]) -> Problem:
    """An unknown key, with the one that was probably meant."""
    newer = [key.name for key in keys.values() if name.upper() in key.deprecates]
    near = newer or difflib.get_close_matches(name.upper(), keys, n=1)
    return Problem(file, path, "is no key of this Packstack" + (f": {near[0]}?" if near else ""))


def _switches(keys: Mapping[str, Key]) -> dict[str, str]:
    """The keys that say whether a service is installed, each with the service's name."""
    found = ((name, re.fullmatch(r"CONFIG_([A-Z]+)_INSTALL", name)) for name in keys)
    return {name: match[1].lower() for name, match in found if match}


def _chosen(topology: Topology, keys: Mapping[str, Key], datapath: str, workers: int) -> Choices:
    """What the topology and stacklab decide, of the keys that the version has."""
    nodes, controller = f"topology {topology.name}: nodes", topology.controller
    chosen = {
        "CONFIG_KEYSTONE_LDAP_URL": (f"ldap://{controller.management}", nodes),
        "CONFIG_SSL_CERT_SUBJECT_MAIL": (f"admin@{controller.fqdn}", nodes),
    }
    for key in keys.values():
        if key.runtime == "address":
            # Packstack's default is the default route's address, which may be a NAT network's.
            chosen.setdefault(key.name, (controller.management, nodes))
        elif key.runtime == "host-name":
            chosen.setdefault(key.name, (controller.fqdn, nodes))
    for name, role in (("CONFIG_COMPUTE_HOSTS", "compute"), ("CONFIG_NETWORK_HOSTS", "network")):
        chosen[name] = (",".join(node.management for node in topology.with_role(role)), nodes)
    for name, service in _switches(keys).items():
        answer = "y" if service in OWN_SERVICES or service in topology.services else "n"
        core = "stacklab: every lab has it"
        chosen[name] = (answer, core if service in OWN_SERVICES else f"topology {topology.name}: services")
    chosen |= _own_choices(workers) | _networking(topology, datapath)
    return {name: choice for name, choice in chosen.items() if name in keys}


def _own_choices(workers: int) -> Choices:
    """What is the same in every lab, each with its reason."""
    return {
        name: (value, f"stacklab: {why}")
        for name, value, why in (
            ("CONFIG_SSH_KEY", SSH_KEY, "the lab's key, on every node already"),
            ("CONFIG_DEFAULT_PASSWORD", "", "every password is drawn by itself"),
            ("CONFIG_SERVICE_WORKERS", str(workers), "a number that fits the node"),
            ("CONFIG_NTP_SERVERS", "", "the golden image has chrony configured"),
            ("CONFIG_DEBUG_MODE", "n", "debug logs fill a small disk"),
            ("CONFIG_AMQP_ENABLE_SSL", "n", "no certificates in a lab"),
            ("CONFIG_HORIZON_SSL", "n", "no certificates in a lab"),
            ("CONFIG_NOVA_LIBVIRT_VIRT_TYPE", "qemu", "nodes have no hardware virtualisation to count on"),
            ("CONFIG_NEUTRON_METERING_AGENT_INSTALL", "n", "nothing in a lab reads it"),
            ("CONFIG_PROVISION_DEMO", "n", "its network is 10.0.0.0/24, a management network"),
            ("CONFIG_PROVISION_TEMPEST", "n", "stacklab verifies the lab itself"),
        )
    }


def _networking(topology: Topology, datapath: str) -> Choices:
    """Neutron: a flat provider network on the second NIC, tunnels on the third."""
    if topology.network_agent not in AGENTS:
        return {}
    agent, from_agent = topology.network_agent, f"topology {topology.name}: network_agent"
    tunnel, prefix = AGENTS[agent]
    return {
        "CONFIG_NEUTRON_L2_AGENT": (agent, from_agent),
        "CONFIG_NEUTRON_ML2_MECHANISM_DRIVERS": (agent, from_agent),
        "CONFIG_NEUTRON_ML2_TYPE_DRIVERS": (f"{tunnel},flat", from_agent),
        "CONFIG_NEUTRON_ML2_TENANT_NETWORK_TYPES": (tunnel, from_agent),
        "CONFIG_NEUTRON_ML2_FLAT_NETWORKS": ("*", "stacklab: the provider network is flat"),
        "CONFIG_NEUTRON_ML2_VNI_RANGES": ("10:100", "stacklab: enough project networks for a lab"),
        f"{prefix}BRIDGE_MAPPINGS": (f"{PHYSICAL_NETWORK}:{BRIDGE}", "stacklab: the provider network"),
        f"{prefix}BRIDGE_IFACES": (f"{BRIDGE}:{PROVIDER_NIC}", "stacklab: the provider NIC"),
        f"{prefix}BRIDGES_COMPUTE": (BRIDGE, "stacklab: instances on the provider network itself"),
        f"{prefix}EXTERNAL_PHYSNET": (PHYSICAL_NETWORK, "stacklab: the provider network"),
        f"{prefix}TUNNEL_IF": (
            TUNNEL_BRIDGE if datapath == "netdev" else TUNNEL_NIC,
            f"stacklab: where the tunnel address is, Open vSwitch datapath {datapath}",
        ),
        # Without it the firewall of every node lets in the tunnel address of the controller only
        # (plugins/neutron_350.py reads the interface of the host that Packstack runs on).
        f"{prefix}TUNNEL_SUBNETS": (topology.tunnel.cidr, f"topology {topology.name}: tunnel"),
    }


def _value_problem(key: Key, values: Mapping[str, str]) -> str:
    """What is wrong with one value; empty if nothing is."""
    value = values[key.name]
    if not value:
        read = key.always or (key.condition and values.get(key.condition[0]) == key.condition[1])
        needed = _NEEDED & set(key.validators) and (read or key.default)
        return "is empty" if needed or key.runtime == "address" or (read and key.runtime) else ""
    if "\n" in value:
        return "goes over several lines"
    if key.runtime == "secret" and value == PLACEHOLDER:
        return "is drawn anew by each run of Packstack"
    rules = [_VALIDATORS[name] for name in key.validators if name in _VALIDATORS]
    rules += [rule for pattern, rule in _KEY_RULES if re.search(pattern, key.name)]
    for rule in rules:
        if message := rule(value, key.options):
            return message
    return ""


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
    (r"^CONFIG_HEAT_AUTH_ENC_KEY$", partial(_like, r"(.{8}){2,4}", "must have 16, 24 or 32 characters")),
)
