"""docs/new_model.md: its class, its config and its test, as they stand there."""

import importlib
import re
import sys

import pytest
import torch
from documented import ROOT, blocks

from mmdet_ddetr.registry import MODELS

PAGE = ROOT / 'docs' / 'new_model.md'
MODULES = ('content_queries', 'test_content_queries')


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Its files in a folder of their own, which is the current one and on Python's path: its test, as a module."""
    for block in blocks(PAGE, 'python'):
        (tmp_path / re.match(r'# (\S+\.py)\n', block)[1]).write_text(block)
    assert {path.stem for path in tmp_path.iterdir()} == {'content-queries_lite0_shapes', *MODULES}
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module('test_content_queries')
    MODELS.module_dict.pop('ContentQueriesDETR', None)
    for name in MODULES:
        sys.modules.pop(name, None)


def test_the_page(page):
    for counts in [[0, 0], [1, 0]]:
        page.test_loss(page.build(), counts)
    page.test_predict(page.build())
    page.test_queries_start_from_features(page.build())


def test_its_test_can_fail(page):
    model = page.build()
    del type(model).queries_of_proposals
    with pytest.raises(AssertionError):
        page.test_queries_start_from_features(model)


def test_an_argument_that_makes_no_sense(page):
    cls = importlib.import_module('content_queries').ContentQueriesDETR
    with pytest.raises(ValueError, match='^as_two_stage must be True'):
        cls(as_two_stage=False)


def test_features_of_other_cells_are_other_queries(page):
    """The decoder's contents are the encoder's features: the two differ between cells with the same box."""
    model = page.build()
    features, boxes = torch.randn(1, 2, 64), torch.tensor([[[0.5, 0.5, 0.2, 0.2]] * 2])
    queries = model.queries_of_proposals(features, boxes)
    torch.testing.assert_close(queries['query_pos'][:, 0], queries['query_pos'][:, 1])
    assert not torch.equal(queries['query'][:, 0], queries['query'][:, 1])
