"""The stage `cloud`: what people expect to find in a fresh lab. Everything here may run again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from stacklab import files, namespace, packstack, releases, ui
from stacklab.errors import NotHealthy
from stacklab.plan import Plan
from stacklab.run import run
from stacklab.yamlfile import read_own

PHYSICAL_NETWORK = "extnet"
KEYPAIR = "stacklab"
ADMIN, DEMO = "admin", "demo"


def definition(plan: Plan) -> dict[str, Any]:
    """All that the stage makes, as plain values: part of the stage's key."""
    topology = plan.topology
    return {
        "provider": topology.provider_network.__dict__,
        "tenant": topology.tenant.__dict__,
        "flavors": read_own(releases.DATA / "cloud.yaml")["flavors"],
    }


def build(plan: Plan) -> None:
    """Make networks, router, flavors, the demo project with its user, rules and key pair.

    Raises NotHealthy naming the service that does not take it.
    """
    write_credentials(plan)
    with namespace.entered(plan):
        admin = connect(plan, ADMIN)
        with ui.step("project and user demo"), explained("keystone"):
            project = _demo(plan, admin)
        with ui.step("provider network, tenant network, router"), explained("neutron"):
            provider = _provider_network(plan, admin)
            _tenant_network(plan, admin, project, provider)
        with ui.step("flavors"), explained("nova"):
            for name, size in definition(plan)["flavors"].items():
                if admin.compute.find_flavor(name) is None:
                    admin.compute.create_flavor(name=name, **size)
        with ui.step("security-group rules and key pair"):
            for who in (ADMIN, DEMO):
                connection = admin if who == ADMIN else connect(plan, DEMO)
                with explained("neutron"):
                    _rules(connection)
                with explained("nova"):
                    _keypair(plan, connection)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """What a service of the cloud answers wrongly, as NotHealthy that names it."""
    from keystoneauth1.exceptions import ClientException
    from openstack.exceptions import SDKException

    try:
        yield
    except (ClientException, SDKException) as error:
        raise NotHealthy(f"{name}: {error}", hint=f"on the controller: /var/log/{name}") from error


# -- credentials -------------------------------------------------------------------------


def _auth(plan: Plan, who: str) -> dict[str, str]:
    secrets = packstack.secrets(plan)
    return {
        "auth_url": f"http://{plan.topology.controller.management}:5000/v3",
        "username": who,
        "password": secrets["CONFIG_KEYSTONE_ADMIN_PW" if who == ADMIN else "DEMO_PASSWORD"],
        "project_name": who,
        "user_domain_name": "Default",
        "project_domain_name": "Default",
    }


def write_credentials(plan: Plan) -> None:
    """clouds.yaml with the clouds `admin` and `demo`, and an openrc file for each; mode 0600."""
    clouds = {}
    for who in (ADMIN, DEMO):
        auth = _auth(plan, who)
        clouds[who] = {"auth": auth, "region_name": "RegionOne", "identity_api_version": 3}
        lines = [f"export OS_{name.upper()}='{value}'" for name, value in auth.items()]
        lines += ["export OS_REGION_NAME=RegionOne", "export OS_IDENTITY_API_VERSION=3"]
        files.write(plan.directory / f"openrc-{who}", "\n".join(lines) + "\n", mode=0o600)
    files.write(plan.directory / "clouds.yaml", yaml.safe_dump({"clouds": clouds}), mode=0o600)


def connect(plan: Plan, who: str = ADMIN, retries: int = 0) -> Any:
    """An openstacksdk connection; use it inside the lab's namespace only.

    `retries` is how often a request is sent again that got no answer: Debian's API servers end
    connections that the client still counts on.
    """
    import openstack

    # A proxy of the host's must never see what goes to the lab.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"
    return openstack.connect(
        auth=_auth(plan, who),
        region_name="RegionOne",
        identity_api_version=3,
        load_yaml_config=False,
        load_envvars=False,
        connect_retries=retries,
    )


def image_adapter(plan: Plan) -> Any:
    """A keystoneauth adapter for Glance, as admin; use it inside the lab's namespace only."""
    from keystoneauth1.adapter import Adapter

    return Adapter(connect(plan).session, service_type="image", interface="public", region_name="RegionOne")


# -- what is made ------------------------------------------------------------------------


def _ensure(find: Callable[[], Any], create: Callable[..., Any], **values: Any) -> Any:
    return find() or create(**values)


def _demo(plan: Plan, admin: Any) -> Any:
    identity = admin.identity
    domain = "default"
    project = _ensure(
        lambda: identity.find_project(DEMO, domain_id=domain),
        identity.create_project,
        name=DEMO,
        domain_id=domain,
        description="for exercises; instances of `invoke verify` live here",
    )
    user = _ensure(
        lambda: identity.find_user(DEMO, domain_id=domain),
        identity.create_user,
        name=DEMO,
        domain_id=domain,
        password=_auth(plan, DEMO)["password"],
        default_project_id=project.id,
    )
    # Keystone's bootstrap makes `member`; Packstack's Horizon expects `_member_`.
    for name in ("member", "_member_"):
        role = identity.find_role(name)
        if role is not None:
            identity.assign_project_role_to_user(project, user, role)
    return project


def _provider_network(plan: Plan, admin: Any) -> Any:
    settings = plan.topology.provider_network
    network = _ensure(
        lambda: admin.network.find_network("provider"),
        admin.network.create_network,
        name="provider",
        is_shared=True,
        is_router_external=True,
        provider_network_type="flat",
        provider_physical_network=PHYSICAL_NETWORK,
    )
    _ensure(
        lambda: admin.network.find_subnet("provider", network_id=network.id),
        admin.network.create_subnet,
        name="provider",
        network_id=network.id,
        ip_version=4,
        cidr=settings.cidr,
        gateway_ip=settings.gateway,
        allocation_pools=[{"start": settings.pool_start, "end": settings.pool_end}],
    )
    return network


def _tenant_network(plan: Plan, admin: Any, project: Any, provider: Any) -> None:
    settings = plan.topology.tenant
    owner = {"project_id": project.id}
    network = _ensure(
        lambda: admin.network.find_network("tenant", project_id=project.id),
        admin.network.create_network,
        name="tenant",
        **owner,
    )
    subnet = _ensure(
        lambda: admin.network.find_subnet("tenant", network_id=network.id),
        admin.network.create_subnet,
        name="tenant",
        network_id=network.id,
        ip_version=4,
        cidr=settings.cidr,
        gateway_ip=settings.gateway,
        **owner,
    )
    router = _ensure(
        lambda: admin.network.find_router("router", project_id=project.id),
        admin.network.create_router,
        name="router",
        external_gateway_info={"network_id": provider.id},
        **owner,
    )
    ports = list(admin.network.ports(device_id=router.id, network_id=network.id))
    if not ports:
        admin.network.add_interface_to_router(router, subnet_id=subnet.id)


def _rules(connection: Any) -> None:
    """Let pings and ssh in through the project's default security group."""
    project = connection.current_project_id
    group = next(g for g in connection.network.security_groups(project_id=project) if g.name == "default")
    allow(connection, group, ("icmp", None), ("tcp", 22))


def allow(connection: Any, group: Any, *services: tuple[str, int | None]) -> None:
    """Ensure that a security group lets these (protocol, port) in from everywhere."""
    there = {
        (rule.protocol, rule.port_range_min)
        for rule in connection.network.security_group_rules(security_group_id=group.id, direction="ingress")
        if rule.remote_group_id is None
    }
    for protocol, port in services:
        if (protocol, port) not in there:
            connection.network.create_security_group_rule(
                security_group_id=group.id,
                direction="ingress",
                ethertype="IPv4",
                protocol=protocol,
                port_range_min=port,
                port_range_max=port,
            )


def guest_key(plan: Plan) -> Path:
    """The private key of the key pair, drawn once per lab."""
    path = plan.directory / "ssh" / "guest_ed25519"
    if not path.with_suffix(".pub").is_file():
        path.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"stacklab {plan.lab} guests", "-f", path])
    return path


def _keypair(plan: Plan, connection: Any) -> None:
    public = guest_key(plan).with_suffix(".pub").read_text(encoding="utf-8").strip()
    _ensure(
        lambda: connection.compute.find_keypair(KEYPAIR),
        connection.compute.create_keypair,
        name=KEYPAIR,
        public_key=public,
    )
