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
:root{color-scheme:light dark;--bg:#fff;--fg:#1c2127;--dim:#5d6773;--rule:#dde1e6;--card:#f5f6f8;--bad:#b8304a;--good:#1f7a5c}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e4e7eb;--dim:#9aa4af;--rule:#30363d;--card:#1d2125;--bad:#ff8090;--good:#5cc9a3}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:20px 16px 40px;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",sans-serif;overflow-wrap:break-word;-webkit-text-size-adjust:100%}
h1{font-size:1.6em;line-height:1.2;margin:.2em 0 .7em}
h2{font-size:1.15em;margin:2.2em 0 .8em;padding-bottom:.25em;border-bottom:1px solid var(--rule)}
p{margin:.6em 0}small,.unit,.x,.y,.facts div>span,th,time{color:var(--dim)}.bad{color:var(--bad);font-weight:600}.good{color:var(--good)}
.n,.facts b,.x,.y,time{font-variant-numeric:tabular-nums}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:8px}
.facts div{background:var(--card);border-radius:6px;padding:8px 10px}.facts b,.facts div>span{display:block}.facts b{font-size:1.1em;line-height:1.35}.facts div>span{font-size:13px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:24px 28px}
figure{margin:0;min-width:0}figcaption{display:flex;flex-wrap:wrap;gap:0 10px;align-items:baseline;font-size:14px;margin-bottom:4px}
figcaption b:last-child{margin-left:auto}
.plot{display:flex}.plot svg{flex:1;min-width:0;height:160px;background:var(--card);border-radius:4px}
.y{position:relative;width:56px;flex:none;font-size:12px}.y span{position:absolute;right:7px;white-space:nowrap;transform:translateY(-50%);line-height:1}
.x{position:relative;height:20px;margin-left:56px;font-size:12px}.x span{position:absolute;top:3px;transform:translateX(-50%);white-space:nowrap}
.x span.first{transform:none}.x span.last{transform:translateX(-100%)}
path{vector-effect:non-scaling-stroke}.grid{fill:none;stroke:var(--rule)}.line{fill:none;stroke:var(--c);stroke-width:1.6}.band{fill:var(--c);opacity:.22}
.dots{stroke:var(--c);stroke-width:6;stroke-linecap:round}.mark{stroke:var(--dim);stroke-dasharray:3 3}
.c1{--c:#3f7fbf}.c2{--c:#dd9f1f}.c3{--c:#2a9d8f}.c4{--c:#a8558f}.c5{--c:#8d93a6}.c6{--c:#ef8a4a}
.key{white-space:nowrap}.key::before{content:"";display:inline-block;width:10px;height:10px;border-radius:2px;background:var(--c);margin-right:5px}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:13px}.key.dot::before{background:var(--fg);border-radius:5px}
.row{display:flex;gap:8px;align-items:center;margin:5px 0}.row>span{width:96px;flex:none;font-size:12px;line-height:1.25}
.bar{position:relative;flex:1;min-width:0;height:30px;background:var(--card)}.bar svg,.mini{width:100%;height:100%;display:block}.bar path,.mini path{fill:var(--c)}
.bar i{position:absolute;top:-6px;min-width:14px;height:14px;padding:0 3px;border-radius:7px;transform:translateX(-50%);background:var(--fg);color:var(--bg);
box-shadow:0 0 0 1px var(--bg);font:600 9px/14px system-ui,sans-serif;text-align:center}.bar i:empty{min-width:8px;height:8px;top:-4px;padding:0}
.x.rowed{margin-left:104px}td.mini-cell{min-width:260px}.mini{height:12px;margin-top:5px}.mini .limit{stroke:var(--fg);stroke-width:2}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px}td,th{padding:4px 14px 4px 0;text-align:left;vertical-align:top}
th{font-weight:500;white-space:nowrap}td{border-top:1px solid var(--rule)}.n,.k{white-space:nowrap}td.k{color:var(--dim)}td.n,th.n{text-align:right}
.event{display:grid;grid-template-columns:120px 76px 1fr;gap:0 10px;padding:5px 0;border-top:1px solid var(--rule);font-size:14px}.event:first-of-type{border-top:0}.event p{margin:0;min-width:0}
.event time,.event span{font-size:13px;white-space:nowrap}
.tag{display:inline-block;min-width:16px;padding:0 4px;margin-right:6px;border-radius:8px;background:var(--fg);color:var(--bg);font:600 10px/16px system-ui,sans-serif;text-align:center}
pre{background:var(--card);padding:10px;border-radius:6px;overflow-x:auto;font-size:12px}summary{cursor:pointer}
ol{padding-left:1.4em}li{margin:.6em 0}ul{padding-left:1.2em;font-size:13px}ul li{margin:.3em 0}
.best{background:var(--card);border-left:4px solid #2a9d8f;padding:8px 12px}
@media(max-width:600px){body{font-size:15px}.event{grid-template-columns:1fr auto}.event p{grid-column:1/-1}.row>span{width:64px}.x.rowed{margin-left:72px}td,th{padding-right:10px}td.mini-cell{min-width:84px}}
"""
    + _LABELS
)
