"""`python -m zerofleet.launch.config_reference > docs/configuration.md`: every setting, from the config's own docstrings;
`python -m zerofleet.launch.config_reference profile > docs/profile.md` those of a platform's profile."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from typing import Any, get_args

from pydantic_core import PydanticUndefined

from zerofleet.k8s.profile import Profile
from zerofleet.launch.config import JobConfig
from zerofleet.launch.config_fields import ANY_NAME, ConfigField, config_fields
from zerofleet.trainer.config import Section

HEAD = """# Configuration

Every field of a recipe. On the command line: `zerofleet submit RECIPE section.field=value`. Generated from the code by
`python -m zerofleet.launch.config_reference`; a test keeps it true.
"""

PROFILE_HEAD = """# Profile

Every field of a profile: what the platform team says about its Kubernetes cluster. `docs/kubernetes.md` says what it is for, `k8s/profiles/` has
examples. Generated from the code by `python -m zerofleet.launch.config_reference profile`; a test keeps it true.
"""


def render() -> str:
    """The reference of recipes as Markdown."""
    return HEAD + _sections(JobConfig)


def render_profile() -> str:
    """The reference of profiles; it has settings outside of sections too."""
    fields = config_fields(Profile)
    plain = [
        path for path, field in fields.items() if "." not in path and not field.is_section and not _below(path, fields)
    ]
    return PROFILE_HEAD + table(Profile, plain, fields) + _sections(Profile, without=plain)


def _sections(model: type[Section], without: Collection[str] = ()) -> str:
    """One table per section, a section within another right behind it."""
    fields = config_fields(model)
    parts = []
    for section, about in fields.items():
        rows = [path for path in _below(section, fields) if not fields[path].is_section]
        if rows or about.is_section or ("." not in section and section not in without):
            parts.append(f"\n## `{section}`\n{about.doc}\n" + table(model, rows, fields))
    return "".join(parts)


def table(model: type[Section], paths: list[str], fields: dict[str, ConfigField]) -> str:
    """The fields at `paths`, a row each; empty without any."""
    rows = [f"| `{path.rpartition('.')[2]}` | {_default(model, path)} | {fields[path].doc} |\n" for path in paths]
    return "".join(["\n| field | default | meaning |\n|---|---|---|\n", *rows]) if rows else ""


def _below(section: str, fields: dict[str, ConfigField]) -> list[str]:
    return [path for path in fields if path.rpartition(".")[0] == section]


def _default(model: type[Section], path: str) -> str:
    """The field's default as YAML would spell it; `required` without one."""
    *sections, name = path.split(".")
    for section in sections:
        if section == ANY_NAME:
            continue
        model = _section_in(model.model_fields[section].annotation)
    default = model.model_fields[name].get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    return "none" if default is None else f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _section_in(annotation: Any) -> type[Section]:
    """The section that a field is, may be, or holds several of."""
    candidates = [annotation, *get_args(annotation)]
    return next(c for c in candidates if isinstance(c, type) and issubclass(c, Section))


if __name__ == "__main__":
    sys.stdout.write(render_profile() if sys.argv[1:] == ["profile"] else render())
