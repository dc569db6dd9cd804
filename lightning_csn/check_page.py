"""What check-data found, as an HTML page that is one file.

It loads nothing, from no network: pictures are data in it, bars are plain boxes, and it works without its script, which
filters and sorts the table of files.
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping

from lightning_csn import __version__
from lightning_csn.check_text import (
    bin_text,
    clip_text,
    fate_rows,
    lengths_text,
    names_some,
    share_text,
    short_path,
    shown,
    unit,
    verdict,
)
from lightning_csn.data.report import NOTE, UNSAFE, WARNING, Report, Row, counted

MOST_ROWS = 2000  # of the table of files: browsers are slow with more
PICTURES_A_CLASS, MOST_PICTURES, MOST_PROBLEM_PICTURES = 3, 240, 60  # strips of about 8 kB each
LEVEL_TEXT = {UNSAFE: "Not safe", WARNING: "Warning", NOTE: "Note"}


def pictured(report: Report) -> list[str]:
    """The paths of which the page shows pictures: a few of each class, and those with a problem that can be seen."""
    paths: dict[str, None] = {}
    for problem in report.problems:
        if problem.level in (UNSAFE, WARNING):
            paths |= dict.fromkeys(path for path, _ in problem.files)
    unreadable = {row.path for row in report.rows if row.error is not None}
    problems = [path for path in paths if path not in unreadable][:MOST_PROBLEM_PICTURES]
    examples = [row.path for rows in _examples(report).values() for row in rows]
    return list(dict.fromkeys(examples + problems))


def _examples(report: Report) -> dict[str, list[Row]]:
    """A few videos of each class, far apart in their order."""
    by_class: dict[str, dict[str, Row]] = {}
    for row in report.rows:
        if row.error is None:
            for name in row.classes:
                by_class.setdefault(name, {}).setdefault(row.path, row)
    each = max(1, min(PICTURES_A_CLASS, MOST_PICTURES // max(1, len(by_class))))
    chosen = {}
    for name in [name for name in (*report.classes, "?") if name in by_class][:MOST_PICTURES]:
        rows = list(by_class[name].values())
        count = min(each, len(rows))
        chosen[name] = [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]
    return chosen


def as_html(report: Report, pictures: Mapping[str, bytes], *, when: str = "") -> str:
    """The report as a page. pictures: path -> JPEG, of those in `pictured` that there are. when: it was made."""
    name = os.path.basename(report.root.rstrip("/\\")) or "collection"
    body = [
        _header(report, name),
        _tiles(report),
        _problem_list(report),
        _count_table(report),
        _length_section(report),
        _property_section(report),
        _clip_section(report),
        _file_table(report, pictures),
        _class_pictures(report, pictures),
    ]
    made = f"lightning-csn {__version__} check-data" + (f", {when}" if when else "")
    return _PAGE.format(
        title=_text(f"Videos of {name}"), style=_STYLE, body="\n".join(body), made=_text(made), script=_SCRIPT
    )


def _text(value: object) -> str:
    """Any value as text of a page."""
    return html.escape(shown(str(value)))


def _header(report: Report, name: str) -> str:
    reasons = "".join(f"<li>{_text(reason)}</li>" for reason in report.reasons)
    checked = (
        "every frame was decoded" if report.decoded else "headers and packets were read; --decode reads frames too"
    )
    return (
        f"<header><h1>Videos of {_text(name)}</h1><p class=muted>{_text(report.root)} · {_text(report.layout)} · "
        f"{checked}</p></header>"
        f'<section class="verdict {"safe" if report.safe else "unsafe"}" aria-label="Verdict"><p>'
        f"<strong>{_text(verdict(report))}</strong></p>{f'<ul>{reasons}</ul>' if reasons else ''}</section>"
    )


def _tiles(report: Report) -> str:
    files = {row.path: row for row in report.rows}
    unusable = sum(row.error is not None for row in files.values())
    seconds = sum(row.seconds or 0 for row in report.rows)
    size = sum(row.entry.bytes for row in files.values() if row.entry is not None)
    tiles = [
        (f"{len(files):,}", "video files" if len(files) != 1 else "video file"),
        (f"{len(report.classes):,}", "classes" if len(report.classes) != 1 else "class"),
        (duration_text(seconds), "of film"),
        (size_text(size), "on disk"),
        (f"{unusable:,}", "cannot be read"),
    ]
    if len(report.rows) != len(files):
        tiles.insert(1, (f"{len(report.rows):,}", "samples"))
    return "<ul class=tiles>" + "".join(f"<li><b>{n}</b> {what}</li>" for n, what in tiles) + "</ul>"


def duration_text(seconds: float) -> str:
    """A length of time in its two largest units.

    >>> duration_text(42), duration_text(600), duration_text(2 * 3600 + 120)
    ('42 s', '10 min 0 s', '2 h 2 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def size_text(size: float) -> str:
    """Bytes in a unit that leaves few digits.

    >>> size_text(512), size_text(55_300_000), size_text(1.25e12)
    ('512 bytes', '55.3 MB', '1.25 TB')
    """
    for name, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {name}"
    return f"{size:.0f} bytes"


def _problem_list(report: Report) -> str:
    if not report.problems:
        return "<section><h2>What was found</h2><p>Nothing that is worth a word.</p></section>"
    items = "".join(
        f"<li><span class='level {problem.level}'>{LEVEL_TEXT[problem.level]}</span> "
        f"<span>{_text(problem.text)}</span></li>"
        for problem in report.problems
    )
    return f"<section><h2>What was found</h2><ul class=problems>{items}</ul></section>"


def _count_table(report: Report) -> str:
    splits = list(report.counts)
    names = list(next(iter(report.counts.values()), {}))
    most = max((every for counts in report.counts.values() for _, every in counts.values()), default=0) or 1
    room = max((len(share_text(*count)) for counts in report.counts.values() for count in counts.values()), default=0)
    head = "".join(f"<th scope=col>{_text(split)}</th>" for split in splits)
    rows = []
    for name in names:
        cells = []
        for split in splits:
            readable, every = report.counts[split].get(name, (0, 0))
            cells.append(f"<td>{_bar(every, most, share_text(readable, every), room)}</td>")
        rows.append(f"<tr><th scope=row>{_text(name)}</th>{''.join(cells)}</tr>")
    return (
        "<section><h2>Videos of each class</h2><div class=scroll tabindex=0 role=region aria-label='Videos of each "
        f"class'><table class=counts><thead><tr><th scope=col>Class</th>{head}</tr></thead><tbody>{''.join(rows)}"
        "</tbody></table></div></section>"
    )


def _bar(count: int, most: int, text: str, room: int) -> str:
    """A bar that lies, as long as `count` is of `most`, and a text beside it, with room for so many characters."""
    width = f"width:{100 * count / most:.4f}%"
    return (
        f"<div class=measure><span class=track><span class=bar data-count={count} style='{width}'></span></span>"
        f"<span class=number style='min-width:{room}ch'>{text}</span></div>"
    )


def _length_section(report: Report) -> str:
    if not report.lengths:
        return ""
    most = max(bar.count for bar in report.lengths)
    bars = "".join(
        f"<li title='{_text(bin_text(bar))} {unit(report)}'><span class=number>{bar.count}</span><span class=bar "
        f"data-count={bar.count} style='height:{9 * bar.count / most:.4f}rem'></span><span class=edge>{bar.start:g}"
        f"{'+' if bar.end is None else ''}</span></li>"
        for bar in report.lengths
    )
    return (
        f"<section><h2>How long they are</h2><p>{_text(lengths_text(report))}.</p><figure><ol class=histogram>{bars}"
        f"</ol><figcaption>Videos by length: each bar begins at so many {unit(report)}.</figcaption></figure>"
        "</section>"
    )


def _property_section(report: Report) -> str:
    parts = []
    for name, counts in report.properties.items():
        if not counts:
            continue
        most = max(counts.values())
        rows = "".join(
            f"<tr><th scope=row>{_text(text)}</th><td>{_bar(count, most, str(count), len(str(most)))}</td></tr>"
            for text, count in list(counts.items())[:12]
        )
        rest = len(counts) - 12
        more = f"<p class=muted>and {counted(rest, 'other')}</p>" if rest > 0 else ""
        parts.append(f"<div><h3>{name.capitalize()}</h3><table class=counts><tbody>{rows}</tbody></table>{more}</div>")
    return f"<section><h2>What they are</h2><div class=columns>{''.join(parts)}</div></section>" if parts else ""


def _clip_section(report: Report) -> str:
    if report.clip is None:
        return ""
    rows = "".join(f"<tr><th scope=row>{_text(text)}</th><td>{n}</td></tr>" for text, n in fate_rows(report))
    return (
        f"<section><h2>What the clip does with them</h2><p>{_text(clip_text(report))}.</p><table class=plain>"
        f"<tbody>{rows}</tbody></table></section>"
    )


def _file_table(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The files that are named, with a picture where there is one, to be filtered and sorted."""
    named = [
        (problem, path, reason)
        for problem in report.problems
        if names_some(report, problem)
        for path, reason in problem.files
    ]
    if not named:
        return ""
    rows, seen = [], set()
    for problem, path, reason in named[:MOST_ROWS]:
        picture = "" if path in seen else _picture(pictures.get(path), f"Frames of {path}")
        seen.add(path)
        rows.append(
            f"<tr data-kind='{_text(problem.kind)}'><td><span class='level {problem.level}'>"
            f"{LEVEL_TEXT[problem.level]}</span></td><td>{_text(problem.kind)}</td>"
            f"<td>{_text(short_path(report, path))}{picture}</td><td>{_text(short_path(report, reason))}</td></tr>"
        )
    kinds = dict.fromkeys(problem.kind for problem, _, _ in named)
    options = "".join(f"<option>{_text(kind)}</option>" for kind in kinds)
    left = len(named) - MOST_ROWS
    more = f"<p class=muted>{left} more rows are left out here; --json has all.</p>" if left > 0 else ""
    head = "".join(
        f"<th scope=col aria-sort=none><button type=button>{title}</button></th>"
        for title in ("Level", "Kind", "File", "What")
    )
    return (
        "<section><h2>Files to look at</h2><p class=filter hidden><label>Kind <select id=kind><option value=''>all"
        f"</option>{options}</select></label> <label>Name or reason <input id=words type=search></label> "
        "<output id=matches></output></p>"
        f"<table class=files id=files><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{more}"
        "</section>"
    )


def _class_pictures(report: Report, pictures: Mapping[str, bytes]) -> str:
    parts = []
    for name, rows in _examples(report).items():
        figures = "".join(
            f"<figure>{_picture(pictures[row.path], f'Frames of {row.path}, class {name}')}<figcaption>"
            f"{_text(os.path.basename(row.path))}{'' if row.seconds is None else f', {row.seconds:.1f} s'}</figcaption>"
            "</figure>"
            for row in rows
            if row.path in pictures
        )
        if figures:
            parts.append(f"<h3>{_text(name)}</h3><div class=pictures>{figures}</div>")
    if not parts:
        return ""
    note = "<p class=muted>From left to right: near the beginning, in the middle, near the end.</p>"
    return f"<section><h2>A look at each class</h2>{note}{''.join(parts)}</section>"


def _picture(jpeg: bytes | None, text: str) -> str:
    if jpeg is None:
        return ""
    return f"<img alt='{_text(text)}' src='data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}'>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<footer><p class=muted>{made}</p></footer>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --text: #1c1e21; --muted: #5c6269; --line: #dcdee1; --bar: #3b6ea5;
  --unsafe: #a61b1b; --warning: #8a5200; --note: #4d5660; --safe: #1d6b3a; --panel: #fff; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --text: #e6e8ea; --muted: #a0a7ae; --line: #363b41;
  --bar: #6ea3db; --unsafe: #ff8f87; --warning: #f0b35c; --note: #b3bac2; --safe: #7fd09b; --panel: #1e2125; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main, footer { max-width: 64rem; margin: 0 auto; padding: 0 1rem; }
main { overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 2rem 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .3rem 0; }
.muted, figcaption, .edge { color: var(--muted); font-size: .875rem; }
.verdict { margin: 1.2rem 0; padding: .7rem 1rem; border: 1px solid var(--line); border-left: .35rem solid;
  border-radius: .3rem; background: var(--panel); }
.verdict.safe { border-left-color: var(--safe); } .verdict.unsafe { border-left-color: var(--unsafe); }
.verdict strong { font-size: 1.15rem; } .verdict.safe strong { color: var(--safe); }
.verdict.unsafe strong { color: var(--unsafe); } .verdict ul { margin: .3rem 0; padding-left: 1.2rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .3rem 2rem; padding: 0; list-style: none; color: var(--muted); }
.tiles b { color: var(--text); font-size: 1.25rem; }
.problems { padding: 0; margin: 0; list-style: none; }
.problems li { display: grid; grid-template-columns: 5.5rem 1fr; gap: .6rem; padding: .35rem 0;
  border-top: 1px solid var(--line); align-items: baseline; }
.level { font-size: .8rem; font-weight: 600; white-space: nowrap; }
.level.unsafe { color: var(--unsafe); } .level.warning { color: var(--warning); } .level.note { color: var(--note); }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 400; }
thead th { color: var(--muted); font-size: .875rem; }
td, th { padding: .25rem .8rem .25rem 0; vertical-align: top; border-top: 1px solid var(--line); }
thead td, thead th { border-top: 0; }
.plain { width: auto; } .plain td { text-align: right; white-space: nowrap; }
.scroll { max-height: 36rem; overflow: auto; }
.counts { table-layout: fixed; }
.measure { display: flex; gap: .6rem; align-items: center; }
.track { flex: 1; } .measure .number { flex: none; text-align: right; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
.measure .bar { display: block; height: .7rem; background: var(--bar); border-radius: 0 .15rem .15rem 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: .5rem 2.5rem; }
figure { margin: 0; }
.histogram { display: flex; align-items: flex-end; gap: 2px; padding: 0; margin: .8rem 0 .2rem; list-style: none; }
.histogram li { flex: 1 1 0; min-width: 0; display: flex; flex-direction: column; align-items: stretch;
  text-align: center; }
.histogram .bar { background: var(--bar); border-radius: .15rem .15rem 0 0; }
.histogram .number, .edge { font-size: .75rem; white-space: nowrap; font-variant-numeric: tabular-nums; }
.histogram .edge { border-top: 1px solid var(--muted); }
.filter { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; align-items: center; margin: .6rem 0; }
.filter[hidden] { display: none; }
input, select, button { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line);
  border-radius: .25rem; padding: .15rem .4rem; max-width: 100%; }
thead button { border: 0; background: none; padding: 0; color: var(--muted); cursor: pointer; }
thead [aria-sort=ascending] button::after { content: " ↑"; }
thead [aria-sort=descending] button::after { content: " ↓"; }
.files { table-layout: fixed; }
.files th:first-child { width: 5.5rem; } .files th:nth-child(2) { width: 8rem; } .files th:nth-child(3) { width: 42%; }
.files img { display: block; margin: .3rem 0; }
img { max-width: 100%; height: auto; border-radius: .2rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); gap: 1rem; }
footer { margin-top: 3rem; padding-bottom: 2rem; }
@media (max-width: 40rem) {
  .scroll .measure { flex-wrap: wrap; gap: 0; } .scroll .track { flex-basis: 100%; }
  .scroll .number { text-align: left; }
  .files, .files tbody, .files tr, .files td { display: block; width: auto !important; }
  .files thead { display: none; }
  .files tr { border-top: 1px solid var(--line); padding: .5rem 0; }
  .files td { border: 0; padding: .05rem 0; }
  .files td:first-child, .files td:nth-child(2) { display: inline-block; margin-right: .6rem; }
}
"""

_SCRIPT = """
"use strict";
const table = document.getElementById("files");
if (table) {
  const kind = document.getElementById("kind"), words = document.getElementById("words");
  const matches = document.getElementById("matches"), body = table.tBodies[0];
  const filter = () => {
    let left = 0;
    const wanted = words.value.toLowerCase();
    for (const row of body.rows) {
      row.hidden = (kind.value && row.dataset.kind !== kind.value) || !row.textContent.toLowerCase().includes(wanted);
      left += !row.hidden;
    }
    matches.textContent = `${left} of ${body.rows.length}`;
  };
  kind.addEventListener("change", filter);
  words.addEventListener("input", filter);
  document.querySelector(".filter").hidden = false;
  filter();
  [...table.tHead.rows[0].cells].forEach((cell, column) => cell.addEventListener("click", () => {
    const up = cell.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    const text = row => row.cells[column].textContent;
    const rows = [...body.rows].sort((a, b) => text(a).localeCompare(text(b), undefined, { numeric: true }));
    body.append(...(up ? rows : rows.reverse()));
  }));
}
"""
