"""docs/model_zoo.md against the configs and their metafiles."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from mmdet_ddetr.apis import get_config, list_configs
from mmdet_ddetr.apis.complexity import build_detector, count_multiply_adds, count_parameters

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs/model_zoo.md'
SIZE = (800, 1120)  # that the page says its GFLOPs are for


def read_rows():
    """[(config name, {column: cell})] of every table row that links to a config."""
    rows, header = [], []
    for line in PAGE.read_text().splitlines():
        if not line.startswith('|'):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        header = header or cells
        link = re.search(r'\(\.\./configs/[\w-]+/([\w.-]+)\.py\)', line)
        if link:
            rows.append((link[1], dict(zip(header, cells, strict=True))))
    return rows


ROWS = read_rows()
METAFILES = {
    entry['Name']: entry
    for path in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    for entry in yaml.safe_load((ROOT / path).read_text())['Models']
}


def test_every_config_is_on_the_page():
    assert {name for name, _ in ROWS} == set(list_configs())


def test_links_lead_somewhere():
    for target in re.findall(r'\]\((?!http)([^)#]+)', PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target


@pytest.mark.parametrize(('name', 'row'), [row for row in ROWS if 'paper AP' in row[1]])
def test_published_figures(name, row):
    """The page says what the metafile says, which is what `mim search` shows."""
    results = METAFILES[name].get('Results', ())
    for metric, columns in (('box AP', ('paper AP', 'official AP')), ('mask AP', ('paper mask AP',))):
        aps = {f'{result["Metrics"][metric]}' for result in results if metric in result['Metrics']}
        published = {row.get(column, '') for column in columns} - {''}
        assert bool(aps) == bool(published)
        assert not published or aps & published
    metadata = METAFILES[name]['Metadata']
    if row.get('paper params'):
        assert row['paper params'] == f'{metadata["Parameters"] / 1e6:.0f} M'
        assert row['paper GFLOPs'] == f'{metadata["FLOPs"] / 1e9:.0f}'


# Every time: the first config of each model, which is what a name begins with.
FIRST = {name.partition('_')[0]: name for name, _ in reversed(ROWS)}.values()


@pytest.mark.parametrize(
    ('name', 'row'),
    [pytest.param(*row, marks=() if row[0] in FIRST else pytest.mark.slow) for row in ROWS],
    ids=[name for name, _ in ROWS],
)
def test_parameters(name, row):
    """In full size, on the meta device, which takes neither time nor memory; to the last digit."""
    with torch.device('meta'):
        model = build_detector(get_config(name))
    parameters = count_parameters(model).paper
    assert parameters > 1e6
    assert row.get('params here', '') in ('', f'{parameters:,}')


QUICK = ('detr_r50-dc5_64xb1-500e_coco', 'deformable-detr_r50-own-level_16xb2-50e_coco')


@pytest.mark.parametrize(
    ('name', 'row'),
    [
        pytest.param(*row, marks=() if row[0] in QUICK else pytest.mark.slow)
        for row in ROWS
        if row[1].get('GFLOPs here') and not row[0].startswith('faster-rcnn')  # whose boxes have to be computed
    ],
)
def test_multiply_adds(name, row):
    with torch.device('meta'):
        model = build_detector(get_config(name))
    assert row['GFLOPs here'] == f'{count_multiply_adds(model, SIZE) / 1e9:.1f}'


def test_published_sizes_are_met():
    """Within 3 % of the papers' GFLOPs, which are the mean over images of other sizes."""
    rows = [row for _, row in ROWS if row.get('paper GFLOPs')]
    assert len(rows) >= 14
    for row in rows:
        assert float(row['GFLOPs here']) == pytest.approx(float(row['paper GFLOPs']), rel=0.03), row
