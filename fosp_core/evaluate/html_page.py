# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The frame of every report: one HTML page, light and dark, wide and narrow, that needs no network. Strings alone."""

import html
from collections.abc import Iterable

STYLE = """
:root{--paper:#fff;--soft:#f4f6f8;--ink:#1b1f24;--dim:#5a6472;--line:#d9dfe6;--sr:#2166c4;--cv:#c8541b;--mark:#6b4fbb;
--touch:#c8541b33;--bad:#b3261e;--good:#1a7f4b}
@media (prefers-color-scheme:dark){:root{--paper:#14171c;--soft:#1d2229;--ink:#e8ebef;--dim:#a2adba;--line:#343c47;
--sr:#6aa5f5;--cv:#f5965a;--mark:#b9a3f5;--touch:#f5965a33;--bad:#ff8a80;--good:#6fd6a0}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1240px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3em}h2{font-size:1.15rem;margin:2.2em 0 .6em}
h3{font-size:1rem;margin:0 0 .4em}p{margin:.5em 0;max-width:72ch;overflow-wrap:anywhere}.dim{color:var(--dim)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}
.tile,.card{background:var(--soft);border:1px solid var(--line);border-radius:8px;padding:12px 14px;min-width:0}
.tile b{display:block;font-size:1.35rem;line-height:1.3}.tile span{color:var(--dim);font-size:.86rem}
.bad{color:var(--bad)}.good{color:var(--good)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:16px}
.grid>.card{margin:0}svg{display:block;width:100%;max-width:560px;height:auto;margin:0 auto}
.scroll{overflow-x:auto;margin-bottom:16px}table{border-collapse:collapse;width:100%;font-size:.94rem}
th,td{padding:7px 8px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}th{color:var(--dim);font-weight:600}
td.words,th.words{text-align:left;white-space:normal}
.dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;font-size:.94rem}
.dl dt{color:var(--dim)}.dl dd{margin:0;overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--soft);border:1px solid var(--line);border-radius:8px;
padding:12px 14px;font-size:.85rem;line-height:1.45}
img{display:block;max-width:100%;height:auto;border-radius:6px;margin:0 auto}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:.86rem;color:var(--dim);margin-top:6px}
.key i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px}
text.tick{font:11px system-ui,sans-serif;fill:var(--dim)}text.axis{font:11px system-ui,sans-serif;fill:var(--ink)}
line.grid{stroke:var(--line);stroke-width:.8}line.whisker{stroke:var(--ink);stroke-width:1.2}
line.mark{stroke:var(--mark);stroke-width:1.3;stroke-dasharray:4 3}
rect.sr,i.sr{fill:var(--sr);background:var(--sr)}rect.cv,i.cv{fill:var(--cv);background:var(--cv)}
rect.touch,i.touch{fill:var(--touch);background:var(--touch)}i.mark{background:var(--mark)}
path.line-sr{fill:none;stroke:var(--sr);stroke-width:1.6}
path.line-cv{fill:none;stroke:var(--cv);stroke-width:1.8;stroke-linejoin:round}
circle.changed,i.changed{fill:var(--mark);background:var(--mark)}i.changed{border-radius:50%}
.dot{fill:var(--sr);stroke:var(--sr);stroke-width:1.6}line.arm{stroke:var(--sr);stroke-width:1.1;opacity:.55}
.dot.k1{fill:var(--cv)}line.arm.k1{stroke:var(--cv)}.dot.k2{fill:var(--mark)}line.arm.k2{stroke:var(--mark)}
.dot.k3{fill:var(--good)}line.arm.k3{stroke:var(--good)}.dot.k4{fill:var(--dim)}line.arm.k4{stroke:var(--dim)}
i.k0{background:var(--sr)}i.k1{background:var(--cv)}i.k2{background:var(--mark)}i.k3{background:var(--good)}i.k4{background:var(--dim)}
details{margin:.6em 0}summary{cursor:pointer;color:var(--dim)}code{font-size:.84rem;overflow-wrap:anywhere}
.dot.k1{stroke:var(--cv)}.dot.k2{stroke:var(--mark)}.dot.k3{stroke:var(--good)}.dot.k4{stroke:var(--dim)}
.dot.hollow{fill:var(--soft)}line.mean{stroke:var(--sr);stroke-width:2}line.mean.k1{stroke:var(--cv)}
line.mean.k2{stroke:var(--mark)}line.mean.k3{stroke:var(--good)}line.mean.k4{stroke:var(--dim)}
@media (max-width:640px){.dl{grid-template-columns:1fr}.dl dd{margin-bottom:.5em}
th,td{padding:6px 7px}table{font-size:.86rem}main{padding:20px 14px 40px}
table.rates thead{display:none}table.rates tr{display:grid;grid-template-columns:1fr 1fr;padding:8px 0;
border-bottom:1px solid var(--line)}table.rates td{border:0;text-align:left;white-space:normal;padding:2px 4px}
table.rates td::before{content:attr(data-name) " ";color:var(--dim)}}
"""

WORDS = 30   # letters: a longer cell is a sentence, no number


def cell(name: str, text: str) -> str:
    """Return a table cell; `name` is its column, shown where a narrow screen stacks the cells. A long text breaks."""
    words = ' class="words"' if len(text) > WORDS else ''
    return f'<td{words} data-name="{html.escape(name)}">{html.escape(text)}</td>'


def document(title: str, parts: Iterable[str]) -> str:
    """Return the page around the HTML of its parts."""
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            f'<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>'
            + ''.join(parts) + '</main></body></html>\n')
