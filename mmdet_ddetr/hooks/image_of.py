import numpy as np

from ..datasets import DataError, read_image
from ..datasets.inner import innermost, reader_of


def image_of(runner, sample) -> np.ndarray | None:
    """The picture of a validation sample, read once more from where the data set reads it.

    Returns:
        BGR [h, w, 3]; None where it cannot be read, with a warning: no drawing is worth a training.
    """
    readers = map(reader_of, innermost(runner.val_dataloader.dataset))
    backend_args = next((reader.backend_args for reader in readers if reader is not None), None)
    path = getattr(sample, 'img_path', None)
    try:
        if path is None:
            raise DataError("its sample has no 'img_path', which meta_keys of PackDetInputs keeps")
        return read_image(path, backend_args=backend_args)
    except DataError as error:
        runner.logger.warning(f'An image of the evaluation is not drawn: {error}')
        return None
