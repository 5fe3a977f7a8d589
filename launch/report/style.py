"""The page's style: light and dark by the reader's choice, one column on a phone."""

COLOURS = {
    "step": "#3f7fbf",
    "eval": "#7fb2d9",
    "start": "#8d93a6",
    "prepare": "#b3b8c6",
    "queue": "#c9b26a",
    "compile": "#9a6fc0",
    "data-wait": "#dd9f1f",
    "save-stall": "#2a9d8f",
    "lost-work": "#d1495b",
    "detect": "#ef8a4a",
    "restart": "#a8558f",
    "end": "#6d7782",
}
"""By CSS class of a label: told apart on white and on black."""

_LABELS = "".join(f".l-{name}{{--c:{colour}}}" for name, colour in COLOURS.items())

STYLE = (
    """
:root{color-scheme:light dark;--bg:#fff;--fg:#1c2127;--dim:#66707c;--rule:#dde1e6;--card:#f5f6f8}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e4e7eb;--dim:#98a2ad;--rule:#30363d;--card:#1d2125}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1100px;padding:16px;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5em;margin:.2em 0}h2{font-size:1.15em;margin:2em 0 .5em;border-bottom:1px solid var(--rule)}
small,figcaption,.x,.y,.facts span,th{color:var(--dim)}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(140px,1fr));gap:8px}
.facts div{background:var(--card);border-radius:6px;padding:8px 10px}.facts b,.facts span{display:block}.facts b{font-size:1.2em}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:20px}
figure{margin:0}.plot{display:flex;gap:6px}.plot svg{flex:1;min-width:0;height:160px;background:var(--card);border-radius:4px}
.y{display:flex;flex-direction:column;justify-content:space-between;font-size:12px;text-align:right;min-width:3.5em}
.x{display:flex;justify-content:space-between;font-size:12px;margin-left:calc(3.5em + 6px)}.x.rowed{margin-left:96px}
path{vector-effect:non-scaling-stroke}.line{fill:none;stroke:var(--c);stroke-width:1.6}.band{fill:var(--c);opacity:.2}
.dots{stroke:var(--c);stroke-width:6;stroke-linecap:round}.mark{stroke:var(--dim);stroke-dasharray:3 3}
.c1{--c:#3f7fbf}.c2{--c:#dd9f1f}
.key::before{content:"";display:inline-block;width:10px;height:10px;border-radius:2px;background:var(--c);margin:0 4px 0 10px}
.key.dot::before{background:var(--fg);border-radius:5px}
.legend{font-size:13px}.row{display:flex;gap:6px;align-items:center;margin:4px 0}.row>span{width:90px;font-size:12px;line-height:1.2}
.bar{position:relative;flex:1;min-width:0;height:28px;background:var(--card)}.bar svg{width:100%;height:100%;display:block}.bar path{fill:var(--c)}
.bar i{position:absolute;top:-3px;width:8px;height:8px;margin-left:-4px;border-radius:4px;background:var(--fg);border:1px solid var(--bg)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px}td,th{padding:3px 10px 3px 0;text-align:left;vertical-align:top}
td{border-top:1px solid var(--rule)}.n{font-variant-numeric:tabular-nums;white-space:nowrap}.bad{color:#d1495b;font-weight:600}
pre{background:var(--card);padding:10px;border-radius:6px;overflow-x:auto;font-size:12px}summary{cursor:pointer}
ol{padding-left:1.4em}li{margin:.6em 0}.best{background:var(--card);border-left:4px solid #2a9d8f;padding:8px 12px}
"""
    + _LABELS
)
