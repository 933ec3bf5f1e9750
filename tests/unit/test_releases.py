"""The matrix of releases: what its rows must keep to, and how it is shown."""

from __future__ import annotations

import json
import re

import pytest

from stacklab import answers, distributions, keytable, releases, show_releases
from stacklab.errors import InvalidInput

ROWS = [releases.release(name) for name in releases.names()]
HOSTS = ("vault.centos.org", "mirror.stream.centos.org")


def test_from_rocky_to_epoxy_in_order() -> None:
    assert releases.names() == (
        *("rocky", "stein", "train", "ussuri", "victoria", "wallaby", "xena"),
        *("yoga", "zed", "antelope", "bobcat", "caracal", "dalmatian", "epoxy"),
    )
    versions = [int(row.packstack.split(".")[0]) for row in ROWS]
    assert versions == list(range(13, 27))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row(row: releases.Release) -> None:
    assert row.status in releases.STATUSES
    assert row.enabling == f"centos-release-openstack-{row.name}"
    assert next(iter(row.repositories)) == f"openstack-{row.name}"
    for name, address in row.repositories.items():
        found = re.fullmatch(r"https://([^/]+)/[A-Za-z0-9./_-]+/", address)
        assert found and found[1] in HOSTS and address.endswith(f"/{name}/")
        # What has no mirror any more comes from the vault, pinned.
        assert (found[1] == "vault.centos.org") == (row.python != "3.9")
    assert re.fullmatch("[0-9a-f]{64}", row.sha256) or row.name in ("rocky", "stein")
    keys = keytable.table(row.packstack)
    for agent in row.network_agents:
        assert agent in answers.AGENTS and agent in keys["CONFIG_NEUTRON_L2_AGENT"].options
    assert keys["CONFIG_NEUTRON_L2_AGENT"].default == row.network_agents[0]


def test_what_a_distribution_has_by_default_runs_on_it() -> None:
    for name in distributions.names():
        row = distributions.distribution(name)
        assert name in releases.release(row.release).distributions
        assert set(row.network_agents) <= set(releases.release(row.release).network_agents)


def test_the_last_one_that_centos_7_has_and_the_first_that_it_has_not() -> None:
    assert releases.release("train").distributions == ("centos-7",)
    assert "centos-7" not in releases.release("ussuri").distributions


def test_an_unknown_one_names_those_that_are_known() -> None:
    with pytest.raises(InvalidInput, match=r"release: 'diablo' is not known: take rocky, .* epoxy$"):
        releases.release("diablo")


def test_the_table_says_what_is_end_of_life(capsys: pytest.CaptureFixture[str]) -> None:
    show_releases.releases("", as_json=False)
    said = capsys.readouterr().out
    assert re.search(r"rocky +Rocky +end of life +centos-7 +2\.7 +13\.0\.0 +openvswitch", said)
    assert re.search(r"epoxy +2025\.1 Epoxy +maintained +centos-stream-9, rocky-9 +3\.9 +26\.0\.0", said)


def test_one_release_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    show_releases.releases("stein", as_json=False)
    said = capsys.readouterr().out
    vault = "https://vault.centos.org/7.9.2009/cloud/x86_64/openstack-stein/"
    assert f"repository:       openstack-stein: {vault}\n" in said
    assert "Packstack:        14.0.0, not in the package index\n" in said


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    show_releases.releases("", as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(releases.names())
    assert {row["status"] for row in rows} == set(releases.STATUSES)
