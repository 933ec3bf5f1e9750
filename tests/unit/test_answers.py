"""The answer file: what a topology becomes, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stacklab import answercheck, answers, keytable, packstack, releases
from stacklab import topology as topologies
from stacklab.errors import InvalidInput, LabError
from stacklab.model import Network, Node, ProviderNetwork, TenantNetwork, Topology
from stacklab.plan import resolve

VERSION = "21.0.1"
FILE = "topologies/two-node.yaml"


def node(name: str, roles: tuple[str, ...], last: int) -> Node:
    return Node(name, f"{name}.lab.test", roles, f"10.0.0.{last}", f"10.0.1.{last}", 2, 4096, 20)


TWO_NODE = Topology(
    name="two-node",
    description="",
    file=FILE,
    domain="lab.test",
    provider="auto",
    distribution="auto",
    release="auto",
    management=Network("10.0.0.0/24", "10.0.0.1"),
    provider_network=ProviderNetwork("203.0.113.0/24", "203.0.113.1", "203.0.113.101", "203.0.113.250"),
    tenant=TenantNetwork("172.16.1.0/24", "172.16.1.1"),
    tunnel=Network("10.0.1.0/24", "10.0.1.1"),
    nodes=(node("controller", ("controller", "network"), 11), node("compute1", ("compute",), 31)),
    services=("keystone", "glance", "placement", "nova", "neutron"),
    network_agent="openvswitch",
)
SECRETS = {name: "s" * keytable.SECRET_LENGTHS.get(name, 24) for name in keytable.secret_names(VERSION)}


def render(topology: Topology = TWO_NODE, datapath: str = "netdev") -> str:
    return answers.render(topology, packstack=VERSION, secrets=SECRETS, datapath=datapath, workers=2)


def lines(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE)


def comment(text: str, key: str) -> str:
    found = re.search(rf"^# (.*)\n{key}=", text, re.MULTILINE)
    assert found
    return found[1]


def refused(**overrides: str) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        render(replace(TWO_NODE, answers=overrides))
    return [str(problem) for problem in caught.value.problems]


def problems(text: str) -> list[str]:
    return [str(problem) for problem in answercheck.check(text, VERSION, "a.txt")]


def with_value(key: str, value: str) -> str:
    text, count = re.subn(rf"^{key}=.*$", f"{key}={value}", render(), flags=re.MULTILINE)
    assert count == 1
    return text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CONFIG_CONTROLLER_HOST", "10.0.0.11"),
        ("CONFIG_COMPUTE_HOSTS", "10.0.0.31"),
        ("CONFIG_NETWORK_HOSTS", "10.0.0.11"),
        ("CONFIG_AMQP_HOST", "10.0.0.11"),
        ("CONFIG_MARIADB_HOST", "10.0.0.11"),
        ("CONFIG_REDIS_HOST", "10.0.0.11"),
        ("CONFIG_STORAGE_HOST", "10.0.0.11"),
        ("CONFIG_SAHARA_HOST", "10.0.0.11"),
        ("CONFIG_KEYSTONE_LDAP_URL", "ldap://10.0.0.11"),
        ("CONFIG_SSL_CERT_SUBJECT_CN", "controller.lab.test"),
        ("CONFIG_SSH_KEY", "/root/.ssh/id_ed25519.pub"),
        ("CONFIG_SERVICE_WORKERS", "2"),
        ("CONFIG_DEFAULT_PASSWORD", ""),
        ("CONFIG_NTP_SERVERS", ""),
        ("CONFIG_DEBUG_MODE", "n"),
        ("CONFIG_PROVISION_DEMO", "n"),
        ("CONFIG_PROVISION_TEMPEST", "n"),
        ("CONFIG_MARIADB_INSTALL", "y"),
        ("CONFIG_CLIENT_INSTALL", "y"),
        ("CONFIG_GLANCE_INSTALL", "y"),
        ("CONFIG_NOVA_INSTALL", "y"),
        ("CONFIG_NEUTRON_INSTALL", "y"),
        ("CONFIG_HORIZON_INSTALL", "n"),
        ("CONFIG_CINDER_INSTALL", "n"),
        ("CONFIG_SWIFT_INSTALL", "n"),
        ("CONFIG_CEILOMETER_INSTALL", "n"),
        ("CONFIG_AODH_INSTALL", "n"),
        ("CONFIG_NOVA_LIBVIRT_VIRT_TYPE", "qemu"),
        ("CONFIG_NEUTRON_L2_AGENT", "openvswitch"),
        ("CONFIG_NEUTRON_ML2_MECHANISM_DRIVERS", "openvswitch"),
        ("CONFIG_NEUTRON_ML2_TYPE_DRIVERS", "vxlan,flat"),
        ("CONFIG_NEUTRON_ML2_TENANT_NETWORK_TYPES", "vxlan"),
        ("CONFIG_NEUTRON_ML2_FLAT_NETWORKS", "*"),
        ("CONFIG_NEUTRON_ML2_VNI_RANGES", "10:100"),
        ("CONFIG_NEUTRON_OVS_BRIDGE_MAPPINGS", "extnet:br-ex"),
        ("CONFIG_NEUTRON_OVS_BRIDGE_IFACES", "br-ex:eth1"),
        ("CONFIG_NEUTRON_OVS_BRIDGES_COMPUTE", "br-ex"),
        ("CONFIG_NEUTRON_OVS_EXTERNAL_PHYSNET", "extnet"),
        ("CONFIG_NEUTRON_OVS_TUNNEL_IF", "brvxlan"),
        ("CONFIG_NEUTRON_OVS_TUNNEL_SUBNETS", "10.0.1.0/24"),
        ("CONFIG_NEUTRON_METERING_AGENT_INSTALL", "n"),
        ("CONFIG_NOVA_SCHED_CPU_ALLOC_RATIO", "16.0"),
    ],
)
def test_a_two_node_lab_gets(key: str, value: str) -> None:
    assert dict(lines(render()))[key] == value


def test_every_key_of_the_version_is_there_once_and_in_its_order() -> None:
    assert [key for key, _ in lines(render())] == list(keytable.table(VERSION))


def test_the_text_depends_on_its_inputs_alone_and_passes_the_check() -> None:
    assert render() == render()
    assert problems(render()) == []


def test_every_value_says_where_it_comes_from() -> None:
    text = render(replace(TWO_NODE, answers={"CONFIG_DEBUG_MODE": "y"}))
    assert comment(text, "CONFIG_COMPUTE_HOSTS") == "topology two-node: nodes"
    assert comment(text, "CONFIG_HORIZON_INSTALL") == "topology two-node: services"
    assert comment(text, "CONFIG_KEYSTONE_ADMIN_PW") == "drawn for this lab"
    assert comment(text, "CONFIG_NOVA_SCHED_RAM_ALLOC_RATIO") == "Packstack's default"
    assert comment(text, "CONFIG_DEBUG_MODE") == "topology two-node: answers"
    assert comment(text, "CONFIG_PROVISION_DEMO").startswith("stacklab: ")


def test_several_nodes_of_a_role_are_a_comma_list() -> None:
    topology = replace(TWO_NODE, nodes=(*TWO_NODE.nodes, node("compute2", ("compute", "network"), 32)))
    values = dict(lines(render(topology)))
    assert values["CONFIG_COMPUTE_HOSTS"] == "10.0.0.31,10.0.0.32"
    assert values["CONFIG_NETWORK_HOSTS"] == "10.0.0.11,10.0.0.32"


def test_no_address_is_left_to_packstack() -> None:
    local = [name for name, key in keytable.table(VERSION).items() if key.runtime == "address"]
    values = dict(lines(render()))
    assert len(local) == 9
    assert all("10.0.0." in values[name] for name in local)


def test_services_and_the_kernel_datapath() -> None:
    topology = replace(TWO_NODE, services=(*TWO_NODE.services, "horizon"))
    values = dict(lines(render(topology, datapath="system")))
    assert values["CONFIG_HORIZON_INSTALL"] == "y"
    # Empty: Packstack then takes each node's own address, the management one.
    assert values["CONFIG_NEUTRON_OVS_TUNNEL_IF"] == values["CONFIG_NEUTRON_OVS_TUNNEL_SUBNETS"] == ""


def test_ovn_uses_its_own_keys() -> None:
    values = dict(lines(render(replace(TWO_NODE, network_agent="ovn"))))
    assert values["CONFIG_NEUTRON_L2_AGENT"] == "ovn"
    assert values["CONFIG_NEUTRON_ML2_TYPE_DRIVERS"] == "geneve,flat"
    assert values["CONFIG_NEUTRON_OVN_BRIDGE_IFACES"] == "br-ex:eth1"


def test_linuxbridge_has_the_nic_itself() -> None:
    values = dict(lines(render(replace(TWO_NODE, network_agent="linuxbridge"))))
    assert (
        values["CONFIG_NEUTRON_L2_AGENT"] == values["CONFIG_NEUTRON_ML2_MECHANISM_DRIVERS"] == "linuxbridge"
    )
    assert values["CONFIG_NEUTRON_LB_INTERFACE_MAPPINGS"] == "extnet:eth1"
    assert values["CONFIG_NEUTRON_OVS_BRIDGE_IFACES"] == ""


@pytest.mark.parametrize("virt_type", ["kvm", "qemu"])
def test_what_instances_run_by(virt_type: str) -> None:
    text = answers.render(
        TWO_NODE,
        packstack=VERSION,
        secrets=SECRETS,
        datapath="system",
        workers=1,
        virt_type=virt_type,
    )
    # Packstack's own guess is qemu in any virtual machine.
    assert dict(lines(text))["CONFIG_NOVA_LIBVIRT_VIRT_TYPE"] == virt_type


def test_nodes_that_are_installed_already_are_excluded() -> None:
    text = answers.render(
        replace(TWO_NODE, nodes=(*TWO_NODE.nodes, node("compute2", ("compute",), 32))),
        packstack=VERSION,
        secrets=SECRETS,
        datapath="netdev",
        workers=1,
        installed=TWO_NODE.nodes,
    )
    values = dict(lines(text))
    assert values["EXCLUDE_SERVERS"] == "10.0.0.11,10.0.0.31"
    assert values["CONFIG_COMPUTE_HOSTS"] == "10.0.0.31,10.0.0.32"
    assert comment(text, "EXCLUDE_SERVERS") == "stacklab: they are installed already"
    assert dict(lines(render()))["EXCLUDE_SERVERS"] == ""


TOPOLOGIES = Path(__file__).parents[2] / "topologies"


def pairs() -> list[tuple[str, str]]:
    names = [path.stem for path in topologies.available(TOPOLOGIES)]
    return [(name, release) for name in names for release in releases.names()]


@pytest.mark.parametrize(("name", "release"), pairs())
def test_every_release_has_a_file_for_every_topology(name: str, release: str) -> None:
    lab = topologies.load(name, TOPOLOGIES)
    text = answers.of_release(lab, release)
    values, row = dict(lines(text)), releases.release(release)
    assert list(values) == list(keytable.table(row.packstack))
    # Where it runs on Debian, that is what a lab would be.
    agent = "openvswitch" if "debian-12" in row.distributions else row.network_agents[0]
    assert values["CONFIG_NEUTRON_L2_AGENT"] == agent
    computes = [node.management for node in lab.with_role("compute")]
    assert values["CONFIG_COMPUTE_HOSTS"].split(",") == computes
    assert values["CONFIG_PROVISION_DEMO"] == "n"
    own = {node.management for node in lab.nodes}
    elsewhere = ("CONFIG_VCENTER_HOST", "CONFIG_TEMPEST_HOST")
    places = [key for key in values if re.fullmatch(r"CONFIG_[A-Z]+_HOSTS?", key) and key not in elsewhere]
    assert len(places) >= 7
    for key in places:
        assert set(values[key].split(",")) <= own, key


@pytest.mark.parametrize("release", releases.names())
def test_what_packstack_would_do_wrong_is_not_left_to_it(release: str) -> None:
    """Each of these ends in a lab that does not work, or works by chance; every version has them."""
    lab = topologies.load("two-node", TOPOLOGIES)
    text = answers.of_release(lab, release)
    values = dict(lines(text))
    # Its demo network is 10.0.0.0/24, a management network.
    assert values["CONFIG_PROVISION_DEMO"] == values["CONFIG_PROVISION_TEMPEST"] == "n"
    # Its time servers would replace the image's chrony.conf; facter 4 hides what it looks subnets up by.
    assert (values["CONFIG_NTP_SERVERS"], values["CONFIG_USE_SUBNETS"]) == ("", "n")
    # EPEL's Erlang breaks RDO's RabbitMQ; its repositories are the image's.
    assert "CONFIG_USE_EPEL" not in values and values["CONFIG_REPO"] == ""
    # The default route's address is a NAT network's in a VM: no address but the lab's own.
    addresses = set(re.findall(r"(?<![\d.])\d+\.\d+\.\d+\.\d+(?![\d.])", "\n".join(values.values())))
    assert addresses - {"224.0.0.1"} <= {"10.0.0.11", "10.0.0.31", "172.24.4.0", "172.24.4.1", "127.0.0.1"}
    # Without one for each node's own interface: its address, so that every node lets every other in.
    agent = {"ovn": "OVN", "openvswitch": "OVS"}[values["CONFIG_NEUTRON_L2_AGENT"]]
    assert (
        values[f"CONFIG_NEUTRON_{agent}_TUNNEL_IF"] == values[f"CONFIG_NEUTRON_{agent}_TUNNEL_SUBNETS"] == ""
    )
    # br-ex has the provider NIC, on compute nodes too.
    assert values[f"CONFIG_NEUTRON_{agent}_BRIDGE_IFACES"] == "br-ex:eth1"
    assert values[f"CONFIG_NEUTRON_{agent}_BRIDGES_COMPUTE"] == "br-ex"
    # One process a CPU and service, and 128 connections to the database for each, are too many for a lab.
    assert values["CONFIG_SERVICE_WORKERS"] == "1"
    # Drawn once for the lab: a run with other ones ends in MariaDB's error 1045.
    assert answercheck.PLACEHOLDER not in text
    drawn = [values[name] for name in keytable.secret_names(releases.release(release).packstack)]
    assert len(set(drawn)) == len(drawn) and all(len(value) >= 24 for value in drawn)


def test_a_network_node_of_its_own() -> None:
    values = dict(lines(answers.of_release(topologies.load("three-node", TOPOLOGIES), "epoxy")))
    assert values["CONFIG_CONTROLLER_HOST"] == "10.0.0.11"
    assert values["CONFIG_NETWORK_HOSTS"] == "10.0.0.21"
    assert values["CONFIG_COMPUTE_HOSTS"] == "10.0.0.31"


@pytest.mark.parametrize(
    ("changes", "release", "distribution", "message"),
    [
        ({}, "epoxy", "centos-7", "release: epoxy does not run on centos-7: take centos-stream-9, rocky-9"),
        ({"network_agent": "ovn"}, "zed", "debian-12", "network_agent: zed on debian-12 has no ovn"),
        (
            {"services": (*TWO_NODE.services, "panko"), "named_services": ("panko",)},
            "yoga",
            "auto",
            "services: 'panko' cannot be here",
        ),
    ],
)
def test_what_a_release_cannot_have(
    changes: dict[str, Any], release: str, distribution: str, message: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        answers.of_release(replace(TWO_NODE, **changes), release, distribution)
    assert f"{FILE}: {message}" in str(caught.value)


def test_the_release_is_the_topologys_or_the_distributions() -> None:
    def version(lab: Topology, distribution: str = "auto") -> str:
        return answers.of_release(lab, distribution=distribution).splitlines()[0]

    train = replace(TWO_NODE, release="train")
    assert version(train, "centos-7") == "# Answers for Packstack 15.1.0, written by stacklab"
    assert "21.0.1" in version(TWO_NODE) and "21.0.1" in version(TWO_NODE, "debian-12")


@pytest.mark.parametrize(
    ("changes", "provider", "message"),
    [
        (
            {"release": "epoxy"},
            "auto",
            "release: epoxy does not run on debian-12: take centos-stream-9, rocky-9",
        ),
        ({"distribution": "rocky-9"}, "lxc", "provider: lxc has no rocky-9 image: take libvirt, virtualbox"),
        ({"distribution": "rocky-9", "provider": "lxc"}, "auto", "provider: lxc has no rocky-9 image: take"),
    ],
)
def test_what_up_refuses_has_no_answers_unless_they_are_for_something_else(
    changes: dict[str, Any], provider: str, message: str
) -> None:
    lab = replace(TWO_NODE, **changes)
    with pytest.raises(InvalidInput) as caught:
        answers.of_release(lab, provider=provider)
    with pytest.raises(InvalidInput, match=re.escape(str(caught.value))):
        resolve(lab, provider=provider)
    assert f"{FILE}: {message}" in str(caught.value)
    assert answers.of_release(lab, release="epoxy").startswith("# Answers for Packstack 26.0.0")


@pytest.mark.parametrize("release", ["auto", "zed"])
def test_the_distribution_is_the_labs(release: str) -> None:
    lab = replace(topologies.load("two-node", TOPOLOGIES), release=release)
    here = resolve(lab, provider="libvirt")
    drawn = {*keytable.secret_names(here.packstack), *keytable.SAME_SECRET}

    def rest(text: str) -> list[tuple[str, str]]:
        return [(name, value) for name, value in lines(text) if name not in drawn]

    assert ("CONFIG_NEUTRON_L2_AGENT", "openvswitch") in rest(packstack.shape(here))
    assert rest(answers.of_release(lab)) == rest(packstack.shape(here))
    values = dict(lines(answers.of_release(lab, distribution="rocky-9")))
    assert values["CONFIG_NEUTRON_L2_AGENT"] == "ovn"


def test_a_service_or_agent_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        render(replace(TWO_NODE, services=(*TWO_NODE.services, "octavia"), network_agent="sriov"))
    assert [problem.path for problem in caught.value.problems] == ["services", "network_agent"]


def test_packstack_has_no_networking_but_neutron() -> None:
    with pytest.raises(InvalidInput, match="CONFIG_NEUTRON_INSTALL: 'n' must be y"):
        render(replace(TWO_NODE, services=("keystone", "glance")))


def test_an_override_wins() -> None:
    own = {"CONFIG_NEUTRON_ML2_VNI_RANGES": "10:1000", "CONFIG_NEUTRON_METERING_AGENT_INSTALL": "y"}
    own |= {"CONFIG_NOVA_LIBVIRT_VIRT_TYPE": "kvm", "CONFIG_NTP_SERVERS": "192.0.2.1"}
    values = dict(lines(render(replace(TWO_NODE, answers=own))))
    assert {name: values[name] for name in own} == own


def test_an_override_that_says_what_the_plan_does() -> None:
    same = {
        "CONFIG_NEUTRON_L2_AGENT": "openvswitch",
        "CONFIG_NOVA_INSTALL": "y",
        "CONFIG_PROVISION_DEMO": "n",
    }
    values = dict(lines(render(replace(TWO_NODE, answers=same))))
    assert {name: values[name] for name in same} == same


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "CONFIG_NEUTRON_L2_AGENT",
            "ovn",
            "'ovn' contradicts the lab, which has 'openvswitch': change network_agent",
        ),
        (
            "CONFIG_NEUTRON_ML2_MECHANISM_DRIVERS",
            "ovn",
            "'ovn' contradicts the lab, which has 'openvswitch': change network_agent",
        ),
        (
            "CONFIG_NEUTRON_OVS_TUNNEL_SUBNETS",
            "10.9.0.0/24",
            "'10.9.0.0/24' contradicts the lab, which has '10.0.1.0/24': change networks.tunnel",
        ),
        (
            "CONFIG_NEUTRON_OVS_BRIDGE_IFACES",
            "br-ex:eth7",
            "'br-ex:eth7' contradicts the lab, which has 'br-ex:eth1': leave it out (the provider NIC)",
        ),
        ("CONFIG_HEAT_INSTALL", "y", "'y' contradicts the lab, which has 'n': change services"),
        # One mistake, one message: nor could Packstack do without.
        ("CONFIG_NEUTRON_INSTALL", "n", "'n' contradicts the lab, which has 'y': change services"),
        (
            "CONFIG_MARIADB_INSTALL",
            "n",
            "'n' contradicts the lab, which has 'y': leave it out (every lab has it)",
        ),
        (
            "CONFIG_PROVISION_DEMO",
            "y",
            "'y' contradicts the lab, which has 'n': "
            "leave it out (its network is 10.0.0.0/24, a management network)",
        ),
        (
            "CONFIG_PROVISION_TEMPEST",
            "y",
            "'y' contradicts the lab, which has 'n': leave it out (stacklab verifies the lab itself)",
        ),
    ],
)
def test_an_override_that_contradicts_the_plan_is_refused(key: str, value: str, message: str) -> None:
    assert refused(**{key: value}) == [f"{FILE}: answers.{key}: {message}"]


def test_an_unknown_override_is_refused_with_the_nearest_key() -> None:
    assert refused(CONFIG_COMPUTE_HOST="10.0.0.31") == [
        f"{FILE}: answers.CONFIG_COMPUTE_HOST: is no key of this Packstack: CONFIG_COMPUTE_HOSTS?"
    ]


def test_an_old_name_is_refused_with_the_new_one() -> None:
    assert "CONFIG_MARIADB_INSTALL?" in refused(CONFIG_MYSQL_INSTALL="y")[0]


def test_every_wrong_override_is_named() -> None:
    found = refused(CONFIG_DEBUG_MODE="maybe", CONFIG_PROVISION_DEMO_FLOATRANGE="banana", CONFIG_NO="1")
    assert [line.split(": ")[1] for line in found] == [
        "answers.CONFIG_NO",
        "answers.CONFIG_DEBUG_MODE",
        "answers.CONFIG_PROVISION_DEMO_FLOATRANGE",
    ]
    assert found[1] == f"{FILE}: answers.CONFIG_DEBUG_MODE: 'maybe' is none of y, n"


def test_an_override_cannot_smuggle_in_a_line() -> None:
    assert refused(CONFIG_NTP_SERVERS="a\nCONFIG_DEBUG_MODE=y") == [
        f"{FILE}: answers.CONFIG_NTP_SERVERS: a line break or control character"
    ]


def test_a_missing_secret_is_an_error_that_names_it() -> None:
    some = {name: value for name, value in SECRETS.items() if name != "CONFIG_NOVA_DB_PW"}
    with pytest.raises(LabError, match=r"no value for CONFIG_NOVA_DB_PW$") as caught:
        answers.render(TWO_NODE, packstack=VERSION, secrets=some, datapath="netdev", workers=1)
    assert caught.value.hint


def test_an_unknown_version_names_those_that_are_known() -> None:
    with pytest.raises(LabError, match=r"Packstack 1\.2\.3 .*21\.0\.1"):
        keytable.table("1.2.3")


def test_secrets_are_drawn_anew_letters_and_digits_in_the_right_length() -> None:
    first, second = keytable.draw(VERSION), keytable.draw(VERSION)
    assert tuple(first) == keytable.secret_names(VERSION)
    assert not set(first.values()) & set(second.values())
    assert len(set(first.values())) == len(first) == 39
    for name, value in first.items():
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9]+", value)
        assert len(value) == (32 if name == "CONFIG_HEAT_AUTH_ENC_KEY" else 24)


def test_only_what_packstack_would_draw_is_a_secret_of_the_lab() -> None:
    names = keytable.secret_names(VERSION)
    assert {"CONFIG_HORIZON_SECRET_KEY", "CONFIG_SWIFT_HASH", "CONFIG_NEUTRON_METADATA_PW"} <= set(names)
    assert not {"CONFIG_DEFAULT_PASSWORD", "CONFIG_CINDER_NETAPP_PASSWORD"} & set(names)


def test_the_trove_user_has_one_password() -> None:
    secrets = keytable.draw(VERSION)
    text = answers.render(TWO_NODE, packstack=VERSION, secrets=secrets, datapath="netdev", workers=1)
    values = dict(lines(text))
    assert values["CONFIG_TROVE_NOVA_PW"] == values["CONFIG_TROVE_KS_PW"] == secrets["CONFIG_TROVE_KS_PW"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("CONFIG_NEUTRON_INSTALL", "n", "'n' must be y"),
        ("CONFIG_GLANCE_INSTALL", "", "is empty"),
        ("CONFIG_MARIADB_HOST", "", "is empty"),
        ("CONFIG_COMPUTE_HOSTS", "10.0.0.31,10.0.0.999", "is no address or host name"),
        ("CONFIG_NEUTRON_ML2_TYPE_DRIVERS", "vxlan, flat, token-ring", "is none of local, flat"),
        ("CONFIG_NEUTRON_OVS_VXLAN_UDP_PORT", "65535", "is no port"),
        ("CONFIG_REDIS_PORT", "port", "is no port"),
        ("CONFIG_SWIFT_STORAGE_REPLICAS", "one", "is no whole number"),
        ("CONFIG_SWIFT_STORAGE_REPLICAS", "0", "is no number from 1 up"),
        ("CONFIG_SWIFT_STORAGE_ZONES", "0", "is no number from 1 up"),
        ("CONFIG_SWIFT_STORAGE_SIZE", "2 gigabytes", "is no size like 2G"),
        ("CONFIG_CINDER_VOLUMES_SIZE", "20", "is no size like 20G"),
        ("CONFIG_CINDER_VOLUMES_SIZE", "500M", "is no size like 20G"),
        ("CONFIG_NOVA_LIBVIRT_VIRT_TYPE", "xen", "is none of qemu, kvm"),
        ("CONFIG_NOVA_LIBVIRT_VIRT_TYPE", "", "is empty"),
        ("CONFIG_NOVA_DB_PURGE_ENABLE", "maybe", "is none of y, n"),
        ("CONFIG_CINDER_DB_PURGE_ENABLE", "true", "is none of y, n"),
        ("CONFIG_KEYSTONE_FERNET_TOKEN_ROTATE_ENABLE", "daily", "is none of y, n"),
        ("CONFIG_SWIFT_STORAGES", "vdb", "is no path"),
        ("CONFIG_NOVA_SCHED_CPU_ALLOC_RATIO", "nan", "is no number"),
        ("CONFIG_CINDER_NFS_MOUNTS", "10.0.0.41/x", "is no export"),
        ("CONFIG_CINDER_NETAPP_WEBSERVICE_PATH", "devmgr", "is not like"),
        ("CONFIG_VCENTER_HOST", "vcenter", "is no IP address"),
        ("CONFIG_NEUTRON_OVS_BRIDGE_MAPPINGS", "extnet", "needs name:name"),
        ("CONFIG_NEUTRON_OVS_BRIDGE_IFACES", "br-ex:eth1,br-two", "needs name:name"),
        ("CONFIG_NEUTRON_OVS_TUNNEL_IF", "br-vxlan", "has a dash"),
        ("CONFIG_NEUTRON_OVS_TUNNEL_SUBNETS", "10.0.1.0/33", "is no network"),
        ("CONFIG_NEUTRON_ML2_VNI_RANGES", "100:10", "is no range"),
        ("CONFIG_SERVICE_WORKERS", "0", "is no number from 1"),
        ("CONFIG_HEAT_AUTH_ENC_KEY", "x" * 20, "must have 16, 24 or 32"),
        ("CONFIG_NOVA_KS_PW", "", "is empty"),
        ("CONFIG_NOVA_KS_PW", "PW_PLACEHOLDER", "is drawn anew"),
        ("CONFIG_NTP_SERVERS", "a\n  b", "goes over several lines"),
    ],
)
def test_the_check_refuses(key: str, value: str, message: str) -> None:
    (found,) = problems(with_value(key, value))
    assert found.startswith(f"a.txt: {key}: ")
    assert message in found


def test_the_check_shows_no_secret() -> None:
    (found,) = problems(with_value("CONFIG_HEAT_AUTH_ENC_KEY", "hunter2hunter2"))
    assert "hunter2" not in found
    (found,) = problems(render().replace("CONFIG_NOVA_KS_PW=", "CONFIG_NOVA_KS_PW hunter2 "))
    assert "hunter2" not in found
    assert "ParsingError in line" in found


def test_values_are_needed_only_where_packstack_reads_them() -> None:
    """Most NetApp keys are empty and must not be, which counts only with that backend."""
    assert problems(with_value("CONFIG_KEYSTONE_LDAP_SUFFIX", "")) == []
    assert problems(with_value("CONFIG_KEYSTONE_IDENTITY_BACKEND", "ldap")) == [
        f"a.txt: CONFIG_KEYSTONE_LDAP_{part}: '' is empty"
        for part in ("SUFFIX", "USER_SUBTREE", "GROUP_SUBTREE")
    ]


def test_a_backend_of_cinder_needs_its_keys() -> None:
    backend = {"CONFIG_CINDER_BACKEND": "nfs"}
    volumes = replace(TWO_NODE, services=(*TWO_NODE.services, "cinder"))
    with pytest.raises(InvalidInput) as caught:
        render(replace(volumes, answers=backend))
    assert [str(problem) for problem in caught.value.problems] == [
        f"{FILE}: CONFIG_CINDER_NFS_MOUNTS: '' is empty, and CONFIG_CINDER_BACKEND 'nfs' needs it"
    ]
    render(replace(volumes, answers={**backend, "CONFIG_CINDER_NFS_MOUNTS": "192.0.2.7:/export"}))
    render(replace(TWO_NODE, answers=backend))  # nothing reads it without Cinder


@pytest.mark.parametrize("backend", answers.FOREIGN_BACKENDS)
def test_a_backend_with_a_password_is_refused(backend: str) -> None:
    assert refused(CONFIG_CINDER_BACKEND=backend) == [
        f"{FILE}: answers.CONFIG_CINDER_BACKEND: '{backend}' needs a password, and a topology holds none: "
        "take lvm or nfs"
    ]


def test_objects_have_no_more_copies_than_packstack_has_devices() -> None:
    objects = replace(TWO_NODE, services=(*TWO_NODE.services, "swift"))
    copies = {"CONFIG_SWIFT_STORAGE_REPLICAS": "2"}
    with pytest.raises(InvalidInput) as caught:
        render(replace(objects, answers=copies))
    assert [str(problem) for problem in caught.value.problems] == [
        f"{FILE}: answers.CONFIG_SWIFT_STORAGE_REPLICAS: '2' is more than 1, the number of devices that "
        "Packstack makes the rings of"
    ]
    render(replace(objects, answers={**copies, "CONFIG_SWIFT_STORAGES": "/dev/vdb,/dev/vdc"}))
    render(replace(TWO_NODE, answers=copies))


def test_missing_unknown_and_doubled_keys_are_found() -> None:
    text = render()
    missing = text.replace("CONFIG_NTP_SERVERS=", "CONFIG_NTP_SERVER=")
    assert problems(missing) == [
        "a.txt: CONFIG_NTP_SERVER: is no key of this Packstack: CONFIG_NTP_SERVERS?",
        "a.txt: CONFIG_NTP_SERVERS: is missing",
    ]
    (doubled,) = problems(text + "CONFIG_NTP_SERVERS=\n")
    assert "DuplicateOptionError" in doubled
    assert "CONFIG_NTP_SERVERS" in doubled
    assert problems(text.replace("[general]", "[other]")) == ["a.txt: needs the one section [general]"]


def test_the_table_holds_nothing_of_the_machine_it_was_made_on() -> None:
    raw = (keytable.DATA / f"{VERSION}.json").read_bytes()
    assert b"\0" not in raw
    assert b"\\u0000" not in raw
    for mark in (b"192.0.2.254", b"mark-of", b"f00df00d", b"PW_PLACEHOLDER", b"/tmp", b"/home"):
        assert mark not in raw
    assert len(keytable.table(VERSION)) == 299
