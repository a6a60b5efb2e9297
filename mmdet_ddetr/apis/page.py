"""What the pages have in common: one style, tables, and text that is shown and never run."""

import html
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from ..datasets.report import LEVELS, Finding, Report, printable
from ..files import write_atomically

PLACES = 5  # of a finding

Colour = tuple[int, int, int]  # RGB


def text(value) -> str:
    return html.escape(printable(value))


def write_page(path: str | Path, template: str, values: Mapping[str, str]) -> Path:
    """Fill a template of this folder, with the common style, into an HTML file that needs no other and no network.

    Args:
        path: of the file; its folder is made if missing.
        values: HTML for each ``{{name}}`` of the template.
    """
    folder = files(__package__)
    values = dict(values, style=folder.joinpath('page.css').read_text(encoding='utf-8'))
    filled = re.sub(r'{{(\w+)}}', lambda match: values[match[1]], folder.joinpath(template).read_text(encoding='utf-8'))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, filled.encode())
    return path


def table(rows: Sequence[Sequence[str]]) -> str:
    """Of plain text, the first row as its head."""
    return html_table([[text(cell) for cell in row] for row in rows])


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Of cells that are HTML, the first row as its head."""
    head, *body = rows
    lines = ''.join(f'<tr>{"".join(f"<td>{cell}</td>" for cell in row)}</tr>\n' for row in body)
    return f'<table>\n<tr>{"".join(f"<th>{cell}</th>" for cell in head)}</tr>\n{lines}</table>'


def named(name: str, colour: Colour) -> str:
    """A class's name behind its colour."""
    name = text(name)
    return f'<span class="chip" style="background:rgb{colour}"></span><span class="name" title="{name}">{name}</span>'


def count_table(rows: Sequence[Sequence[str]], colours: Mapping[str, Colour]) -> str:
    """Of ``datasets.summary.class_table``, with a bar for each class."""
    head, *body = rows
    most = max((sum(map(int, row[1:])) for row in body), default=0) or 1
    lines = []
    for name, *counts in body:
        bar = f'<div class="bar"><i style="width:{100 * sum(map(int, counts)) / most:.1f}%"></i></div>'
        lines.append([named(name, colours.get(name, (128, 128, 128))), *counts, bar])
    return html_table([[*map(text, head), ''], *lines])


def findings(reports: Mapping[str, Report], between: Sequence[Finding]) -> str:
    """What a check found, the worst first."""
    items = [(finding, f'{name}: ') for name, report in reports.items() for finding in report.findings]
    items += [(finding, '') for finding in between]
    items.sort(key=lambda item: LEVELS.index(item[0].level))
    return f'<ul>{"".join(_finding(*item) for item in items)}</ul>' if items else '<p>Nothing to mention.</p>'


def _finding(finding: Finding, split: str) -> str:
    places = [place for place in finding.places if place]
    lines = [text(place) for place in places[:PLACES]]
    if len(places) > PLACES:
        lines.append(f'... and {len(places) - PLACES} more')
    remedy = f' ({finding.remedy})' if finding.remedy else ''
    level = f'<span class="level {finding.level}">{finding.level}</span>'
    rule = text(f'{split}{len(finding.places)} x {finding.rule}{remedy}')
    return f'<li>{level}{rule}{"".join(f"<div>{line}</div>" for line in lines)}</li>\n'
