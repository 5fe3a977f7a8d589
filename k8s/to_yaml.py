"""Documents as YAML text that kubectl reads as it was meant. Same documents, same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

_AMBIGUOUS = re.compile(r"[-+.]?\d[-+.,:_\da-fxo]*|[yn]", re.IGNORECASE)
"""Text that Go's YAML may take for a number or a truth value where Python's does not (`1e3`, `y`, `0o7`)."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # lists are indented, as kubectl prints them not but people read them


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else "'" if _AMBIGUOUS.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(documents: Iterable[dict[str, Any]], comment: Iterable[str] = ()) -> str:
    """One multi-document text, with lines of comment before it."""
    return "".join(f"# {line}\n" for line in comment) + "".join(
        "---\n" + yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
        for document in documents
    )
