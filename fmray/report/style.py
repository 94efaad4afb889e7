"""The style sheet of the report: light and dark by the reader's preference, from 320 px up, and fit for print."""

_LIGHT = """
--bg:#f6f7f9;--card:#fff;--ink:#1b2027;--muted:#55606c;--line:#d5dbe1;--grid:#e6eaee;--accent:#0b5cad;
--s1:#0b66c3;--s2:#b0521a;--s3:#6f42c1;--s4:#1f7a4d;--s5:#8a5a00;--s6:#b3256e;
--good:#1a7f37;--good-bg:#e7f5ea;--bad:#b3261e;--bad-bg:#fdecea;--warn:#855400;--warn-bg:#fdf3dc;--quiet-bg:#eef1f4;--node:#fff;
"""
_DARK = """
--bg:#0e1318;--card:#161c23;--ink:#e6ebf0;--muted:#9ba8b5;--line:#323b45;--grid:#252d36;--accent:#79b8ff;
--s1:#6cb2ff;--s2:#f0a065;--s3:#c7a0ff;--s4:#5ecb91;--s5:#e3b341;--s6:#ff8ec2;
--good:#5bd170;--good-bg:#12291a;--bad:#ff8178;--bad-bg:#331614;--warn:#e8b84a;--warn-bg:#2d220c;--quiet-bg:#1f272f;--node:#1a222b;
"""
_PAGE = """
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;overflow-wrap:anywhere;background:var(--bg);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header,footer{max-width:1240px;margin:0 auto;padding:0 24px}
header{padding-top:34px}
h1{font-size:30px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:20px;margin:0 0 4px;letter-spacing:-.005em}
h3{font-size:15px;margin:26px 0 6px}
p{margin:6px 0 12px;max-width:78ch}
.eyebrow{color:var(--muted);font-size:13px;margin:0 0 8px}
.verdict{font-size:17px;max-width:86ch;margin:10px 0 16px;overflow-wrap:anywhere}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px 22px;margin:18px 0;scroll-margin-top:12px}
.lead{color:var(--muted);margin:0 0 14px}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:14px;margin:14px 0 0}
a{color:var(--accent);text-underline-offset:2px}
a:focus-visible,[tabindex]:focus-visible,summary:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:4px}
code,pre,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:.88em}
code{overflow-wrap:anywhere}
small{color:var(--muted)}
footer{color:var(--muted);font-size:13px;padding-top:6px;padding-bottom:36px}
"""
_PARTS = """
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(196px,1fr));gap:12px;margin:18px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:13px 15px;display:flex;flex-direction:column;gap:2px}
.tile dt{font-size:13px;color:var(--muted)}
.tile dd{margin:0;font-size:23px;line-height:1.25;font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.tile dd.note{font-size:13px;color:var(--muted);letter-spacing:0}
.tag{display:inline-block;font-size:11.5px;line-height:1.5;padding:0 7px;border-radius:99px;background:var(--quiet-bg);color:var(--muted);white-space:nowrap}
.pill{display:inline-block;font-size:12.5px;font-weight:600;line-height:1.6;padding:0 9px;border-radius:99px;background:var(--quiet-bg);color:var(--ink);white-space:nowrap}
.pill.admitted,.pill.pass,.pill.live{background:var(--good-bg);color:var(--good)}
.pill.refused,.pill.fail,.pill.damaged,.pill.high{background:var(--bad-bg);color:var(--bad)}
.pill.waived,.pill.unfinished,.pill.medium,.pill.missing{background:var(--warn-bg);color:var(--warn)}
.scroll{overflow-x:auto;margin:10px 0}
table{overflow-wrap:break-word;border-collapse:collapse;width:100%;font-size:14px}
caption{text-align:left;color:var(--muted);font-size:13px;padding:0 0 6px}
th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--grid);vertical-align:top}
th{font-weight:600;font-size:13px;color:var(--muted);white-space:nowrap}
td .rule{display:inline-block;min-width:210px}
td.num,th.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tr.best td{background:var(--good-bg)}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:8px 36px}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;font-size:14px;margin:8px 0}
.facts.inline{display:flex;flex-wrap:wrap;gap:6px 30px}.facts.inline>div{display:flex;flex-direction:column-reverse}.facts.inline dt{font-size:12.5px}
.panel{margin-top:18px}.panel>p{margin:0}.samples{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:0 16px}
.facts dt{color:var(--muted)}.facts dd{margin:0;overflow-wrap:anywhere}
blockquote{margin:8px 0;padding:8px 14px;border-left:3px solid var(--line);background:var(--quiet-bg);border-radius:0 8px 8px 0;unicode-bidi:isolate}
blockquote b{font-weight:600}
.sample{white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px}
.piece{margin:0 0 4px;padding:2px 0 2px 10px;border-left:3px solid var(--s1);white-space:pre-wrap;overflow-wrap:anywhere}
details .lead{margin:14px 0 6px}details{margin:10px 0}summary{cursor:pointer;color:var(--accent);font-size:14px}
"""
_CHARTS = """
.chart{margin:26px 0 8px}
.plot{padding:0 10px 46px 52px}
.plot svg,.rows svg{overflow:visible;display:block}
svg text{font-family:inherit;fill:var(--ink)}
svg .tick{font-size:11.5px;fill:var(--muted)}
svg .axis-name{font-size:12px;fill:var(--muted)}
svg .guide-name{font-size:11.5px;fill:var(--muted)}
svg .grid{stroke:var(--grid);stroke-width:1}
svg .axis{stroke:var(--muted);stroke-width:1}
svg .guide{stroke:var(--muted);stroke-width:1.2;stroke-dasharray:5 4}
svg .line{fill:none;stroke-width:2;stroke-linejoin:round}
svg .interval{stroke:var(--ink);stroke-width:1.6}
svg .control{fill:none;stroke:var(--ink);stroke-width:1.6}
svg .dot{stroke:var(--card);stroke-width:1.5}
.s1{fill:var(--s1);stroke:var(--s1);background:var(--s1)}.s2{fill:var(--s2);stroke:var(--s2);background:var(--s2)}
.s3{fill:var(--s3);stroke:var(--s3);background:var(--s3)}.s4{fill:var(--s4);stroke:var(--s4);background:var(--s4)}
.s5{fill:var(--s5);stroke:var(--s5);background:var(--s5)}.s6{fill:var(--s6);stroke:var(--s6);background:var(--s6)}
svg .line{background:none}svg .line.s2{stroke-dasharray:7 3}svg .line.s3{stroke-dasharray:2 3}svg .line.s4{stroke-dasharray:9 3 2 3}
svg .bar{stroke:none;opacity:.82}svg .bar.base{fill:var(--muted);opacity:.45}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:2px 0 0;padding:0 0 0 52px;font-size:13px;color:var(--muted)}
.key{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:7px;vertical-align:-1px}
.rows{margin:14px 0 4px}
.row{display:grid;grid-template-columns:minmax(130px,23%) 1fr minmax(120px,27%);gap:0 18px;align-items:center;padding:2px 0;font-size:14px}
.row-label{overflow-wrap:anywhere}
.row-value{font-variant-numeric:tabular-nums;font-size:13.5px}.row-value small{display:block;line-height:1.35}
.row.scale .unit{color:var(--muted);font-size:12px}
"""
_FLOW = """
.lifecycle{overflow-x:auto;margin:6px -6px 0}
.flow svg{display:block;margin:0 auto;max-width:none}
.flow.narrow{display:none}
.node{fill:var(--node);stroke:var(--line);stroke-width:1.3}
.node.admitted{fill:var(--good-bg);stroke:var(--good)}.node.refused,.node.damaged{fill:var(--bad-bg);stroke:var(--bad)}
.node.waived{fill:var(--warn-bg);stroke:var(--warn)}.node.unfinished{fill:var(--warn-bg);stroke:var(--warn);stroke-dasharray:5 4}
.node.not-run{fill:none;stroke-dasharray:3 4}
.stripe{fill:var(--s1)}.stripe.admitted{fill:var(--good)}.stripe.refused,.stripe.damaged{fill:var(--bad)}
.stripe.waived,.stripe.unfinished{fill:var(--warn)}.stripe.not-run{fill:none}
svg .node-name{font-size:13px;font-weight:600}
svg .node-stage,svg .node-figure{font-size:11.5px;fill:var(--muted)}
svg .node-figure.admitted{fill:var(--good)}svg .node-figure.refused,svg .node-figure.damaged{fill:var(--bad)}
svg .node-figure.waived,svg .node-figure.unfinished{fill:var(--warn)}
.lifecycle a:hover .node{stroke:var(--accent);stroke-width:2}
svg .edge{fill:none;stroke:var(--muted);stroke-width:1.8}svg .tip{fill:var(--muted)}
svg .further{opacity:.5}svg .thin{fill:none;stroke:var(--muted);stroke-width:1.1;stroke-linejoin:round}svg .thin-tip{fill:var(--muted)}
svg .loop{fill:none;stroke:var(--warn);stroke-width:2;stroke-dasharray:6 4;stroke-linejoin:round}svg .loop-tip{fill:var(--warn)}
svg .loop-name{font-size:11.5px;font-weight:600;fill:var(--warn)}
"""
_MEDIA = """
@media (max-width:1000px){.flow.wide{display:none}.flow.narrow{display:block}}
@media (max-width:640px){
main,header,footer{padding-left:14px;padding-right:14px}.card{padding:16px 14px}h1{font-size:24px}.verdict{font-size:16px}
.row{grid-template-columns:1fr auto;gap:0 10px;padding:6px 0}.row>svg{grid-column:1/-1;grid-row:2}.row-value{text-align:right;justify-self:end}
.row.scale{grid-template-columns:1fr;padding-top:0}.row.scale>svg{grid-row:1}.row.scale .unit{grid-row:2}
.tiles{grid-template-columns:repeat(2,minmax(0,1fr));gap:8px}.tile{padding:10px 12px}.tile dd{font-size:19px}
.facts{grid-template-columns:1fr}.facts dd{margin-bottom:6px}.plot{padding-left:46px}.legend{padding-left:0}
}
@media print{body{background:#fff}.card,.tile{break-inside:avoid}nav{display:none}}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
"""


def sheet() -> str:
    """The whole style sheet as one text."""
    scheme = f":root{{color-scheme:light dark;{_LIGHT}}}@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    return "".join((scheme, _PAGE, _PARTS, _CHARTS, _FLOW, _MEDIA)).replace("\n", "")
