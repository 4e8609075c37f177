"""The report as one HTML file that needs nothing else: style, plots, rows and a few lines of script are inside it."""

import base64
import json
from collections.abc import Mapping
from html import escape

from .conditions import SIZE_NOTE, fixed_conditions, provenance_lines
from .data import Report
from .sections import Section, Table, column_is_numeric, missing, sections
from .summary import summary

STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --soft: #5d666f; --back: #ffffff; --line: #d9dee3; --head: #f3f5f7; --link: #0059a3; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e7ea; --soft: #9aa4ae; --back: #16191c; --line: #363c42; --head: #22272c; --link: #7ab8f5; }
}
body { margin: 0 auto; max-width: 82rem; padding: 1.5rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
a { color: var(--link); }
nav a { margin-right: 1rem; white-space: nowrap; }
.soft, figcaption, .note { color: var(--soft); font-size: .88rem; }
.summary li, .facts li { overflow-wrap: anywhere; margin: .25rem 0; }
.scroll { overflow-x: auto; margin: .6rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .28rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--head); vertical-align: bottom; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.name { min-width: 15rem; overflow-wrap: anywhere; }
td.words { min-width: 9rem; }
td.long { min-width: 17rem; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--link); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 4px; }
.download { font: inherit; padding: .3rem .8rem; cursor: pointer; }
@media print {
  :root { --text: #000; --soft: #444; --back: #fff; --line: #bbb; --head: #eee; --link: #000; color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 11px; }
  nav, .download { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 8px; }
  td.name, td.words, td.long { min-width: 0; }
  figure, tr { break-inside: avoid; }
  h2, caption { break-after: avoid; }
}
"""

SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent;
    const number = text => text.trim() === "" ? NaN : Number(text);
    const order = (a, b) => {
      const [x, y] = [number(key(a)), number(key(b))];
      if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
      return (isNaN(x) ? key(a).localeCompare(key(b)) : x - y) * (down ? -1 : 1);
    };
    body.append(...[...body.rows].sort(order));
  });
}
document.querySelector(".download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([document.getElementById("rows").textContent], {type: "application/json"}));
  link.download = "rows.json";
  link.click();
});
"""
# The browser itself is told to fetch nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(report: Report, *, title: str, figures: Mapping[str, tuple[str, bytes]]) -> str:
    """The page.

    Args:
        title: heading and name of the page.
        figures: name -> (caption, PNG).
    """
    made = sections(report)
    links = [(section.key, section.title) for section in made] + [("conditions", "Conditions")]
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in summary(report))
    facts = [SIZE_NOTE, *fixed_conditions(report), *provenance_lines(report), *missing(report)]
    # "<" would end the element that holds the rows; in JSON it only ever stands inside a string.
    rows = json.dumps(list(report.rows), indent=1).replace("<", "\\u003c")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f"<h1>{escape(title)}</h1>",
            "<nav>" + " ".join(f'<a href="#{key}">{escape(text)}</a>' for key, text in links) + "</nav>",
            f'<ul class="summary">{sentences}</ul>' if sentences else "",
            *(_section(section, figures) for section in made),
            '<section id="conditions"><h2>Conditions</h2>',
            '<ul class="facts">' + "".join(f"<li>{escape(fact)}</li>" for fact in facts) + "</ul>",
            '<button class="download" type="button">Download the rows (JSON)</button></section>',
            f'<script type="application/json" id="rows">{rows}</script>',
            f"<script>{SCRIPT}</script>\n</body>\n</html>\n",
        ]
    )


def _section(section: Section, figures: Mapping[str, tuple[str, bytes]]) -> str:
    parts = [f'<section id="{section.key}"><h2>{escape(section.title)}</h2>']
    parts += [_figure(*figures[name]) for name in section.figures if name in figures]
    parts += [_table(table) for table in section.tables]
    parts += [f'<p class="note">{escape(note)}</p>' for note in section.notes]
    return "\n".join([*parts, "</section>"])


def _figure(caption: str, picture: bytes) -> str:
    data = base64.b64encode(picture).decode("ascii")
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _kind_of_column(table: Table, index: int) -> str:
    if column_is_numeric(table.rows, index):
        return "number"
    if table.columns[index] == "model":
        return "name"
    longest = max((len(row[index].text) for row in table.rows), default=0)
    return "long" if longest > 60 else "words" if longest > 20 else ""


def _table(table: Table) -> str:
    """A table whose heads sort it; the numbers to sort by are those measured, not those shown."""
    kinds = [_kind_of_column(table, i) for i in range(len(table.columns))]
    attributes = [f' class="{kind}"' if kind else "" for kind in kinds]
    head = "".join(
        f'<th scope="col"{attribute}><button type="button">{escape(column)}</button></th>'
        for attribute, column in zip(attributes, table.columns, strict=True)
    )
    body = []
    for row in table.rows:
        cells = []
        for attribute, cell in zip(attributes, row, strict=True):
            value = "" if cell.value is None else f' data-value="{cell.value!r}"'
            cells.append(f"<td{attribute}{value}>{escape(cell.text)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n' + "\n".join(body) + "\n</tbody></table></div>"
