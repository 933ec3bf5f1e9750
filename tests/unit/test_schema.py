"""The JSON schema for editors: up to date, takes what is right, and catches what a schema can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from stacklab import schema
from stacklab.checker import Checker
from stacklab.errors import InvalidInput
from stacklab.yamlfile import read_yaml

TOPOLOGIES = Path(__file__).parents[2] / "topologies"
BROKEN = Path(__file__).parent / "broken"
VALIDATOR = jsonschema.Draft7Validator(schema.schema())

# Well-formed, and wrong all the same: totals, addresses in the wrong place, services without what they need.
MEANING = {
    *("controllers", "duplicate-keys", "host-addresses", "management-duplicate", "management-range"),
    *("management-range-too-many", "management-reserved", "name-twice", "overlaps", "pool-backwards"),
    *("pool-of-one", "pool-too-small"),
    *("pool-with-gateway", "provider-outside", "roles-missing", "roles-missing-others"),
    *("services-dependencies", "services-more-dependencies", "services-without-beginner"),
    *("storage-roles", "tunnel-host", "tunnel-small"),
}


def read(file: Path) -> Any:
    return read_yaml(Checker(file.name), file.read_text(encoding="utf-8"))


def test_the_committed_file_is_up_to_date() -> None:
    """If not: invoke topologies.schema > topologies/schema.json"""
    assert (TOPOLOGIES / "schema.json").read_text(encoding="utf-8") == schema.text()


def test_it_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(schema.schema())


@pytest.mark.parametrize("file", sorted(TOPOLOGIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_topologies_pass_and_name_it(file: Path) -> None:
    VALIDATOR.validate(read(file))
    # Editors read YAML by its own rules, which make other values of some words.
    VALIDATOR.validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    assert file.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n")


@pytest.mark.parametrize("file", sorted(BROKEN.glob("*.yaml")), ids=lambda file: file.stem)
def test_broken_ones_fail_but_for_what_they_mean(file: Path) -> None:
    try:
        value = read(file)
    except InvalidInput:
        return  # not YAML: no schema sees it
    advice = "put it into MEANING if no schema can see what is wrong"
    assert VALIDATOR.is_valid(value) == (file.stem in MEANING), advice


@pytest.mark.parametrize(
    "value",
    [
        {"networks": None, "answers": None},
        {"networks": {"tunnel": None, "management": {"dns": []}}},
        {"answers": {"CONFIG_X": True, "CONFIG_Y": 1.5, "CONFIG_Z": ""}},
        {"services": "full"},
    ],
)
def test_what_may_be_left_empty(value: dict[str, Any]) -> None:
    nodes = {"controller": {"roles": ["controller", "network", "compute"], "management": "10.0.0.11"}}
    VALIDATOR.validate({"name": "lab", "nodes": nodes, **value})
