"""LoadImageOnce: what is kept is what would be read, made smaller with its boxes, and within its limit."""

import cv2
import numpy as np
import pytest

from mmdet_ddetr.datasets import DataError, LoadImageOnce


@pytest.fixture
def picture(tmp_path):
    """800 x 600, a white square at (200, 100) to (400, 300)."""
    path = str(tmp_path / 'a.png')
    image = np.zeros((600, 800, 3), np.uint8)
    image[100:300, 200:400] = 255
    cv2.imwrite(path, image)
    return path


def info(path):
    return dict(img_path=path, instances=[dict(bbox=[200, 100, 400, 300], bbox_label=3, mask=[[0, 0]], ignore_flag=0)])


def test_boxes_shrink_with_the_image(picture):
    results = LoadImageOnce(scale=(400, 400)).transform(info(picture))
    assert results['img'].shape == (300, 400, 3) and results['img_shape'] == (300, 400)
    assert results['ori_shape'] == (600, 800) and results['scale_factor'] == (0.5, 0.5)
    assert results['instances'] == [dict(bbox=[100, 50, 200, 150], bbox_label=3, ignore_flag=0)]
    y, x = np.nonzero(results['img'][..., 0] > 127)
    assert (x.min(), y.min(), x.max(), y.max()) == (100, 50, 199, 149)


@pytest.mark.parametrize('scale', [(800, 600), (600, 800), (2000, 1000)])
def test_what_fits_stays_as_it_is(picture, scale):
    results = LoadImageOnce(scale=scale).transform(info(picture))
    assert np.array_equal(results['img'], cv2.imread(picture)) and results['instances'] == info(picture)['instances']


def test_a_file_is_read_once_and_what_is_given_may_be_changed(picture):
    load = LoadImageOnce(scale=(400, 300))
    first = load.transform(info(picture))
    expected = first['img'].copy()
    first['img'][:] = 7
    first['instances'][0]['bbox'][0] = -1
    cv2.imwrite(picture, np.zeros((10, 10, 3), np.uint8))
    second = load.transform(info(picture))
    assert np.array_equal(second['img'], expected) and second['ori_shape'] == (600, 800)
    assert second['instances'][0]['bbox'] == [100, 50, 200, 150]


def test_the_limit(picture, tmp_path):
    """400 x 300 x 3 bytes are 0.34 MiB: one fits into 0.5, the other is read each time."""
    other = str(tmp_path / 'b.png')
    cv2.imwrite(other, np.full((600, 800, 3), 9, np.uint8))
    load = LoadImageOnce(scale=(400, 300), cache_mib=0.5)
    for path in (picture, other):
        load.transform(info(path))
        cv2.imwrite(path, np.full((600, 800, 3), 100, np.uint8))
    assert load.transform(info(picture))['img'].max() == 255
    assert load.transform(info(other))['img'].max() == 100


def test_errors_are_those_of_the_loader(tmp_path):
    (tmp_path / 'bad.jpg').write_bytes(b'no image')
    with pytest.raises(DataError, match='bad.jpg'):
        LoadImageOnce(scale=(400, 300)).transform(dict(img_path=str(tmp_path / 'bad.jpg')))
