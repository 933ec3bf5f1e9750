"""The nodes as an Ansible inventory."""

from __future__ import annotations

from typing import Any

import yaml

from stacklab.model import ROLES
from stacklab.plan import Plan


def inventory(plan: Plan) -> str:
    """The nodes in a group for each role, as YAML; they are reached by the lab's ssh configuration."""
    groups: dict[str, Any] = {
        role: {"hosts": {node.name: None for node in plan.topology.with_role(role)}}
        for role in ROLES
        if plan.topology.with_role(role)
    }
    hosts = {node.name: {"management": node.management} for node in plan.topology.nodes}
    variables = {
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_common_args": f"-F {plan.directory / 'ssh_config'}",
    }
    return yaml.safe_dump({"all": {"hosts": hosts, "vars": variables, "children": groups}}, sort_keys=False)
