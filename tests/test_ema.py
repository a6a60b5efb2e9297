"""mmengine's EMAHook with this project's models and hooks: averages, evaluation with them, and exact resume."""

import os
import signal

import torch
from mmengine.hooks import Hook
from training_case import Do, fork, losses, make_config, train, write_data

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
    return make_config(data, work_dir, {'custom_hooks': [dict(type='EMAHook', momentum=MOMENTUM)]})


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
