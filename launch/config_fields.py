"""The fields of a config by their dotted path, and what pydantic says about them in the user's words."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from zerofleet.trainer.config import Section
from zerofleet.trainer.errors import UserError

SomeSection = TypeVar("SomeSection", bound=Section)

_EXPECTED = {
    "model_type": "a section: keys and values, one per line",
    "dict_type": "a section: keys and values, one per line",
    "list_type": "a list, such as [a, b]",
    "tuple_type": "a list, such as [a, b]",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (put quotes around it)",
}
"""What pydantic's kinds of error expected, in words of YAML."""

ANY_NAME = "<name>"
"""In a field's path, in place of a name that the user chooses (`data.sources.<name>.weight`)."""


@dataclass(frozen=True)
class ConfigField:
    """One setting: its dotted path, its docstring, and the plain types that it takes (`str`, `int`, `list`, ...)."""

    path: str
    doc: str
    types: frozenset[Any]
    is_section: bool

    @property
    def is_open(self) -> bool:
        """Whether any key may follow below it (`model.config`, `deepspeed`)."""
        return dict in self.types


@cache
def config_fields(model: type[Section], prefix: str = "") -> dict[str, ConfigField]:
    """Every field of `model` and of the sections in it, in the order of their definition."""
    found: dict[str, ConfigField] = {}
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        parts = _plain_types(info.annotation)
        section = next((part for part in parts if isinstance(part, type) and issubclass(part, Section)), None)
        found[path] = ConfigField(path, info.description or "", parts, section is not None)
        if below := section or _element(info.annotation, list):
            found |= config_fields(below, f"{path}.")
        if named := _element(info.annotation, dict):
            path = f"{path}.{ANY_NAME}"
            found[path] = ConfigField(path, named.__doc__ or "", frozenset([named]), True)
            found |= config_fields(named, f"{path}.")
    return found


def known_path(keys: Sequence[str], fields: dict[str, ConfigField]) -> str:
    """The dotted path that `fields` would have for these keys: names of the user's own choice are ANY_NAME there."""
    path = ""
    for key in keys:
        path = f"{path}.{ANY_NAME if f'{path}.{ANY_NAME}' in fields else key}" if path else key
    return path


def _plain_types(annotation: Any) -> frozenset[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain_types(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return frozenset().union(*(_plain_types(part) for part in get_args(annotation)))
    if origin is Literal:
        return frozenset(type(value) for value in get_args(annotation))
    return frozenset([origin or annotation])


def _element(annotation: Any, container: type) -> type[Section] | None:
    """The section that a list or a dict holds several of."""
    parts = get_args(annotation) if get_origin(annotation) is container else ()
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Section)), None)


def validated(model: type[SomeSection], mapping: Mapping[str, Any], source: str) -> SomeSection:
    """A `model` from plain values. UserError with all mistakes in them; `source` names them."""
    fields = config_fields(model)
    try:
        if problems := _bools_for_numbers(mapping, fields):
            raise UserError(_listed(source, problems))
        return model.model_validate(mapping)
    except ValidationError as error:
        raise UserError(_listed(source, explain(error, fields))) from error


def _listed(source: str, problems: list[str]) -> str:
    return f"{source}: " + (problems[0] if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems))


def _bools_for_numbers(mapping: Mapping[str, Any], fields: dict[str, ConfigField]) -> list[str]:
    """pydantic takes `true` for 1; here it is a mistake."""
    return [
        f"{'.'.join(keys)}={value!r}: expected a number ({'.'.join(keys)}: {field.doc})"
        for keys, value in _leaves(mapping)
        if isinstance(value, bool) and (field := fields.get(known_path(keys, fields))) and bool not in field.types
    ]


def _leaves(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Values with the keys that lead to them; a list is a value."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(below, (*keys, str(key)))
    else:
        yield keys, value


def nearest(path: str, fields: dict[str, ConfigField]) -> ConfigField | None:
    """The field that `path` most likely means: it begins so, is alike as a whole, or in its last part elsewhere."""
    if longer := [known for known in fields if known.startswith(path)]:
        return fields[longer[0]]
    if close := difflib.get_close_matches(path, fields, n=1, cutoff=0.75):
        return fields[close[0]]
    last = {known.rsplit(".", 1)[-1]: known for known in reversed(fields)}
    close = difflib.get_close_matches(path.rsplit(".", 1)[-1], last, n=1, cutoff=0.7)
    return fields[last[close[0]]] if close else None


def unknown_key(keys: Sequence[str], fields: dict[str, ConfigField]) -> str:
    """One line: there is no such key, and which one may be meant."""
    path, known = ".".join(keys), known_path(keys, fields)
    field = nearest(known, fields)
    if field is not None:
        return f"{path} is not a key. The nearest is {_spelled(field.path, keys)}: {field.doc}"
    section = known.rpartition(".")[0]
    siblings = [other for other in fields if other.rpartition(".")[0] == section]
    if not siblings and (holder := _field_at(section, fields)):
        return f"{path} is not a key. {holder.path}: {holder.doc}"
    names = ", ".join(_spelled(sibling, keys) for sibling in siblings)
    return f"{path} is not a key. {_spelled(section, keys) or 'The top level'} has: {names}"


def _spelled(path: str, keys: Sequence[str]) -> str:
    """A field's path with the names that the user chose."""
    parts = path.split(".")
    for index, key in enumerate(keys[: len(parts)]):
        if parts[index] not in (ANY_NAME, key):
            break
        parts[index] = key
    return ".".join(parts)


def explain(error: ValidationError, fields: dict[str, ConfigField]) -> list[str]:
    """One line per mistake: field, value, what is expected, and what the field is."""
    return [_explain_one(details, fields) for details in error.errors(include_url=False)]


def _explain_one(details: ErrorDetails, fields: dict[str, ConfigField]) -> str:
    path = ".".join(str(part) for part in details["loc"])
    keys = [part for part in details["loc"] if isinstance(part, str)]  # without the positions in lists
    field = _field_at(known_path(keys, fields), fields)
    doc = f" ({_spelled(field.path, keys)}: {field.doc})" if field else ""
    kind, message = details["type"], details["msg"]
    if kind == "extra_forbidden":
        return unknown_key(keys, fields)
    if kind == "missing":
        return f"{path} is missing: it has no default{doc}"
    if kind == "value_error":  # our own validators say everything themselves
        return f"{path}: {message.removeprefix('Value error, ')}"
    expected = _EXPECTED.get(kind) or message.removeprefix("Input should be ").removeprefix("String should ")
    return f"{path}={_shown(details['input'])}: expected {expected}{doc}"


def _field_at(path: str, fields: dict[str, ConfigField]) -> ConfigField | None:
    """The field that holds `path`: itself, or the one that it is an element of (`data.files.0`)."""
    while path and path not in fields:
        path = path.rpartition(".")[0]
    return fields.get(path)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
