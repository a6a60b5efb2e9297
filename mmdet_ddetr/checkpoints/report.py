"""What a conversion changed beside names."""

import re
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class ConversionReport:
    """Keys that a conversion dropped, added or gave another shape, each with the reason.

    A conversion goes by way of our layout: a key is the source's, ours or the target's, as it was at that step.

    ``str(report)`` names the keys with ``*`` for their numbers, a line for each reason.
    """

    dropped: dict[str, str] = field(default_factory=dict)  # key: why
    added: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)  # key: from which shape to which, and why
    notes: list[str] = field(default_factory=list)  # sentences about the whole

    def resize(self, key: str, before, after, why: str) -> None:
        """Note that tensor ``key`` had shape ``before`` and has shape ``after``."""
        step = f'{list(before)} -> {list(after)}, {why}'
        self.resized[key] = f'{self.resized[key]}; {step}' if key in self.resized else step

    def every_key(self) -> str:
        """All keys, a line each."""
        return '\n'.join(
            f'{what} {key} ({why})'
            for what in ('dropped', 'added', 'resized')
            for key, why in getattr(self, what).items()
        )

    def __str__(self):
        lines = list(self.notes)
        for what in ('dropped', 'added', 'resized'):
            groups = {}
            for key, why in getattr(self, what).items():
                groups.setdefault(why, Counter())[re.sub(r'\d+', '*', key)] += 1
            for why, names in groups.items():
                lines.append(f'{what} {sum(names.values())} ({why}): {", ".join(names)}')
        return '\n'.join(lines) or 'nothing dropped, added or resized'
