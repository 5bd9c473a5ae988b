"""The style sheet of the report page: light, dark, phone and print."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;
--ink:#1b1f24;--muted:#5b6470;--grid:#e1e5ea;--surface:#fff;--ground:#f5f6f8;
--method:#0072b2;--on-method:#fff;--base:#a3abb5;--clients:#d55e00;
--good:#00704f;--bad:#b3261e;--bad-ground:#fdecea;
--k0:#cc6677;--k1:#332288;--k2:#ddcc77;--k3:#117733;--k4:#88ccee;
--k5:#882255;--k6:#44aa99;--k7:#999933;--k8:#aa4499;--k9:#bbbbbb}
@media screen and (prefers-color-scheme:dark){:root{
--ink:#e6e9ed;--muted:#9da7b3;--grid:#2d343d;--surface:#181c22;--ground:#0f1216;
--method:#4aa8e0;--on-method:#06131c;--base:#737d89;--clients:#f0953f;
--good:#4fc79a;--bad:#ff8a80;--bad-ground:#3a1d1b;
--k1:#7a6be0;--k3:#3fa564;--k5:#c2508a;--k9:#8a8f96}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.75rem;line-height:1.2;margin:.2em 0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.2em 0 .7em}
h3{font-size:1rem;margin:1.6em 0 .5em}
p{margin:.5em 0;overflow-wrap:anywhere}
.lead{font-size:1.1rem;max-width:54em}
.muted,figcaption,dt,.sub{color:var(--muted)}
.up{color:var(--good)}.down{color:var(--bad)}
.warn{background:var(--bad-ground);border-left:4px solid var(--bad);
padding:.6em 1em;border-radius:4px}
dl.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));
gap:.6em 1.5em;margin:1.2em 0}
dt{font-size:.8rem}dd{margin:0;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(215px,1fr));gap:12px;
margin:1.4em 0}
.card,figure,.box,details{background:var(--surface);border:1px solid var(--grid);
border-radius:8px}
.card{padding:14px 16px}
.card b{display:block;font-size:1.65rem;font-weight:650;line-height:1.25;
font-variant-numeric:tabular-nums}
.card b small{font-size:.95rem;font-weight:400;color:var(--muted)}
.card span{font-size:.85rem;display:block}
.box{overflow-x:auto}
.narrow{max-width:56em}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.42em .8em;text-align:right;white-space:nowrap;
border-bottom:1px solid var(--grid)}
tr:last-child>*{border-bottom:0}
thead th{font-size:.82rem;color:var(--muted);font-weight:600;vertical-align:bottom;
white-space:normal;min-width:6em}
tbody th{font-weight:500;white-space:normal;overflow-wrap:break-word;
min-width:6.5em;max-width:16em}
th:first-child,td:first-child,td.name{text-align:left}
tbody th:first-child{position:sticky;left:0;background:var(--surface)}
tr.total>*{font-weight:650;border-top:2px solid var(--grid)}
td .sub{font-size:.82rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));
gap:14px;margin:14px 0}
figure{margin:0;padding:12px 14px;min-width:0}
figcaption{font-weight:600;color:var(--ink);margin-bottom:6px}
figure .sub{font-size:.85rem;margin:.3em 0 0}
svg.plot{display:block;width:100%;max-width:640px;height:auto;margin:0 auto;
overflow:visible;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
svg.plot *{stroke-linejoin:round;stroke-linecap:butt}
svg.plot image{image-rendering:pixelated}
svg.plot text{white-space:pre}
ul.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1em 1em;margin:6px 0 0;
padding:0;font-size:.82rem}
.legend li{max-width:100%;overflow-wrap:anywhere}
.legend i{display:inline-block;width:1.3em;height:.75em;margin-right:.4em;
border-radius:2px;vertical-align:-.03em}
.legend .fill{background:var(--c)}
.legend .band{background:var(--c);opacity:.25}
.legend .line,.legend .dash{height:0;border-radius:0;vertical-align:.28em;
border-top:3px solid var(--c)}
.legend .dash{border-top:2px dashed var(--c)}
details{margin:10px 0;padding:0 14px}
summary{cursor:pointer;padding:.7em 0;font-weight:600;overflow-wrap:anywhere}
details[open]{padding-bottom:14px}
pre{overflow-x:auto;background:var(--ground);border:1px solid var(--grid);
border-radius:6px;padding:.8em 1em;
font:.82rem/1.45 ui-monospace,Menlo,Consolas,monospace;
margin:.6em 0}
ul.names{columns:22em;font-size:.85rem;overflow-wrap:anywhere}
details figure,details .box{background:none}
details tbody th:first-child{background:var(--surface)}
footer{margin-top:3em;font-size:.85rem;color:var(--muted)}
@media (max-width:480px){main{padding:14px 12px 40px}h1{font-size:1.4rem}
th,td{padding:.4em .55em}figure{padding:10px}details{padding:0 10px}
dl.facts{grid-template-columns:repeat(auto-fit,minmax(120px,1fr))}}
@media print{body{background:#fff;font-size:11pt}main{max-width:none;padding:0}
figure,.card,tr{break-inside:avoid}.box{overflow:visible}
.grid{grid-template-columns:1fr 1fr}pre{white-space:pre-wrap}
details::details-content{content-visibility:visible;height:auto}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
""".strip()
