"""The stage `cloud`: what is said when a service does not take what it is to make."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace as Thing
from typing import Any

import pytest
from keystoneauth1.exceptions import ConnectFailure
from openstack.exceptions import HttpException

from stacklab import cloud, namespace
from stacklab.errors import NotHealthy
from stacklab.plan import Plan

STEPS = ("_demo", "_provider_network", "_tenant_network", "_rules", "_keypair")


@pytest.mark.parametrize(
    ("step", "service"),
    [
        ("_demo", "keystone"),
        ("_provider_network", "neutron"),
        ("_tenant_network", "neutron"),
        ("flavors", "nova"),
        ("_rules", "neutron"),
        ("_keypair", "nova"),
    ],
)
@pytest.mark.parametrize("error", [HttpException("Server Error", http_status=500), ConnectFailure("refused")])
def test_the_service_that_does_not_answer_is_named(
    step: str, service: str, error: Exception, two_node: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(name: str) -> Any:
        def act(*arguments: Any, **values: Any) -> None:
            if name == step:
                raise error

        return act

    compute = Thing(find_flavor=made("flavors"), create_flavor=lambda **values: None)
    monkeypatch.setattr(namespace, "entered", lambda plan: nullcontext())
    monkeypatch.setattr(cloud, "write_credentials", lambda plan: None)
    monkeypatch.setattr(cloud, "connect", lambda plan, who: Thing(compute=compute))
    for name in STEPS:
        monkeypatch.setattr(cloud, name, made(name))
    with pytest.raises(NotHealthy, match=f"^{service}: (Server Error|refused)$") as caught:
        cloud.build(two_node)
    assert caught.value.hint == f"on the controller: /var/log/{service}"
