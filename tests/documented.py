"""The commands and the code of README.md, docs/ and the other pages, as they stand there."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md']
PAGES += sorted(path for name in ('docs', 'csrc', 'benchmarks', 'configs') for path in (ROOT / name).rglob('*.md'))
BLOCK = re.compile(r'^( *)```(\w*|\{\w+\})\n(.*?)^ *```$', re.DOTALL | re.MULTILINE)
ASSIGNMENT = re.compile(r'([A-Za-z_]\w*)=(.*)', re.DOTALL)
PROGRAMS = ('python', 'pip', 'make', 'mim', 'torchrun', 'sbatch', 'compute-sanitizer')


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
        page: relative to the checkout.
        text: as it stands there, without a comment.
        words: after the shell's quoting and variables; those before the program that set a variable are left out.
    """

    page: str
    text: str
    words: tuple[str, ...]

    def __str__(self):
        return f'{self.page}: {self.text}'


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [match[3] for match in BLOCK.finditer(page.read_text()) if match[2] == language]


def commands() -> list[Command]:
    """Every command of every page: in its blocks, and in its sentences where one starts with a program or a tool."""
    found = {}
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for block in blocks(page, 'bash'):
            variables = {}
            for text in _lines(block):
                words = _words(text, variables)
                if words:
                    found[Command(name, text, tuple(words))] = None
        inline = re.findall(r'`([^`]+)`', BLOCK.sub('', page.read_text()))
        for text in (' '.join(part.split()) for code in inline for part in code.split('&&')):
            first, *rest = text.split()[:2] or ['']
            if (first in PROGRAMS and rest) or re.fullmatch(r'(tools|benchmarks)/\S+\.(py|sh)', first):
                found[Command(name, text, tuple(_words(text, {})))] = None
    return list(found)


def _lines(block: str) -> list[str]:
    """Commands of a block, one a line, without comments."""
    lines = block.replace('\\\n', ' ').splitlines()
    lines = [re.sub(r'(^|\s)#.*', '', line).strip() for line in lines]
    return [re.sub(r' {2,}', ' ', line) for line in lines if line]


def _words(text: str, variables: dict[str, str]) -> list[str]:
    text = re.sub(r'\$(\w+)', lambda match: variables.get(match[1], match[0]), text)
    words = [word for part in shlex.split(text) for word in _braces(part)]
    while words and (match := ASSIGNMENT.fullmatch(words[0])):
        variables[match[1]] = match[2]
        words = words[1:]
    return words


def _braces(word: str) -> list[str]:
    match = re.fullmatch(r'(\S*)\{([\w,]+)\}(\S*)', word)
    return [f'{match[1]}{part}{match[3]}' for part in match[2].split(',')] if match else [word]
