"""What lies inside a data set: others that it wraps, and the loader of its pictures."""

from mmcv.transforms import LoadImageFromFile


def innermost(dataset) -> list:
    """The data sets inside ConcatDataset, RepeatDataset and their like."""
    if hasattr(dataset, 'datasets'):
        return [inner for part in dataset.datasets for inner in innermost(part)]
    if hasattr(dataset, 'dataset'):
        return innermost(dataset.dataset)
    return [dataset]


def reader_of(dataset) -> LoadImageFromFile | None:
    """The transform that reads a data set's pictures; None if they are read in another way."""
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    return next((transform for transform in transforms if isinstance(transform, LoadImageFromFile)), None)
