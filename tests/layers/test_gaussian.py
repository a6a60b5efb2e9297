import pytest
import torch

from mmdet_ddetr.layers import log_gaussian

CENTRES = torch.tensor([[[[1.0, 0.0], [0.5, 2.0]]]])  # [1, 1, 2, 2]


def test_hand_computed():
    """A map of 2 x 3, row by row; the second head's point lies below it."""
    none = log_gaussian(CENTRES, None, (2, 3), smooth=2.0)
    assert none.shape == (1, 2, 1, 6)
    torch.testing.assert_close(none[0, 0, 0], -torch.tensor([1.0, 0, 1, 2, 1, 2]) / 2)
    torch.testing.assert_close(none[0, 1, 0], -torch.tensor([4.25, 4.25, 6.25, 1.25, 1.25, 3.25]) / 2)
    one = log_gaussian(CENTRES, torch.tensor([[[[2.0], [1.0]]]]), (2, 3), smooth=2.0)
    torch.testing.assert_close(one[0, 0], 4 * none[0, 0])
    torch.testing.assert_close(one[0, 1], none[0, 1])
    two = log_gaussian(CENTRES, torch.tensor([[[[-1.0, 3.0], [1.0, 1.0]]]]), (2, 3), smooth=2.0)
    torch.testing.assert_close(two[0, 0, 0], -torch.tensor([1.0, 0, 1, 10, 9, 10]) / 2)
    three = log_gaussian(CENTRES, torch.tensor([[[[1.0, 3.0, 2.0], [1.0, 1.0, 0.0]]]]), (2, 3), smooth=2.0)
    torch.testing.assert_close(three[0, 0, 0], -torch.tensor([1.0, 0, 1, 14, 9, 14]) / 2)
    torch.testing.assert_close(three[0, 1], none[0, 1])


def test_first_cell():
    """Where cells count from their centres, a point half a cell further has the same Gaussian."""
    torch.testing.assert_close(
        log_gaussian(CENTRES + 0.5, None, (2, 3), first_cell=0.5), log_gaussian(CENTRES, None, (2, 3))
    )


def test_fp32_at_least():
    assert log_gaussian(CENTRES.bfloat16(), torch.ones(1, 1, 2, 2).bfloat16(), (2, 3)).dtype is torch.float32
    assert log_gaussian(CENTRES.double(), None, (2, 3)).dtype is torch.float64


def test_message():
    with pytest.raises(ValueError, match=r'scales must end in 1 .* got scales.shape=torch.Size\(\[1, 1, 2, 4\]\)'):
        log_gaussian(CENTRES, torch.ones(1, 1, 2, 4), (2, 3))
