"""`python -m zerofleet.launch.config_reference > docs/configuration.md`: every setting, from the config's own docstrings."""

from __future__ import annotations

import json
import sys

from pydantic_core import PydanticUndefined

from zerofleet.launch.config import JobConfig
from zerofleet.launch.config_fields import config_fields
from zerofleet.trainer.config import Section

HEAD = """# Configuration

Every field of a recipe. On the command line: `zerofleet submit RECIPE section.field=value`. Generated from the code by
`python -m zerofleet.launch.config_reference`; a test keeps it true.
"""


def render() -> str:
    """The reference as Markdown: one table per section, a section within another right behind it."""
    fields = config_fields(JobConfig)
    parts = [HEAD]
    for section, about in fields.items():
        if not about.is_section and "." in section:
            continue
        parts.append(f"\n## `{section}`\n{about.doc}\n")
        rows = [
            f"| `{path.rpartition('.')[2]}` | {_default(path)} | {field.doc} |\n"
            for path, field in fields.items()
            if path.rpartition(".")[0] == section and not field.is_section
        ]
        parts += ["\n| field | default | meaning |\n|---|---|---|\n", *rows] if rows else []
    return "".join(parts)


def _default(path: str) -> str:
    """The field's default as YAML would spell it; `required` without one."""
    *sections, name = path.split(".")
    model: type[Section] = JobConfig
    for section in sections:
        annotation = model.model_fields[section].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, Section))
    default = model.model_fields[name].get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    return "none" if default is None else f"`{default if isinstance(default, str) else json.dumps(default)}`"


if __name__ == "__main__":
    sys.stdout.write(render())
