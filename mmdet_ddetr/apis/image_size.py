"""The size of the images that a model sees, set in all pipelines of a config at once."""

import copy
from collections.abc import Iterator
from numbers import Real

from mmengine.config import Config

from .configs import ConfigError

SIZES = ('scale', 'scales', 'img_scale', 'img_scales')  # arguments of transforms, in px
PIPELINES = ('train_dataloader', 'val_dataloader', 'test_dataloader')
LOADS = ('LoadImage', 'LoadAnnotations', 'LoadPanoptic')


def set_image_size(cfg: Config, size: int) -> None:
    """Let the longer side of the images that are evaluated be at most ``size`` px, in place.

    All sizes in the pipelines change by the same factor, so that the shape of the config's images and the range of its
    augmentation stay: (384, 288) is (512, 384) at 512. A training pipeline that takes the images as they are gets the
    ``Resize`` of the evaluation.

    Raises:
        ConfigError: the pipelines of evaluation resize nothing, so there is no size to change.
    """
    test = _resizes(_dataset(cfg.get('test_dataloader') or {}).get('pipeline', []))
    sizes = [value for resize in test for value in _numbers([resize.get(name) for name in SIZES])]
    if not sizes:
        raise ConfigError(
            f'--image-size {size}: the pipeline of test_dataloader has no Resize with a scale; add one to the config'
        )
    factor = size / max(sizes)
    changed = set()  # lists that several pipelines share are one object after Config has read them
    for name in PIPELINES:
        pipeline = _dataset(cfg.get(name) or {}).get('pipeline', [])
        for transform in _transforms(pipeline):
            if id(transform) in changed:
                continue
            changed.add(id(transform))
            for key in SIZES:
                if transform.get(key) is not None:
                    transform[key] = _times(transform[key], factor)
            if str(transform.get('type')).endswith('RandomCrop') and _in_pixels(transform):
                transform.crop_size = _times(transform.crop_size, factor)
    train = _dataset(cfg.get('train_dataloader') or {}).get('pipeline')
    if train and not _resizes(train):
        after = [i for i, item in enumerate(train) if any(word in str(item['type']) for word in LOADS)]
        train.insert(after[-1] + 1 if after else 0, copy.deepcopy(test[0]))


def _dataset(loader: dict) -> dict:
    """That of a loader, inside RepeatDataset and its like."""
    dataset = loader.get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def _transforms(pipeline) -> Iterator[dict]:
    """All of a pipeline, those inside RandomChoice and its like among them."""
    for item in pipeline:
        if isinstance(item, dict):
            yield item
            yield from _transforms(item.get('transforms') or [])
        elif isinstance(item, list | tuple):
            yield from _transforms(item)


def _resizes(pipeline) -> list[dict]:
    return [item for item in _transforms(pipeline) if any(item.get(name) is not None for name in SIZES)]


def _in_pixels(transform: dict) -> bool:
    return str(transform.get('crop_type', 'absolute')).startswith('absolute') and transform.get('crop_size') is not None


def _times(value, factor: float):
    if isinstance(value, list | tuple):
        return type(value)(_times(item, factor) for item in value)
    return max(round(value * factor), 1) if isinstance(value, Real) else value


def _numbers(value) -> Iterator[float]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, Real):
        yield value
