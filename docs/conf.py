"""The site of the documentation: `make docs`. The pages are the Markdown files of the checkout, used as they are."""

import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import mmdet_ddetr  # noqa: E402  this checkout's

project = 'mmdet_ddetr'
release = version = mmdet_ddetr.__version__
copyright = 'the authors of mmdet_ddetr, Apache-2.0'
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode', 'sphinx_copybutton']
root_doc = 'docs/index'  # the checkout is the source folder, so that links between its files hold
include_patterns = ['*.md', 'docs/**', 'configs/**', 'csrc/**', 'benchmarks/**']
exclude_patterns = ['.*', '**/.*']

html_theme = 'furo'
html_title = 'mmdet_ddetr'
html_static_path = ['static']
html_css_files = ['site.css']
html_show_sourcelink = html_copy_source = False
html_additional_pages = {'index': 'redirect.html'}
templates_path = ['templates']
pygments_style, pygments_dark_style = 'friendly', 'monokai'

highlight_language = 'none'
myst_heading_anchors = 4  # as GitHub makes them; a link to one that is missing is an error
suppress_warnings = ['myst.header']  # pages of the papers start at any level
copybutton_exclude = '.linenos, .gp, .go'

autodoc_member_order = 'bysource'
autodoc_inherit_docstrings = False  # methods of other packages, overridden here
autodoc_preserve_defaults = True  # as they are written
autodoc_typehints = 'signature'
autodoc_typehints_format = 'short'
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
nitpicky = True  # what a docstring refers to has to exist, in this package; others are not linked
nitpick_ignore_regex = [
    ('py:.*', r'(?!mmdet_ddetr\.).*'),
    ('py:class', r'mmdet_ddetr\.\w+\.\w+\..*'),  # a type of a signature, deeper than what the reference has
]

LINK = re.compile(r'(?<!!)\[([^\]]*)\]\(([^)\s#]+/?)\)')
SHAPE = re.compile(r'^\s+\*{0,2}(\w+): .*?,?\s+# (\[.+|\(.+)$', re.MULTILINE)
RETURNED = re.compile(r'^\s*\) -> .*:\s+# (\[.+)$', re.MULTILINE)


def link_folders(app, docname, source):
    """A link to a folder leads to its README; one without, and one to a file that is no page, is left as code."""
    folder = Path(app.srcdir, docname).parent

    def page_of(match):
        text, target = match.groups()
        path = folder / target
        if '://' in target or path.suffix == '.md' or not path.exists():
            return match[0]
        if (path / 'README.md').is_file():
            return f'[{text}]({target.rstrip("/")}/README.md)'
        where = target if '/' not in target else path.resolve().relative_to(ROOT)
        return text if text.strip('`') in path.name else f'{text} (`{where}`)'

    source[0] = LINK.sub(page_of, source[0])


def add_shapes(app, what, name, obj, options, lines):
    """Shapes stand as comments beside the arguments: put them into the descriptions, as types."""
    function = obj.__init__ if inspect.isclass(obj) else obj
    if not inspect.isroutine(function) or not lines:
        return
    try:
        head = inspect.getsource(function).partition('"""')[0]
    except (OSError, TypeError):  # not written in Python
        return
    lines[:] = [line.replace('*args, **kwargs:', r'\*args, \*\*kwargs:') for line in lines]
    shapes = dict(SHAPE.findall(head))
    for i, line in enumerate(lines):
        if (found := re.match(r'    (\w+): (.*)', line)) and found[1] in shapes:
            lines[i] = f'    {found[1]} (``{shapes.pop(found[1])}``): {found[2]}'
    if shapes:  # of arguments that need no description
        rest = [f'    {argument} (``{shape}``):' for argument, shape in shapes.items()]
        if 'Args:' in lines:
            start = lines.index('Args:') + 1
            while start < len(lines) and lines[start].startswith(' '):
                start += 1
            lines[start:start] = rest
        else:
            start = next((i for i, line in enumerate(lines) if line in ('Returns:', 'Raises:')), len(lines))
            lines[start:start] = ['', 'Args:', *rest, '']
    if found := RETURNED.search(head):
        if 'Returns:' in lines:
            after = lines.index('Returns:') + 1
            lines[after] = f'    ``{found[1]}``. {lines[after].strip()}'
        else:
            lines += ['', 'Returns:', f'    ``{found[1]}``', '']


def setup(app):
    app.connect('source-read', link_folders)
    app.connect('autodoc-process-docstring', add_shapes, priority=400)  # before napoleon
