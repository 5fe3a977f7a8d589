"""Text to plain values: a recipe's YAML, and `key=value` overrides. Nothing here knows which keys exist."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zerofleet.trainer.errors import NotFoundError, UserError


class _RecipeLoader(yaml.SafeLoader):
    """YAML without surprises: a key given twice is refused, and `3e-4` is a number (YAML 1.1 reads it as text)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, yaml.Mark] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"key {key_node.value!r} is given twice (first on line {seen[key_node.value].line + 1})",
                    key_node.start_mark,
                )
            seen[key_node.value] = key_node.start_mark
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_text(path: Path, what: str) -> str:
    """The text of a file. NotFoundError when it is missing, UserError when it cannot be read; `what` says what it should be."""
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a {what}: name a .yaml file in it")
    try:
        return path.read_bytes().decode()
    except FileNotFoundError as error:
        near = sorted(str(other) for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        there = f"{what}s there: {', '.join(near[:8])}" if near else f"no {what}s lie in {path.parent}"
        raise NotFoundError(f"{what} {path} does not exist; {there}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def parse_yaml(text: str, source: str) -> Any:
    """The value that `text` holds. UserError with line and column when it is not YAML; `source` names it."""
    try:
        return yaml.load(text, Loader=_RecipeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(
            f"{source}{where}: {error.problem or error.context}\n{_excerpt(text, mark)}".rstrip()
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2024-99-99
        raise UserError(f"{source} is not YAML: {str(error).splitlines()[0]}") from error


def parse_mapping(text: str, source: str, needs: str = "the sections `model`, `data` and `train`") -> dict[str, Any]:
    """A mapping of sections, such as a recipe. UserError for anything else; `needs` names what it must have."""
    value = parse_yaml(text, source)
    if value is None:
        raise UserError(f"{source} is empty: it needs at least {needs}")
    if not isinstance(value, dict):
        raise UserError(f"{source} holds a {type(value).__name__}, not sections: it needs at least {needs}")
    return value


def _excerpt(text: str, mark: yaml.Mark | None) -> str:
    """The line that `mark` points at, with a caret below the column."""
    lines = text.splitlines()
    if mark is None or mark.line >= len(lines):
        return ""
    return f"    {lines[mark.line]}\n    {' ' * mark.column}^"


@dataclass(frozen=True)
class Override:
    """`path=text` of the command line; `value` is `text` read as YAML."""

    path: str
    text: str
    value: Any

    @property
    def keys(self) -> list[str]:
        return self.path.split(".")


def parse_overrides(arguments: Iterable[str]) -> list[Override]:
    """`train.steps=20` and the like. UserError for what is no `key=value`."""
    return [_parse_override(argument) for argument in arguments]


def _parse_override(argument: str) -> Override:
    path, equals, text = argument.partition("=")
    if not equals or not re.fullmatch(r"[^\s.=]+(\.[^\s.=]+)*", path):
        raise UserError(f"{argument!r} is not an override: write key=value, for example train.steps=20")
    return Override(path, text, parse_yaml(text, f"the value of {path}"))


def set_path(mapping: dict[str, Any], keys: list[str], value: Any) -> None:
    """Sets a nested key, making the mappings on the way. UserError when one of them is something else."""
    for depth, key in enumerate(keys[:-1]):
        if mapping.get(key) is None:
            mapping[key] = {}
        mapping = mapping[key]
        if not isinstance(mapping, dict):
            raise UserError(
                f"{'.'.join(keys)} cannot be set: {'.'.join(keys[: depth + 1])} is {mapping!r}, which has no keys"
            )
    mapping[keys[-1]] = value
