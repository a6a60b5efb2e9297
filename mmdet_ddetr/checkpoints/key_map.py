"""Tables of key names that are read in both directions."""

import re
from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import CheckpointError
from .report import ConversionReport


class Row(NamedTuple):
    theirs: re.Pattern
    ours: re.Pattern
    theirs_format: str
    ours_format: str
    parts: str  # '' or the letters of the tensors that are one tensor on our side


class Alias(NamedTuple):
    name: re.Pattern
    original: re.Pattern
    name_format: str
    original_format: str
    trait: str


class KeyMap:
    """Renames the keys of another layout to ours and back.

    Args:
        *tables: lines of one of these forms, where ``{i}`` is a number, ``*`` a name and ``**`` the rest of a key:

            ``theirs  ours``: one key each. ``[qkv]`` in theirs stands for tensors q, k and v, which are one tensor on
            our side, concatenated in this order along dim 0. The first line that fits a key counts.

            ``theirs  -``: theirs has no counterpart.

            ``alias  = theirs  if trait``: a second name of another key of theirs, in models that have the trait; in all
            models without ``if``.
    """

    def __init__(self, *tables: str):
        self.rows, self.aliases, self.useless = [], [], []
        for line in '\n'.join(tables).split('\n'):
            match line.split():
                case []:
                    pass
                case [theirs, '-']:
                    self.useless.append(_compile(theirs)[0])
                case [theirs, ours]:
                    (read, write), (read_ours, write_ours) = _compile(theirs), _compile(ours)
                    parts = re.search(r'\[(\w+)\]', theirs)
                    self.rows.append(Row(read, read_ours, write, write_ours, parts[1] if parts else ''))
                case [alias, '=', theirs, *condition] if condition[:-1] in ([], ['if']):
                    trait = condition[-1] if condition else ''
                    (read, write), (read_theirs, write_theirs) = _compile(alias), _compile(theirs)
                    self.aliases.append(Alias(read, read_theirs, write, write_theirs, trait))
                case _:
                    raise ValueError(f'no line of a key map: {line!r}')

    def knows(self, key: str) -> bool:
        """Whether a key of theirs is in the table."""
        patterns = [row.theirs for row in self.rows] + [alias.name for alias in self.aliases] + self.useless
        return any(pattern.fullmatch(key) for pattern in patterns)

    def to_ours(self, state_dict: dict[str, Tensor], report: ConversionReport) -> dict[str, Tensor]:
        """Rename a state_dict of theirs, all of whose keys the table knows.

        Raises:
            CheckpointError: one of the tensors to concatenate is missing, or an alias differs from its original.
        """
        ours, parts = {}, defaultdict(dict)
        for key, tensor in self._originals(state_dict, report).items():
            for row in self.rows:
                if found := row.theirs.fullmatch(key):
                    name = row.ours_format.format(**found.groupdict())
                    if row.parts:
                        parts[name, row.parts][found['part']] = tensor
                    else:
                        ours[name] = tensor
                    break
            else:
                report.dropped[key] = 'without counterpart'
        for (name, letters), tensors in parts.items():
            if missing := set(letters) - set(tensors):
                raise CheckpointError(f'{name} needs {", ".join(letters)}; the checkpoint lacks {", ".join(missing)}')
            ours[name] = torch.cat([tensors[letter] for letter in letters])
        return ours

    def to_theirs(self, state_dict: dict[str, Tensor], traits: set[str], report: ConversionReport) -> dict[str, Tensor]:
        """Rename a state_dict of ours; ``traits`` says which aliases the model has.

        Raises:
            CheckpointError: keys of ours that the table does not know.
        """
        theirs, unknown = {}, []
        for key, tensor in state_dict.items():
            for row in self.rows:
                if found := row.ours.fullmatch(key):
                    values = found.groupdict()
                    for letter, part in zip(row.parts or [''], tensor.chunk(len(row.parts)) if row.parts else [tensor]):
                        theirs[row.theirs_format.format(**values, part=letter)] = part
                    break
            else:
                unknown.append(key)
        if unknown:
            raise CheckpointError(f'{len(unknown)} keys have no counterpart there: {", ".join(unknown[:5])}, ...')
        for alias in self.aliases:
            if not alias.trait or alias.trait in traits:
                for key in list(theirs):
                    if found := alias.original.fullmatch(key):
                        name = alias.name_format.format(**found.groupdict())
                        theirs[name] = theirs[key]
                        report.added[name] = 'second name of a head'
        return theirs

    def _originals(self, state_dict: dict[str, Tensor], report: ConversionReport) -> dict[str, Tensor]:
        """Without aliases; one whose original is missing takes its place: files may keep either."""
        originals = dict(state_dict)
        for key, tensor in state_dict.items():
            for alias in self.aliases:
                if found := alias.name.fullmatch(key):
                    del originals[key]
                    original = alias.original_format.format(**found.groupdict())
                    if not torch.equal(originals.setdefault(original, tensor), tensor):
                        raise CheckpointError(f'{key} should be a second name of {original}, but their values differ')
                    report.dropped[key] = 'second name of a head'
        return originals


def _compile(pattern: str) -> tuple[re.Pattern, str]:
    """The regular expression that reads a key, and the format that writes it."""
    regex = template = ''
    for text in re.split(r'(\{\w+\}|\[\w+\]|\*+)', pattern):
        if text.startswith('{'):
            regex, template = regex + rf'(?P<{text[1:-1]}>\d+)', template + text
        elif text.startswith('['):
            regex, template = regex + f'(?P<part>{text})', template + '{part}'
        elif text in ('*', '**'):
            regex, template = regex + ('(?P<rest>.+)' if text == '**' else r'(?P<rest>[^.]+)'), template + '{rest}'
        else:
            regex, template = regex + re.escape(text), template + text
    return re.compile(regex), template
