"""The loss copies from the accelerator to the host once, for the matching, and never waits for it otherwise.

Fake tensors on 'cuda' need no GPU; what would wait for a value (item, nonzero, boolean masks) raises on them.
"""

import pytest
import torch
from mmengine.structures import InstanceData
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmdet_ddetr.heads import SetHead

L, B, Q, CLASSES, S = 6, 2, 20, 5, 50


class CopiesToHost(TorchDispatchMode):
    """Counts the operations that take a tensor on 'cuda' and give one on the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        device = args[0].device.type if args and isinstance(args[0], torch.Tensor) else None
        self.count += device == 'cuda' and isinstance(result, torch.Tensor) and result.device.type == 'cpu'
        return result


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(FakeTensor, 'numpy', lambda self: torch.zeros(self.shape, dtype=self.dtype).numpy())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


@pytest.mark.parametrize('counts', [(3, 4), (0, 2), (0, 0)])
def test_one_copy_to_the_host(fake, counts):
    head = SetHead(CLASSES, embed_dims=8, num_pred_layer=L + 1, as_two_stage=True)
    predictions = [
        torch.randn(*size, device='cuda', requires_grad=True)
        for size in [(L, B, Q, CLASSES), (L, B, Q, 4), (B, S, CLASSES), (B, S, 4)]
    ]
    truth = [
        InstanceData(bboxes=torch.rand(n, 4, device='cuda'), labels=torch.zeros(n, dtype=torch.long, device='cuda'))
        for n in counts
    ]
    with CopiesToHost() as copies:
        losses = head.loss_by_feat(*predictions, truth, [dict(img_shape=(60, 80))] * B)
        sum(losses.values()).backward()
    assert copies.count == 1
    assert len(losses) == 3 * (L + 1)
    assert all(loss.device.type == 'cuda' for loss in losses.values())
    assert all(tensor.grad.shape == tensor.shape for tensor in predictions)


@pytest.mark.parametrize('wait', [torch.Tensor.item, torch.Tensor.nonzero, lambda x: x[x > 0]])
def test_waiting_for_a_value_raises(fake, wait):
    """Or else the test above would prove nothing."""
    with pytest.raises(RuntimeError):
        wait(torch.ones((), device='cuda') if wait is torch.Tensor.item else torch.ones(3, device='cuda'))
