"""Services: names, presets, what a release and a distribution have, and what that means for a lab."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from stacklab import base, files, keytable, plan, services, topology
from stacklab.errors import InvalidInput
from stacklab.model import Topology
from stacklab.plan import Plan

BEGINNER = ("keystone", "glance", "placement", "nova", "neutron", "horizon")
VERSIONS = sorted(path.stem for path in keytable.DATA.glob("*.json"))


def lab(written: str) -> Topology:
    text = (files.PROJECT / "topologies" / "two-node.yaml").read_text(encoding="utf-8")
    return topology.parse(re.sub(r"^services:.*$", f"services: {written}", text, flags=re.M), "lab.yaml")


def test_presets_and_names_together() -> None:
    assert lab("beginner").services == BEGINNER
    assert lab("[beginner, heat]").services == (*BEGINNER, "heat")
    assert lab("[heat, beginner]").services == (*BEGINNER, "heat")
    assert lab("[beginner, heat]").named_services == ("heat",)
    assert lab("storage").services == (*BEGINNER, "swift", "cinder", "manila")


def test_every_preset_is_complete() -> None:
    for name in services.presets():
        assert services.missing(services.expand([name])) == [], name


def test_every_need_is_a_service() -> None:
    for service in services.table().values():
        assert set(service.needs) <= set(services.table()), service.name


@pytest.mark.parametrize("version", VERSIONS)
def test_releases_have_what_the_data_claims(version: str) -> None:
    """A switch of Packstack is there exactly in the versions that services.yaml gives; none is overlooked."""
    keys = keytable.table(version)
    claimed = {
        service.switch
        for service in services.table().values()
        if service.switch and not services.obstacle(service.name, version, "")
    }
    assert claimed <= set(keys)
    beyond = {service.switch for service in services.table().values()} - claimed
    assert not beyond & set(keys)
    known = {*claimed, "CONFIG_CLIENT_INSTALL", "CONFIG_MARIADB_INSTALL"}
    assert {name for name in keys if re.fullmatch("CONFIG_[A-Z]+_INSTALL", name)} <= known


def test_what_a_release_does_not_have() -> None:
    assert services.obstacle("panko", "18.0.1", "") == ""
    assert services.obstacle("panko", "19.0.1", "") == "Packstack had it until 18, this is 19.0.1"
    assert services.obstacle("sahara", "12.0.0", "") == "Packstack has it from 13 on, this is 12.0.0"
    assert services.obstacle("heat", "26.0.0", "") == ""
    assert "Puppet module" in services.obstacle("trove", "21.0.1", "debian-12")
    assert services.obstacle("trove", "21.0.1", "rocky-9") == ""


def test_a_preset_goes_without_what_cannot_be() -> None:
    choice = services.choose(lab("full"), "25.0.0", "debian-12")
    assert "sahara" not in choice.services
    assert "trove" not in choice.services
    assert "heat" in choice.services
    assert choice.problems == ()
    assert "sahara is left out: Packstack had it until 23, this is 25.0.0" in choice.left_out
    assert any(reason.startswith("trove is left out: ") for reason in choice.left_out)


def test_what_is_named_must_be_possible() -> None:
    choice = services.choose(lab("[full, trove, panko]"), "21.0.1", "debian-12")
    assert [str(problem) for problem in choice.problems] == [
        "lab.yaml: services: 'trove' cannot be here: Debian has no Puppet module for it",
        "lab.yaml: services: 'panko' cannot be here: Packstack had it until 18, this is 21.0.1",
    ]


def test_what_needs_something_impossible_is_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    real = services.obstacle
    monkeypatch.setattr(
        services, "obstacle", lambda name, *rest: "no kernel" if name == "heat" else real(name, *rest)
    )
    choice = services.choose(lab("[beginner, heat, magnum]"), "21.0.1", "rocky-9")
    assert [problem.message for problem in choice.problems] == [
        "'heat' cannot be here: no kernel",
        "'magnum' cannot be here: it needs heat",
    ]
    left = services.choose(lab("full"), "26.0.0", "rocky-9").left_out
    assert "magnum is left out: it needs heat" in left


def test_the_plan_has_what_can_be(make_plan: Callable[..., Plan]) -> None:
    make_plan()  # sets the kernel
    resolved = plan.resolve(lab("full"))
    assert "trove" not in resolved.topology.services
    assert "heat" in resolved.topology.services
    assert any(reason.startswith("trove is left out") for reason in resolved.reasons)
    assert plan.from_json(resolved.as_json()) == resolved
    with pytest.raises(InvalidInput, match="'trove' cannot be here"):
        plan.resolve(lab("[full, trove]"))


def test_images_grow_only_for_services_beyond_the_usual() -> None:
    assert services.extras("debian-12", BEGINNER) == ()
    assert services.extras("debian-12", BEGINNER[:2]) == ()
    assert services.extras("debian-12", (*BEGINNER, "heat")) == ("openstack-debian-services",)
    assert services.extras("rocky-9", (*BEGINNER, "heat")) == ()


def test_the_image_of_a_plan_has_them(make_plan: Callable[..., Plan]) -> None:
    assert base.of(make_plan()).extras == ()
    with_heat = base.of(plan.resolve(lab("[beginner, heat]")))
    assert with_heat.extras == ("openstack-debian-services",)
    assert with_heat.elements[-1] == "openstack-debian-services"
    assert base.wanted(with_heat).name != base.wanted(base.of(make_plan())).name


def test_volumes_without_lvm() -> None:
    with_cinder = lab("[beginner, cinder]")
    assert services.answers(with_cinder, "lxc") == {
        "CONFIG_CINDER_BACKEND": "nfs",
        "CONFIG_CINDER_NFS_MOUNTS": "10.0.0.11:/srv/cinder",
    }
    assert services.answers(with_cinder, "libvirt") == {}
    assert services.answers(lab("beginner"), "lxc") == {}


def test_a_topology_answers_for_itself(make_plan: Callable[..., Plan]) -> None:
    from stacklab import packstack

    make_plan()  # sets the kernel
    own = {"CONFIG_CINDER_NFS_MOUNTS": "192.0.2.7:/export"}
    text = packstack.shape(plan.resolve(replace(lab("[beginner, cinder]"), answers=own)))
    assert "\nCONFIG_CINDER_INSTALL=y\n" in text
    assert "\nCONFIG_CINDER_BACKEND=nfs\n" in text
    assert "\nCONFIG_CINDER_NFS_MOUNTS=192.0.2.7:/export\n" in text


def test_names_that_a_person_typed() -> None:
    assert services.known(["beginner", " heat"]) == (*BEGINNER, "heat")
    with pytest.raises(InvalidInput) as caught:
        services.known(["beginner", "heet", "novva"])
    assert [problem.path for problem in caught.value.problems] == ["services: 'heet'", "services: 'novva'"]
