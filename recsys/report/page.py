"""The frame of every HTML page: one style sheet for light and dark, no request to the network.

Called by the files of this folder that write pages.
"""

import base64
import hashlib
import html

COLOURS = ("#2f6fde", "#e0723a", "#2b9a66", "#8a56c9")
"""Of curves and marks, in pages and pictures: told apart on white and on dark ground."""

STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6778;--line:#dde3ea;--back:#fbfcfd;
--card:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b5;--line:#2b3440;--back:#12161c;
--card:#1a2028}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);margin:0}
main{margin:0 auto;padding:32px 20px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:0 0 4px}
p{color:var(--soft);margin:0 0 12px}
table{border-collapse:collapse;width:100%;background:var(--card);margin:16px 0}
th,td{padding:8px 12px;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:600;font-size:14px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px}
"""

# Should a text of a data set ever get through unescaped, it may load and run nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

SORT_SCRIPT = """
document.querySelectorAll('table.sortable th').forEach(function(head){
  head.addEventListener('click',function(){
    var table=head.closest('table'),body=table.tBodies[0],index=head.cellIndex;
    var down=head.getAttribute('aria-sort')!=='descending';
    table.querySelectorAll('th').forEach(function(h){h.removeAttribute('aria-sort')});
    head.setAttribute('aria-sort',down?'descending':'ascending');
    var key=function(row){var cell=row.cells[index];
      return cell.dataset.key===undefined?cell.textContent:parseFloat(cell.dataset.key)};
    Array.from(body.rows).sort(function(a,b){var x=key(a),y=key(b);
      var order=typeof x==='number'?x-y:String(x).localeCompare(String(y));
      return down?-order:order}).forEach(function(row){body.appendChild(row)})})});
"""
"""Sorts a table of class `sortable` by the column whose head is clicked; data-key orders numbers."""


def page(
    title: str, body: str, *, style: str = "", script: str = "", width_pixels: int = 1080
) -> str:
    """Return a whole page.

    Args:
        title: plain text; it is escaped here and stands on top.
        body: HTML below the title, escaped by the caller.
        style: CSS of this kind of page, after the common one.
        script: the one script the page may run, known to the browser by its hash.
    """
    shown = html.escape(title)
    policy, end = _POLICY, ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy, end = f"{_POLICY}; script-src 'sha256-{digest}'", f"<script>{script}</script>"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{shown}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}'
        f"main{{max-width:{width_pixels}px}}{style}</style><main><h1>{shown}</h1>{body}</main>{end}</html>\n"
    )


def html_table(header: list[str], rows: list[list[str]]) -> str:
    """Return an HTML table of plain texts."""
    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in header)]
    lines += ["".join(f"<td>{html.escape(text)}</td>" for text in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
