"""What the benchmarks that train share: models named on the command line, their configs on a folder, their figures."""

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FIGURES = {'AP': 'coco/bbox_mAP', 'AP50': 'coco/bbox_mAP_50', 'small-object AP': 'coco/bbox_mAP_s'}


@dataclass(frozen=True)
class Model:
    name: str
    config: str
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> 'Model':
        """Read 'NAME=CONFIG,key=value,...'; a value may be a list, as in key=[1,2]."""
        name, _, rest = text.partition('=')
        config, *options = re.split(r',(?=[\w.]+=)', rest)
        if not name or not config:
            raise argparse.ArgumentTypeError(f'{text!r}, expected NAME=CONFIG[,key=value...]')
        return cls(name, config, tuple(options))

    @property
    def slug(self) -> str:
        return re.sub(r'\W+', '-', self.name).strip('-').lower()

    def change(self, cfg) -> None:
        """Set the options in a config."""
        from mmdet_ddetr.apis import parse_options

        if self.options:
            cfg.merge_from_dict(parse_options(self.options, self.name))


def on_folder(cfg, folder, **length):
    """A copy of a config that trains on the classes of a folder; ``length`` as ``configure`` takes it."""
    from mmdet_ddetr.apis.finetune import configure
    from mmdet_ddetr.datasets import read_coco

    classes = [category['name'] for category in read_coco(folder.train.ann_file)['categories']]
    return configure(cfg, folder, classes, **length)


def without_outputs(cfg, seed: int) -> None:
    """Write nothing but the log: no checkpoints, curves or pictures."""
    hooks = {name: hook for name, hook in cfg.default_hooks.items() if name == 'fit_checkpoint'}
    cfg.default_hooks = dict(hooks, checkpoint=None, logger=dict(type='LoggerHook', interval=50))
    cfg.randomness = dict(seed=seed)


def figures_of(metrics: dict) -> dict[str, float]:
    return {name: float(metrics[key]) for name, key in FIGURES.items()}


def draw_shapes(out: Path, **options) -> str:
    """The folder of drawn shapes in ``out``, drawn if it is not there; ``options`` of tools/make_shapes.py."""
    tool = Path(__file__).parents[1] / 'tools/make_shapes.py'
    arguments = [f'--{name}={value}' for name, value in options.items()]
    subprocess.run([sys.executable, tool, out / 'shapes', *arguments], check=True)
    return str(out / 'shapes')
