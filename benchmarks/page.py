"""A result as a page for people: a table in Markdown, and a picture of every value.

The picture shows each figure's values over their own median, so that seconds and bytes share a scale: from top to bottom in the order in which they were measured, so that drift is
seen, with the median's interval as a band.
"""

from __future__ import annotations

import html
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from zerofleet.benchmarks.record import Result, Series

_MADE = "<!-- made by zerofleet bench -->"
"""First line of what may be overwritten."""
_WIDTH, _NAMES, _ROW, _TOP = 900, 400, 44, 40
"""In pixels: of the picture, of the names' column in it, of a figure's row, and above the rows."""
_LEAST_SPAN, _MOST_SPAN = 0.05, 0.5
"""Share of the median that the picture reaches to both sides: as far as its values lie apart, within these."""
_NAME_CHARACTERS = 62
_STYLE = """
svg{font:12px system-ui,"Segoe UI",Roboto,"Liberation Sans",sans-serif;background:#fff}
text{fill:#1c2127}.dim{fill:#5d6773}line{stroke:#dde1e6}.band{fill:#3f7fbf;fill-opacity:.18}circle{fill:#3f7fbf}.out{fill:none;stroke:#b8304a}
@media(prefers-color-scheme:dark){svg{background:#14171a}text{fill:#e4e7eb}.dim{fill:#9aa4af}line{stroke:#30363d}.band{fill:#7fb2d9;fill-opacity:.25}circle{fill:#7fb2d9}.out{stroke:#ff8090}}
"""


def write_pages(result: Result, output: Path, drawn: Mapping[str, str] = MappingProxyType({})) -> None:
    """Beside `output`, a .json file: a page (.md), a picture (.svg), and what the benchmark has `drawn` itself (by suffix), in place of the page where it is one. A file that somebody else has
    written stays, and that is told."""
    picture, pages = svg_of(result), dict(drawn)
    if picture is not None:
        pages[".svg"] = picture
    link = f"![each value over its figure's median]({output.with_suffix('.svg').name})\n" if ".svg" in pages else ""
    pages[".md"] = "\n".join(filter(None, [pages.get(".md") or markdown_of(result), link]))
    for suffix, text in pages.items():
        path = output.with_suffix(suffix)
        if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(_MADE):
            sys.stderr.write(f"{path} was not made by `zerofleet bench` and stays as it is\n")
            continue
        path.write_text(f"{_MADE}\n{text}", encoding="utf-8")


def markdown_of(result: Result) -> str:
    """What was measured, on what, and every figure."""
    environment = result.environment
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    gpus = ", ".join(environment.get("accelerators", [])) or "no GPU"
    build = f"{result.build.version} ({result.build.commit})" if result.build.commit else result.build.version
    loads = (f"{load[0]:.2f}" for load in (result.load_average.before, result.load_average.after))
    lines = [
        f"# {result.benchmark}, {result.started_at}",
        "",
        f"`zerofleet bench {shlex.join([result.benchmark, *result.command])}` on zerofleet {build}: {result.duration_s:.0f} s, exit code {result.exit_code}.",
        f"{environment.get('processor')}, {environment.get('cores')} cores, {environment.get('memory_gib')} GiB, {gpus}; Python {environment.get('python')}, {packages}. "
        f"Load average {' before, '.join(loads)} after.",
        "",
        f"| figure | unit | better | values | median | {result.confidence:.0%} of the median | middle half |",
        "|---|---|---|---|---|---|---|",
        *map(_row, result.series),
        "",
        "The middle half is the distance of the quartiles over the median. Every value lies in the JSON file beside this page.",
    ]
    return "\n".join(lines) + "\n"


def _row(series: Series) -> str:
    interval = "" if series.interval is None else " to ".join(map(_number, series.interval))
    half = ""
    if len(series.values) >= 4 and series.median:
        low, _, high = statistics.quantiles(series.values, method="inclusive")
        half = f"{(high - low) / abs(series.median):.1%}"
    name = series.name.replace("|", "\\|")
    return f"| {name} | {series.unit} | {series.better or ''} | {len(series.values)} | {_number(series.median)} | {interval} | {half} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def svg_of(result: Result) -> str | None:
    """None: no figure has been measured more than once, or none has a median to be compared with."""
    shown = [series for series in result.series if len(series.values) > 1 and series.median > 0]
    if not shown:
        return None
    furthest = max(abs(value / series.median - 1) for series in shown for value in series.values)
    span = min(_MOST_SPAN, max(_LEAST_SPAN, furthest * 1.05))
    height = _TOP + _ROW * len(shown) + 10
    body = [*_axis(span, height)]
    for number, series in enumerate(shown):
        body += _figure(series, _TOP + _ROW * number, span)
    title = html.escape(f"{result.benchmark}, {result.started_at}: each value over its figure's median")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" aria-label="{title}">'
        f"<title>{title}</title><style>{_STYLE}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )


def _x(share: float, span: float) -> float:
    """Of a value that is `share` of its median away from it."""
    middle, half = (_NAMES + _WIDTH - 20) / 2, (_WIDTH - 20 - _NAMES) / 2
    return middle + half * share / span


def _axis(span: float, height: int) -> Iterator[str]:
    for share in (-span, -span / 2, 0.0, span / 2, span):
        x = _x(share, span)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{height - 10}"/>'
        yield f'<text class="dim" x="{x:.1f}" y="{_TOP - 14}" text-anchor="middle">{1 + share:.3g}</text>'


def _figure(series: Series, top: int, span: float) -> Iterator[str]:
    name = series.name if len(series.name) <= _NAME_CHARACTERS else f"{series.name[: _NAME_CHARACTERS - 1]}…"
    yield f'<text x="8" y="{top + 18}">{html.escape(name)}</text>'
    yield f'<text class="dim" x="8" y="{top + 33}">{html.escape(f"{_number(series.median)} {series.unit}, {len(series.values)} values")}</text>'
    if series.interval is not None:
        low, high = (_x(max(-span, min(span, end / series.median - 1)), span) for end in series.interval)
        yield f'<rect class="band" x="{low:.1f}" width="{max(1.0, high - low):.1f}" y="{top + 4}" height="{_ROW - 8}"/>'
    yield from _dots(series.values, series.median, top, span)


def _dots(values: Sequence[float], median: float, top: int, span: float) -> Iterator[str]:
    step = (_ROW - 14) / max(1, len(values) - 1)
    for number, value in enumerate(values):
        share = value / median - 1
        is_out = abs(share) > span
        x = _x(max(-span, min(span, share)), span)
        kind = ' class="out"' if is_out else ""
        yield f'<circle{kind} cx="{x:.1f}" cy="{top + 7 + number * step:.1f}" r="2.5"/>'
