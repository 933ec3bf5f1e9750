"""Topology files: the shipped ones to exact values, the broken ones to exact messages."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from stacklab import services, topology
from stacklab.errors import InvalidInput
from stacklab.model import Network, Node, ProviderNetwork, TenantNetwork, Topology

SHIPPED = Path(__file__).parents[2] / "topologies"
BROKEN = Path(__file__).parent / "broken"

CONTROLLER = "  controller: {roles: [controller, network], management: 10.0.0.11}\n"
COMPUTE = "  compute: {roles: [compute], management: 10.0.0.31}\n"


def parse(*, top: str = "", nodes: str = CONTROLLER + COMPUTE) -> Topology:
    return topology.parse(f"name: lab\n{top}\nnodes:\n{nodes}", "lab.yaml")


def problems(path_or_name: str, directory: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        topology.load(path_or_name, directory)
    return str(caught.value)


def test_two_node() -> None:
    file, roles = SHIPPED / "two-node.yaml", ("controller", "network")
    assert topology.load(str(file), Path("elsewhere")) == Topology(
        name="two-node",
        description="One controller (which is the network node too) and one compute node, "
        "as in the OpenStack installation guide.",
        file=str(file),
        domain="lab.test",
        provider="auto",
        distribution="auto",
        release="auto",
        management=Network("10.0.0.0/24", "10.0.0.1", "10.0.0.1"),
        provider_network=ProviderNetwork("203.0.113.0/24", "203.0.113.1", "203.0.113.101", "203.0.113.250"),
        tenant=TenantNetwork("172.16.1.0/24", "172.16.1.1"),
        tunnel=Network("10.0.1.0/24", "10.0.1.1"),
        nodes=(
            Node("controller", "controller.lab.test", roles, "10.0.0.11", "10.0.1.11", 2, 8192, 60),
            Node("compute1", "compute1.lab.test", ("compute",), "10.0.0.31", "10.0.1.31", 2, 4096, 40),
        ),
        services=("keystone", "glance", "placement", "nova", "neutron", "horizon"),
        network_agent="auto",
        answers={},
        named_services=("keystone", "glance", "placement", "nova", "neutron", "horizon"),
    )


def test_all_in_one_differs_from_two_node_only_where_it_says_so() -> None:
    lab, other = topology.load("all-in-one", SHIPPED), topology.load("two-node", SHIPPED)
    roles = ("controller", "network", "compute")
    assert lab.name == "all-in-one"
    assert lab.nodes == (
        Node("controller", "controller.lab.test", roles, "10.0.0.11", "10.0.1.11", 4, 8192, 100),
    )
    for key in ("domain", "provider", "distribution", "release", "services", "network_agent", "answers"):
        assert getattr(lab, key) == getattr(other, key), key
    for key in ("management", "tunnel", "provider_network", "tenant"):
        assert getattr(lab, key) == getattr(other, key), key


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        (
            "three-node",
            ["controller controller 10.0.0.11", "network network 10.0.0.21", "compute1 compute 10.0.0.31"],
        ),
        (
            "multi-compute",
            [
                "controller controller+network 10.0.0.11",
                "compute1 compute 10.0.0.31",
                "compute2 compute 10.0.0.32",
            ],
        ),
        (
            "storage",
            [
                "controller controller+network 10.0.0.11",
                "compute1 compute 10.0.0.31",
                "block1 block-storage 10.0.0.41 20",
                "object1 object-storage 10.0.0.51 10",
            ],
        ),
        ("vmware-notes", ["controller controller+network 10.0.0.100", "compute1 compute 10.0.0.101"]),
    ],
)
def test_nodes_of_the_other_shipped_ones(name: str, nodes: list[str]) -> None:
    lab = topology.load(name, SHIPPED)
    assert lab.name == name
    assert [
        " ".join([node.name, "+".join(node.roles), node.management, *map(str, node.extra_disks)])
        for node in lab.nodes
    ] == nodes


def test_gateway_and_name_server_of_the_older_notes() -> None:
    management = topology.load("vmware-notes", SHIPPED).management
    assert management == Network("10.0.0.0/24", "10.0.0.1", "10.0.0.2", ("10.0.0.2",))


def test_extra_disks() -> None:
    lab = parse(nodes=CONTROLLER + COMPUTE.replace("roles", "extra_disks: [20 GB, 2048 MB], roles"))
    assert [node.extra_disks for node in lab.nodes] == [(), (20, 2)]


def test_available_lists_the_shipped_files() -> None:
    names = ["all-in-one", "multi-compute", "storage", "three-node", "two-node", "vmware-notes"]
    assert [path.stem for path in topology.available(SHIPPED)] == names
    assert topology.available(SHIPPED / "none") == []


def test_defaults_of_a_node() -> None:
    controller, compute = parse().nodes
    assert (controller.cpus, controller.memory, controller.disk) == (2, 8192, 60)
    assert (compute.cpus, compute.memory, compute.disk) == (2, 4096, 40)


@pytest.mark.parametrize(("count", "names"), [("", ["compute"]), ("count: 1,", ["compute1"])])
def test_only_a_count_numbers_the_name(count: str, names: list[str]) -> None:
    lab = parse(nodes=CONTROLLER + f"  compute: {{roles: [compute], {count} management: 10.0.0.31}}")
    assert [node.name for node in lab.with_role("compute")] == names


def test_fifty_nodes_with_consecutive_addresses() -> None:
    nodes = parse(
        top="domain: cloud.example", nodes=CONTROLLER + COMPUTE.replace("roles", "count: 50, roles")
    ).with_role("compute")
    assert [node.name for node in nodes] == [f"compute{i}" for i in range(1, 51)]
    assert nodes[49].fqdn == "compute50.cloud.example"
    assert [node.management for node in nodes] == [str(IPv4Address("10.0.0.31") + i) for i in range(50)]
    assert nodes[49].tunnel == "10.0.1.80"


def test_a_count_may_fill_the_network_to_its_last_address() -> None:
    node = "  compute: {roles: [compute], count: 4, management: 10.0.0.251}"
    assert parse(nodes=CONTROLLER + node).nodes[-1].management == "10.0.0.254"


def test_tunnel_address_has_the_host_number_even_where_octets_differ() -> None:
    lab = parse(
        top="networks: {management: {cidr: 10.8.0.0/22}, tunnel: {cidr: 192.168.16.64/26}}",
        nodes=CONTROLLER.replace("10.0.0.11", "10.8.0.11") + COMPUTE.replace("10.0.0.31", "10.8.0.62"),
    )
    assert [node.tunnel for node in lab.nodes] == ["192.168.16.75", "192.168.16.126"]
    assert lab.management == Network("10.8.0.0/22", "10.8.0.1", "10.8.0.1")
    assert lab.tunnel == Network("192.168.16.64/26", "192.168.16.65")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("cidr: 192.0.2.0/24", ("192.0.2.1", "192.0.2.101", "192.0.2.250")),
        ("cidr: 192.0.2.64/27", ("192.0.2.65", "192.0.2.80", "192.0.2.94")),
        (
            "gateway: 203.0.113.254, pool: 203.0.113.5 - 203.0.113.10",
            ("203.0.113.254", "203.0.113.5", "203.0.113.10"),
        ),
        # The smallest network that is allowed has room enough.
        ("cidr: 192.0.2.64/28", ("192.0.2.65", "192.0.2.72", "192.0.2.78")),
    ],
)
def test_gateway_and_pool_follow_the_provider_network(spec: str, expected: tuple[str, str, str]) -> None:
    network = parse(top=f"networks: {{provider: {{{spec}}}}}").provider_network
    assert (network.gateway, network.pool_start, network.pool_end) == expected


@pytest.mark.parametrize(
    ("memory", "mebibytes"),
    [("8 GB", 8192), ("8GiB", 8192), ("1536 MB", 1536), ("1024 MiB", 1024), ("1 GB", 1024)],
)
def test_memory_units_are_binary(memory: str, mebibytes: int) -> None:
    lab = parse(nodes=CONTROLLER + COMPUTE.replace("roles", f"memory: {memory}, roles"))
    assert lab.nodes[1].memory == mebibytes


@pytest.mark.parametrize(("disk", "gibibytes"), [("10 GB", 10), ("20480 MB", 20), ("100GiB", 100)])
def test_disk_units_are_binary(disk: str, gibibytes: int) -> None:
    lab = parse(nodes=CONTROLLER + COMPUTE.replace("roles", f"disk: {disk}, roles"))
    assert lab.nodes[1].disk == gibibytes


def test_answers_keep_the_text_that_was_written() -> None:
    values = {"yes": "y", "false": "n", "y": "y", "1": "1", "''": "", "a, b:c": "a, b:c"}
    # YAML 1.1 would make 1.1, 8, 750 and a date of these.
    values |= {text: text for text in ("1.10", "010", "12:30", "2024-01-01", "1_000", "-5")}
    answers = "".join(f"  CONFIG_{i}: {text}\n" for i, text in enumerate(values))
    assert list(parse(top=f"answers:\n{answers}").answers.values()) == list(values.values())


def test_a_key_without_a_value_is_left_out() -> None:
    lab = parse(top="answers:  # none yet\nservices:\nnetworks:\n  tunnel:\n")
    assert lab.answers == {}
    assert lab.services == services.expand(["beginner"])
    assert lab.tunnel == Network("10.0.1.0/24", "10.0.1.1")


def test_fewer_services() -> None:
    assert parse(top="services: [keystone, glance]").services == ("keystone", "glance")


def test_merge_keys_are_no_duplicates() -> None:
    first = "  compute: &compute {roles: [compute], memory: 2 GB, management: 10.0.0.31}\n"
    lab = parse(nodes=CONTROLLER + first + "  other: {<<: *compute, management: 10.0.0.32}\n")
    assert [(node.memory, node.management) for node in lab.nodes[1:]] == [
        (2048, "10.0.0.31"),
        (2048, "10.0.0.32"),
    ]


@pytest.mark.parametrize("file", sorted(BROKEN.glob("*.yaml")), ids=lambda file: file.stem)
def test_broken(file: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        topology.parse(file.read_text(encoding="utf-8"), file.name)
    assert f"{caught.value}\n" == file.with_suffix(".expected").read_text(encoding="utf-8")
    assert caught.value.exit_code == 2
    assert len(caught.value.problems) == len(str(caught.value).splitlines())


def test_every_expectation_has_its_file() -> None:
    stems = {suffix: {file.stem for file in BROKEN.glob(f"*{suffix}")} for suffix in (".yaml", ".expected")}
    assert stems[".yaml"] == stems[".expected"]
    assert len(stems[".yaml"]) >= 24


def test_problems_carry_file_and_path() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(nodes=CONTROLLER + COMPUTE.replace("10.0.0.31", "10.0.1.31"))
    (problem,) = caught.value.problems
    assert (problem.where, problem.path) == ("lab.yaml", "nodes.compute.management")
    assert problem.message == "10.0.1.31 is not in 10.0.0.0/24: take an address of that network"


def test_unknown_name_lists_the_close_ones_first(tmp_path: Path) -> None:
    for name in ("all-in-one", "nothing-alike", "two-node", "two-nodes"):
        (tmp_path / f"{name}.yaml").touch()
    expected = "give the path of a file or a name (two-node, two-nodes, all-in-one, nothing-alike)"
    assert problems("tow-node", tmp_path) == f"{tmp_path}: there is no topology 'tow-node': {expected}"
    assert problems("tow-node.yaml", tmp_path).endswith(expected)
    assert problems("x", tmp_path / "empty").endswith("(none yet)")


def test_unreadable_files(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: caf\xe9\n")
    assert "invalid continuation byte: give a readable file in UTF-8" in problems(str(latin), tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    assert "Is a directory: give a readable file" in problems("folder", tmp_path)
    assert "File name too long" in problems("x" * 300, tmp_path)


@pytest.mark.parametrize("text", ["[" * 5000, "name: &a [*a]", "name: \x00"], ids=["deep", "cycle", "nul"])
def test_hostile_files_are_problems_not_crashes(text: str) -> None:
    with pytest.raises(InvalidInput):
        topology.parse(text, "lab.yaml")


def test_aliases_of_aliases_neither_hang_nor_fill_the_screen() -> None:
    bomb = "name: &a0 [x]\n" + "".join(f"k{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    with pytest.raises(InvalidInput) as caught:
        topology.parse(bomb, "lab.yaml")
    assert len(str(caught.value)) < 20_000
