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


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kinds: Sequence[str] = ()) -> str:
    """Cells are HTML. `kinds` are the columns' CSS classes: `n` for numbers (all of them by default, but the first), `k` for keys, `t` for
    text, `mini-cell` for a bar. Empty without rows; wide ones scroll by themselves."""
    kinds = kinds or ("k", *("n" for _ in head[1:]))
    body = "".join(
        f"<tr>{''.join(f'<td class={kind}>{cell}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>"
        for row in rows
    )
    if not body:
        return ""
    cells = "".join(f"<th class={kind}>{text(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    top = f"<thead><tr>{cells}</tr></thead>" if any(head) else ""
    return f"<div class=wide><table>{top}<tbody>{body}</tbody></table></div>"


def mini_bar(pieces: Iterable[tuple[str, float]], mark: float | None = None) -> str:
    """A bar of pieces (CSS class, share of the whole width); `mark` is the share at which there is a line."""
    drawn, left = "", 0.0
    for kind, part in pieces:
        drawn += f'<path class="{kind}" d="M{100 * left:.4g} 0h{100 * part:.4g}v10h-{100 * part:.4g}z"/>'
        left += part
    line = "" if mark is None else f'<path class=limit d="M{100 * mark:.4g} 0V10"/>'
    return f'<svg class=mini viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{drawn}{line}</svg>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Large figures with what they are; values are HTML."""
    cells = "".join(f"<div><b>{value}</b><span>{text(name)}</span></div>" for name, value in pairs if value)
    return f"<div class=facts>{cells}</div>"
