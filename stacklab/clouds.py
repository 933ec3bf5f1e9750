"""Which cloud: clouds.yaml and OS_* variables, read as the OpenStack client reads them."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from keystoneauth1.adapter import Adapter

from stacklab import redact
from stacklab.errors import InvalidInput, LabError, Problem

_SECRET = ("password", "token", "secret", "passcode", "application_credential_secret")


class CloudAdapter(Adapter):  # type: ignore[misc]
    """A keystoneauth adapter that knows what its cloud is called, for messages."""

    cloud = ""


def adapter(name: str = "") -> CloudAdapter:
    """Glance of the cloud `name`; without a name OS_CLOUD, the OS_* variables, or the only cloud there is.

    Nothing is asked of the cloud yet. The configured region, interface, image_endpoint_override,
    cacert, verify and proxy are heeded. Raises InvalidInput for an unknown cloud, naming those known, and
    for one that is not described as the SDK wants it, LabError for one that is not complete.
    """
    with _without_the_sdk():
        region, session = _region(name)
    redact.add(str(value) for value in _secrets(region.config.get("auth", {})))
    found = CloudAdapter(
        session,
        service_type="image",
        service_name=region.get_service_name("image"),
        interface=region.get_interface("image"),
        region_name=region.get_region_name("image"),
        endpoint_override=region.get_endpoint("image"),
    )
    # For OS_* variables the SDK invents names that nobody knows.
    found.cloud = "" if region.name in ("envvars", "defaults", None) else str(region.name)
    return found


def _region(name: str) -> tuple[Any, Any]:
    """What is known of a cloud, and the session that is made of it."""
    from keystoneauth1.exceptions import ClientException
    from openstack.config import OpenStackConfig
    from openstack.exceptions import ConfigException

    known: list[str] = []
    what = f"the cloud {name}" if name else "the cloud"
    try:
        with _warnings() as skipped:
            config = OpenStackConfig(app_name="stacklab")
        known = sorted(cloud for cloud in config.get_cloud_names() if cloud not in ("envvars", "defaults"))
        if name and name not in known and name != "envvars":
            message = f"unknown cloud '{name}'"
            raise InvalidInput([Problem("", "", message)], hint="; ".join([*skipped, _names(known)]))
        region = config.get_one(cloud=name or None)
        urlsplit(str(region.config.get("auth", {}).get("auth_url", "")))  # keystoneauth trusts it
        return region, region.get_session()
    except (ConfigException, ClientException, OSError) as error:
        raise LabError(
            f"{what} is not fully described: {' '.join(str(error).split())}",
            hint=f"say --cloud NAME, or --cloud envvars for OS_AUTH_URL and its like; {_names(known)}",
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # The SDK trusts the form of what it reads.
        message = f"{what} is not described as it should be: {' '.join(str(error).split())}"
        hint = (
            "in clouds.yaml `clouds`, each cloud and its `auth` are mappings, `auth_type` fits `auth`, "
            "`api_timeout` is a number of seconds, `cert`, `key` and `cacert` are paths"
        )
        raise InvalidInput([Problem("", "", message)], hint=hint) from error


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the SDK warns of, such as a clouds.yaml that it passes over because it is no YAML."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(" ".join(record.getMessage().split()))  # type: ignore[method-assign]
    logger = logging.getLogger("openstack.config")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def _names(known: list[str]) -> str:
    if known:
        return f"clouds.yaml knows {', '.join(known)}"
    return "there is no clouds.yaml with clouds here, in ~/.config/openstack or in /etc/openstack"


def _secrets(auth: Mapping[str, Any]) -> list[Any]:
    return [value for key, value in auth.items() if value and key.lower().endswith(_SECRET)]


@contextmanager
def _without_the_sdk() -> Iterator[None]:
    """Let `openstack.config` be imported without the clients of twenty services.

    `openstack/__init__.py` imports them all: 0.11 s of CPU time and 12 MiB, a third of what an upload
    needs otherwise. What was imported that way is forgotten afterwards, so that a later `import
    openstack` gets the real thing.
    """
    found = None if "openstack" in sys.modules else find_spec("openstack")
    if found is None or found.submodule_search_locations is None:
        yield
        return
    package = types.ModuleType("openstack")
    package.__path__, package.__spec__ = list(found.submodule_search_locations), found
    sys.modules["openstack"] = package
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name == "openstack" or name.startswith("openstack.")]:
            del sys.modules[name]
