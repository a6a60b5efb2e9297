"""docs/architecture.md names files, steps and types that exist."""

import re

from documented import BLOCK, ROOT

from mmdet_ddetr import registry
from mmdet_ddetr.detectors import DeformableDETR

TEXT = BLOCK.sub('', (ROOT / 'docs' / 'architecture.md').read_text())
CODE = re.compile(r'`([^`]+)`')


def test_files():
    names = {name for name in CODE.findall(TEXT) if re.fullmatch(r'[\w./]+/[\w./]*', name)}
    assert len(names) > 25
    assert [name for name in names if not any((root / name).exists() for root in (ROOT, ROOT / 'mmdet_ddetr'))] == []


def test_types():
    """A row without a registry goes on with that of the row above."""
    table = TEXT.partition('## Names')[2].partition('## Files')[0]
    registries, checked = [], 0
    for first, second in re.findall(r'^\|([^|]*)\|([^|]*)\|[^|]*\|$', table, re.MULTILINE):
        registries = [getattr(registry, name) for name in CODE.findall(first) if name.isupper()] or registries
        for each in registries:
            each.import_from_location()
        types = [name for name in CODE.findall(second) if re.fullmatch(r'[A-Z]\w+', name)]
        assert set(types) <= {name for each in registries for name in each.module_dict}
        checked += len(types)
    assert checked > 30


def test_steps():
    assert all(hasattr(DeformableDETR, name) for name in re.findall(r'`((?:pre|forward)_\w+|predict|loss)`', TEXT))
