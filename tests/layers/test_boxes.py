import math

import pytest
import torch

from mmdet_ddetr.layers import inverse_sigmoid, refine_box


def test_inverse_sigmoid_by_hand():
    x = torch.tensor([0.5, 0.75, 0.1, 0.0, 1.0, -3.0, 7.0])
    limit = math.log(1 / 1e-5)
    expected = torch.tensor([0.0, math.log(3), math.log(1 / 9), -limit, limit, -limit, limit])
    torch.testing.assert_close(inverse_sigmoid(x), expected)
    assert inverse_sigmoid(torch.tensor(0.5, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_inverse_sigmoid_of_16_bits_is_computed_in_fp32(dtype):
    x = torch.tensor([0.001, 0.5, 0.999], dtype=dtype)
    result = inverse_sigmoid(x)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, inverse_sigmoid(x.float()), rtol=0, atol=0)


def test_refine_box_by_hand():
    delta = torch.tensor([[math.log(3), 0.0, -2.0, math.log(1 / 9)]])
    free = refine_box(delta, None)
    torch.testing.assert_close(free, torch.tensor([[0.75, 0.5, 1 / (1 + math.exp(2)), 0.1]]))
    # a point moves the centre only: logit(0.75) + log 3 = log 9
    point = refine_box(delta, torch.tensor([[0.75, 0.1]]))
    torch.testing.assert_close(point, torch.tensor([[0.9, 0.1, 1 / (1 + math.exp(2)), 0.1]]))
    # a zero delta leaves a box as it is
    box = torch.tensor([[0.3, 0.6, 0.1, 0.9]])
    torch.testing.assert_close(refine_box(torch.zeros(1, 4), box), box)
    # width and height of 0.5 shift nothing: how a point is written as a box
    torch.testing.assert_close(refine_box(delta, torch.tensor([[0.75, 0.1, 0.5, 0.5]])), point)


def test_refine_box_says_what_it_expects():
    with pytest.raises(ValueError, match=r'2 \(cx, cy\) or 4 .* got reference.shape=torch.Size\(\[1, 3\]\)'):
        refine_box(torch.zeros(1, 4), torch.zeros(1, 3))
