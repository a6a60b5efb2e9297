import torch

from mmdet_ddetr.layers import QueryGroups


def test_mask_by_hand():
    """2 matching and 3 one-to-many queries, 2 denoising groups of 1 positive and 1 negative query each."""
    groups = QueryGroups(matching=2, one2many=3, k_one2many=2, dn_groups=2, dn_size=2)
    rows = [
        '..xxxxxxx',
        '..xxxxxxx',
        'xx...xxxx',
        'xx...xxxx',
        'xx...xxxx',
        '..xxx..xx',  # denoising queries see the matching ones
        '..xxx..xx',
        '..xxxxx..',
        '..xxxxx..',
    ]
    assert groups.attention_mask('cpu').tolist() == [[cell == 'x' for cell in row] for row in rows]


def test_matching_queries_alone_are_not_masked():
    assert not QueryGroups(matching=4).attention_mask('cpu').any()


def test_groups_of_no_target():
    """A batch without boxes has denoising groups of nothing."""
    groups = QueryGroups(matching=2, dn_groups=1, dn_size=0)
    assert groups.denoising == 0
    assert groups.attention_mask('cpu').shape == (2, 2)


def test_split():
    groups = QueryGroups(matching=2, one2many=3, dn_groups=2, dn_size=4)
    parts = groups.split(torch.arange(13)[None], 1)
    assert [part.tolist() for part in parts] == [[[0, 1]], [[2, 3, 4]], [[5, 6, 7, 8, 9, 10, 11, 12]]]
