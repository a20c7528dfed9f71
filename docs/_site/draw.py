"""Draw the mermaid sources of a page: ``python docs/_site/draw.py docs/design.md mermaid.min.js``.

Needs Chromium, and mermaid's file (``npm pack mermaid@11``). Run it after a source was changed; the
drawings are committed, so that the site needs no network and no browser.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURES = Path(__file__).parents[1] / "pictures"

PAGE = """<script src="{mermaid}"></script><pre id="out"></pre><script>
mermaid.initialize({{startOnLoad: false, theme: "base", htmlLabels: false,
  flowchart: {{htmlLabels: false, nodeSpacing: 24, rankSpacing: 30}}, fontFamily: "sans-serif"}});
(async () => {{
  for (const [i, source] of {sources}.entries())
    out.textContent += "@@@" + (await mermaid.render("d" + i, source)).svg;
}})();
</script>"""

#: The colors are the page's, light or dark.
STYLE = """<style>
.drawing text { fill: currentColor; font: 14px sans-serif; text-anchor: middle; }
.drawing rect, .drawing circle, .drawing polygon, .drawing .basic { fill: none; stroke: #7986cb; }
.drawing .label-container { fill: #7986cb22; }
.drawing path.flowchart-link { fill: none; stroke: currentColor; }
.drawing .edge-pattern-dotted { stroke-dasharray: 3; }
.drawing marker path { fill: currentColor; }
.drawing rect.background { stroke: none; }
.drawing .edgeLabel rect { fill: var(--md-default-bg-color, #fff); stroke: none; }
</style>"""


def rendered(sources: list[str], mermaid: Path) -> list[str]:
    """What mermaid makes of them, in a browser."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(
            PAGE.format(mermaid=mermaid.resolve().as_uri(), sources=json.dumps(sources))
        )
        browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        options = ["--allow-file-access-from-files", f"--user-data-dir={folder}/user"]
        budget = ["--virtual-time-budget=15000", "--dump-dom", page.as_uri()]
        done = subprocess.run([*browser, *options, *budget], capture_output=True, text=True)
    dom = html.unescape(done.stdout)
    return [part[: part.index("</svg>") + 6] for part in dom.split("@@@")[1:] if "</svg>" in part]


def slim(svg: str) -> str:
    """Without mermaid's own style, bookkeeping and unused arrow heads."""
    svg = re.sub(r"<style>.*?</style>", STYLE.replace("\\", ""), svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' (?:data-[\w-]+|aria-[\w-]+|role|style|font-\w+)="[^"]*"', "", svg)
    used = set(re.findall(r"url\(#([^)]*)\)", svg))
    markers = re.compile(r'<marker id="([^"]*)".*?</marker>', re.DOTALL)
    return markers.sub(lambda match: match[0] if match[1] in used else "", svg) + "\n"


def main() -> None:
    page, mermaid = map(Path, sys.argv[1:])
    sources = re.findall(r"```mermaid\n(.*?)```", page.read_text(), re.DOTALL)
    for number, svg in enumerate(rendered(sources, mermaid), 1):
        (PICTURES / f"{page.stem}-{number}.svg").write_text(slim(svg))


if __name__ == "__main__":
    main()
