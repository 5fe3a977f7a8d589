"""Tags and escaped text. Whatever a user or an error has said goes through `text`."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def text(value: object) -> str:
    """As the content of an element, or of a quoted attribute. Characters that HTML does not have become `?`."""
    return html.escape(_CONTROL.sub("?", str(value)), quote=True)


def section(title: str, *parts: str) -> str:
    """Empty when all of its parts are."""
    body = "".join(parts)
    return f"<section><h2>{text(title)}</h2>{body}</section>\n" if body else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> str:
    """Cells are HTML. Columns from `numbers_from` on hold numbers. Empty without rows; wide ones scroll by themselves."""
    body = "".join(
        f"<tr>{''.join(f'<td class=n>{c}</td>' if n >= numbers_from else f'<td>{c}</td>' for n, c in enumerate(row))}</tr>"
        for row in rows
    )
    if not body:
        return ""
    cells = "".join(f"<th>{text(name)}</th>" for name in head)
    return f"<div class=wide><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Large figures with what they are; values are HTML."""
    cells = "".join(f"<div><b>{value}</b><span>{text(name)}</span></div>" for name, value in pairs if value)
    return f"<div class=facts>{cells}</div>"
