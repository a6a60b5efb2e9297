"""What a file has to tell beside its program: classes, and how an image becomes its input."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from mmengine.config import Config

KEY = 'mmdet_ddetr'  # of the text inside a file
VERSION = 1


class ExportError(ValueError):
    """A detector that cannot be written as asked, or a file that is none."""


@dataclass(frozen=True)
class Description:
    """Written as JSON into every exported file.

    Attributes:
        classes: a name for each label.
        scale: (w, h) that an image is resized to fit; None: images keep their size.
        keep_ratio: fit an image into ``scale`` or its transpose, the longer side to the longer; else resize to it.
        divisor: height and width of a batch are padded to multiples of it.
        smallest: height and width of a batch are at least this.
        threshold: score below which detections are usually left out.
        fixed: (height, width) that a batch must have; None: any.
        batch: number of images a batch must have; None: any.
        masks: whether the program gives masks.
    """

    classes: tuple[str, ...]
    scale: tuple[int, int] | None
    keep_ratio: bool
    divisor: int
    smallest: int
    threshold: float
    fixed: tuple[int, int] | None = None
    batch: int | None = None
    masks: bool = False
    version: int = VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None, path: str | Path) -> 'Description':
        """Read what a file says of itself.

        Raises:
            ExportError: it says nothing, or something else.
        """
        try:
            values = json.loads(text)
            if values['version'] != VERSION:
                raise ValueError
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        except (TypeError, ValueError, KeyError):
            raise ExportError(f'{path} is no detector that tools/export.py wrote') from None


def describe(cfg: Config, classes: tuple[str, ...], threshold: float, smallest: int, **given) -> Description:
    """Read a config's test pipeline.

    Raises:
        ExportError: the pipeline does more to an image than resize it.
    """
    scale, keep_ratio, divisor = None, True, 1
    for transform in cfg.test_dataloader.dataset.pipeline:
        name = str(getattr(transform['type'], '__name__', transform['type'])).rpartition('.')[2]
        if name == 'Resize':
            if transform.get('scale') is None:
                raise ExportError(f'test pipeline: {name} must have a scale to be exported')
            scale, keep_ratio = tuple(transform['scale']), transform.get('keep_ratio', False)
        elif name == 'Pad' and transform.get('size_divisor'):
            divisor = transform['size_divisor']
        elif not name.startswith(('Load', 'InferencerLoader', 'PackDetInputs')):
            raise ExportError(f'test pipeline: a file cannot describe {name}, only Resize and Pad')
    divisor = math.lcm(divisor, cfg.model.data_preprocessor.get('pad_size_divisor', 1))
    return Description(classes, scale, keep_ratio, divisor, smallest, threshold, **given)
