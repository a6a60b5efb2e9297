"""What benchmarks/convergence.py reads off its curves."""

import argparse
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / 'benchmarks'))

from _training import Model  # noqa: E402
from convergence import crossings, epoch_of  # noqa: E402


def curve(*values):
    return [{'epoch': 2 * i, 'AP': value} for i, value in enumerate(values, 1)]


@pytest.mark.parametrize('value, expected', [(0.1, 1.0), (0.2, 2.0), (0.25, 5.0), (0.3, 6.0), (0.31, None)])
def test_first_epoch_at_which_a_curve_with_a_dip_reaches_a_value(value, expected):
    assert epoch_of(curve(0.2, 0.2, 0.3, 0.1), 'AP', value) == (expected and pytest.approx(expected))


def test_epochs_and_minutes_to_the_first_model_s_best():
    studies = {
        'slow': {'training': {'curve': curve(0.0, 0.1, 0.2, 0.4)}},
        'fast': {'training': {'curve': curve(0.4)}},
        'flat': {'training': {'curve': curve(0.0)}},
    }
    rows = crossings({'studies': studies, 'minutes per epoch': {'slow': 1.0, 'fast': 2.0, 'flat': 1.0}}, 'AP')
    assert rows[-3:] == [  # at 0.4; the first model took 4 x the epochs and 2 x the minutes
        ['AP 0.400', 'slow', '8.0', '8.0', '', ''],
        ['AP 0.400', 'fast', '2.0', '4.0', '4.0', '2.0'],
        ['AP 0.400', 'flat', 'not reached', 'not reached', '', ''],
    ]


def test_no_crossings_of_a_curve_that_stays_at_zero():
    results = {'studies': {'flat': {'training': {'curve': curve(0.0)}}}, 'minutes per epoch': {'flat': 1.0}}
    assert crossings(results, 'AP') == []


def test_models_on_the_command_line():
    model = Model.parse('two words=some_config,model.x=[1,2],optim_wrapper.optimizer.lr=1e-4')
    assert model == Model('two words', 'some_config', ('model.x=[1,2]', 'optim_wrapper.optimizer.lr=1e-4'))
    with pytest.raises(argparse.ArgumentTypeError, match="'some_config', expected NAME=CONFIG"):
        Model.parse('some_config')
