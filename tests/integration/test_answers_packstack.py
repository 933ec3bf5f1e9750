"""Answer files against the Packstack that is to read them: every release, every topology, every agent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stacklab import answercheck, answers, keytable, plan, releases, services, topology
from stacklab.errors import InvalidInput
from tests.integration.packstack_reader import (
    ABSENT,
    INSTALLABLE,
    LOCAL_ADDRESS,
    PROJECT,
    Reading,
    load,
    read,
)

pytestmark = pytest.mark.integration

VERSION = "21.0.1"
TOPOLOGIES = [path.stem for path in topology.available(PROJECT / "topologies")]


def render(name: str = "two-node", release: str = "zed", agent: str = "openvswitch", **overrides: str) -> str:
    row = releases.release(release)
    lab = replace(topology.load(name, PROJECT / "topologies"), network_agent=agent, answers=overrides)
    lab = plan.settled(lab, row, row.distributions[0], "system")
    secrets = keytable.draw(row.packstack)
    return answers.render(lab, packstack=row.packstack, secrets=secrets, datapath="system", workers=1)


def values(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE))


@pytest.fixture
def packstack(tmp_path: Path) -> Callable[[str], Reading]:
    """Packstack 21.0.1, reading the text of an answer file."""
    return lambda text: read(VERSION, {"answers": text}, tmp_path)["answers"]


def taken_as_it_is(text: str, reading: Reading) -> None:
    assert (reading.error, reading.output) == ("", "")
    written = values(text)
    assert reading.keys == list(written)
    assert len(reading.conf) > 100
    for key, value in reading.conf.items():
        if key == "CONFIG_SSH_KEY" or isinstance(value, bool):
            continue  # replaced by the test; turned into a truth value
        assert str(value) == written[key], key
    assert LOCAL_ADDRESS not in json.dumps(reading.conf)


@pytest.mark.parametrize("version", INSTALLABLE)
def test_packstack_takes_the_files_as_they_are(version: str, tmp_path: Path) -> None:
    release = releases.release(INSTALLABLE[version])
    texts = {
        f"{name}-{agent}": render(name, release.name, agent)
        for name in TOPOLOGIES
        for agent in release.network_agents
    }
    readings = read(version, texts, tmp_path)
    assert len(readings) == len(TOPOLOGIES) * len(release.network_agents)
    for name, reading in readings.items():
        taken_as_it_is(texts[name], reading)


def test_two_versions_are_not_in_the_index() -> None:
    """Their files are checked by their key tables alone, which render does."""
    assert ABSENT == {"13.0.0": "rocky", "14.0.0": "stein"}
    for release in ABSENT.values():
        for name in TOPOLOGIES:
            for agent in releases.release(release).network_agents:
                assert values(render(name, release, agent))["CONFIG_NEUTRON_L2_AGENT"] == agent


@pytest.mark.parametrize("version", INSTALLABLE)
def test_the_table_is_what_packstack_says(version: str, tmp_path: Path) -> None:
    """Loading the plugins anew, as scripts/packstack-keys.py does, gives the table in stacklab/data."""
    table = json.loads((keytable.DATA / f"{version}.json").read_text(encoding="utf-8"))
    assert {"packstack": version, **load(version, tmp_path)} == table


@pytest.mark.parametrize("version", INSTALLABLE)
def test_packstack_takes_every_service_of_its_own(version: str, tmp_path: Path) -> None:
    """With everything on it reads the keys of every group that is about no vendor."""
    text = render(release=INSTALLABLE[version], agent="auto")
    text = re.sub(r"^(CONFIG_[A-Z]+_INSTALL)=n$", r"\1=y", text, flags=re.MULTILINE)
    assert answercheck.check(text, version, "answers.txt") == []
    reading = read(version, {"all": text}, tmp_path)["all"]
    assert (reading.error, reading.output) == ("", "")
    assert len(reading.conf) > 150


def with_needs(name: str) -> set[str]:
    found = [name]
    for one in found:
        found += [need for need in services.table()[one].needs if need not in found]
    return set(found)


@pytest.mark.parametrize("version", INSTALLABLE)
def test_packstack_takes_each_service_that_we_say_it_has(version: str, tmp_path: Path) -> None:
    """One at a time, with what it needs, on every distribution that the release runs on."""
    release = releases.release(INSTALLABLE[version])
    lab = topology.load("two-node", PROJECT / "topologies")
    texts, switches = {}, {}
    for distribution in release.distributions:
        for name, service in services.table().items():
            needs = with_needs(name)
            if any(services.obstacle(need, version, distribution) for need in needs):
                continue
            chosen = services.expand(("beginner", *needs))
            asked = replace(lab, services=chosen, named_services=tuple(needs))
            texts[f"{distribution} {name}"] = answers.of_release(asked, release.name, distribution)
            switches[f"{distribution} {name}"] = service.switch
    assert len(texts) >= 10
    for what, reading in read(version, texts, tmp_path).items():
        taken_as_it_is(texts[what], reading)
        assert not switches[what] or values(texts[what])[switches[what]] == "y", what


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CONFIG_DEBUG_MODE", "maybe"),
        ("CONFIG_NEUTRON_INSTALL", "n"),
        ("CONFIG_NEUTRON_L2_AGENT", "token-ring"),
        ("CONFIG_NEUTRON_ML2_TYPE_DRIVERS", "vxlan,token-ring"),
        ("CONFIG_NEUTRON_OVS_VXLAN_UDP_PORT", "65535"),
        ("CONFIG_NOVA_SCHED_CPU_ALLOC_RATIO", "much"),
        ("CONFIG_NOVA_KS_PW", ""),
    ],
)
def test_both_refuse(key: str, value: str, packstack: Callable[[str], Reading]) -> None:
    with pytest.raises(InvalidInput, match=f"answers.{key}: "):
        render(**{key: value})
    text = render()
    reading = packstack(text.replace(f"{key}={values(text)[key]}\n", f"{key}={value}\n"))
    assert reading.error
    assert f"Parameter {key} failed validation" in reading.output


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CONFIG_NEUTRON_OVS_BRIDGE_MAPPINGS", "extnet"),
        ("CONFIG_MARIADB_HOST", ""),
        ("CONFIG_SERVICE_WORKERS", "many"),
        ("CONFIG_GLANCE_INSTALL", ""),
    ],
)
def test_we_refuse_what_packstack_lets_pass(
    key: str, value: str, packstack: Callable[[str], Reading]
) -> None:
    """Once Packstack refuses it too, the rule of our own can go."""
    text = render()
    wrong = text.replace(f"{key}={values(text)[key]}\n", f"{key}={value}\n")
    assert packstack(wrong).error == ""
    assert [problem.path for problem in answercheck.check(wrong, VERSION, "answers.txt")] == [key]
