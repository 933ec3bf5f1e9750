"""YAML files: those of users, read without YAML's surprises, and stacklab's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from stacklab.checker import Checker, join
from stacklab.errors import InvalidInput, Problem

# libyaml is six times as fast; a PyYAML that was built without it lacks it.
_Fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_own(path: Path) -> Any:
    """The values of a file of stacklab's own."""
    return yaml.load(path.read_text(encoding="utf-8"), _Fast)


class _Loader(yaml.SafeLoader):
    """YAML without its surprises: 1.10, 010, 12:30 and 2024-01-01 stay the text that was written."""


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in rules if tag in (f"{_TAG}bool", f"{_TAG}null", f"{_TAG}merge")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(r"(?:0|-?[1-9][0-9]*)\Z"), list("-0123456789"))


def read_yaml(check: Checker, text: str) -> Any:
    """The file's plain values. Notes duplicate keys; raises InvalidInput where the file is not YAML."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        _find_duplicates(check, root)
        return None if root is None else loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{check.file}:{mark.line + 1}" if mark else check.file
        cause = " ".join((error.problem or error.context or "").split())
    except yaml.YAMLError as error:
        where, cause = check.file, " ".join(str(error).split())
    except RecursionError:
        where, cause = check.file, "it is nested too deeply"
    except (ValueError, LookupError, AttributeError):
        # What PyYAML lets through for a value that is not of its explicit tag, such as `!!int x`.
        where, cause = check.file, "a value does not fit its !!tag, or is far too long"
    message = f"not valid YAML, {cause}: look for wrong indentation, quotes, brackets or colons there"
    raise InvalidInput([Problem(where, "", message)])


def _find_duplicates(check: Checker, root: yaml.Node | None) -> None:
    """PyYAML keeps the last of equal keys in silence, so that half of a file could go unread."""
    waiting, seen = [("", root)], set()
    while waiting:
        path, node = waiting.pop()
        if node is None or id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        lines: dict[str, int] = {}
        inner: list[tuple[str, yaml.Node | None]] = []
        for key, item in node.value if isinstance(node, yaml.MappingNode) else ():
            name, line = str(key.value), key.start_mark.line + 1
            inner.append((join(path, name), item))
            if isinstance(key, yaml.ScalarNode) and name in lines:
                message = f"'{name}' is there twice, on lines {lines[name]} and {line}: keep one"
                check.problem(join(path, name), message)
            lines[name] = line
        if isinstance(node, yaml.SequenceNode):
            inner = [(path, item) for item in node.value]
        waiting += reversed(inner)
