"""EMAHook with this project's models and hooks: averages, evaluation with them, exact resume, momentum."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from training_case import Do, fork, losses, make_config, train, write_data

from mmdet_ddetr.hooks import EMAHook
from mmdet_ddetr.hooks.signals import EXIT_CODE

MOMENTUM = 0.1


class Watch(Hook):
    """Keeps the weights after every iteration, and those that are evaluated."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.trained, self.evaluated = [], None

    def after_train_iter(self, runner, **kwargs):
        self.trained.append(weights(runner.model))

    def before_val_iter(self, runner, **kwargs):
        self.evaluated = weights(runner.model)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def config(data, work_dir):
    return make_config(data, work_dir, {'custom_hooks': [dict(type='mmdet_ddetr.EMAHook', momentum=MOMENTUM)]})


def test_ema(tmp_path):
    write_data(tmp_path / 'data')

    def run():
        watch = Watch()
        runner = train(config(tmp_path / 'data', tmp_path / 'whole'), [watch])
        expected = watch.trained[0]
        for trained in watch.trained[1:]:
            expected = {k: (1 - MOMENTUM) * v + MOMENTUM * trained[k] for k, v in expected.items()}
        saved = torch.load(tmp_path / 'whole/epoch_3.pth', weights_only=False)
        for name, average in expected.items():
            torch.testing.assert_close(watch.evaluated[name], average)
            assert torch.equal(saved['state_dict'][name], watch.evaluated[name])
        assert any(not torch.equal(watch.evaluated[k], watch.trained[-1][k]) for k in expected)
        torch.testing.assert_close(weights(runner.model), watch.trained[-1], rtol=0, atol=0)

    assert fork(run) == 0


@pytest.mark.slow
def test_resume(tmp_path):
    """Interrupted and continued: the same losses and the same averages as at once."""
    write_data(tmp_path / 'data')
    whole, parts = (config(tmp_path / 'data', tmp_path / name) for name in ('whole', 'parts'))
    assert fork(train, whole) == 0
    terminate = Do('before_train_iter', 4, lambda runner: os.kill(os.getpid(), signal.SIGTERM))
    assert fork(train, parts, [terminate]) == EXIT_CODE
    assert fork(train, parts, resume=True) == 0
    assert losses(tmp_path / 'parts') == losses(tmp_path / 'whole')
    whole, parts = (torch.load(tmp_path / name / 'epoch_3.pth', weights_only=False) for name in ('whole', 'parts'))
    for kind in ('state_dict', 'ema_state_dict'):
        assert whole[kind].keys() == parts[kind].keys()
        assert all(torch.equal(tensor, parts[kind][key]) for key, tensor in whole[kind].items())


@pytest.mark.parametrize(
    ('arguments', 'iterations', 'momentum'),
    [
        ({}, 184_800, 0.00018),  # 50 epochs of COCO, 32 images a step
        ({}, 1000, 0.0333),
        (dict(share=0.1), 1000, 0.01),
        ({}, 10, 0.5),
        (dict(momentum=0.2), 1000, 0.2),
    ],
)
def test_the_momentum_follows_from_the_length(arguments, iterations, momentum):
    """In a training of any length next to nothing is left of the first weights, 0, in the average with the last, 1."""
    model = torch.nn.Linear(1, 1)
    model.weight.data.zero_()
    hook = EMAHook(**arguments)
    hook.before_run(SimpleNamespace(model=model, max_iters=iterations))
    assert hook.ema_model.momentum == pytest.approx(momentum, rel=0.01)
    hook.ema_model.update_parameters(model)  # the first sets the average
    model.weight.data.fill_(1)
    for _ in range(min(iterations, 1001)):
        hook.ema_model.update_parameters(model)
    if iterations <= 1000:
        assert hook.ema_model.module.weight.item() == pytest.approx(1, abs=1e-3)


def test_share_is_checked():
    with pytest.raises(ValueError, match='share must be between 0 and 1, got 3'):
        EMAHook(share=3)
