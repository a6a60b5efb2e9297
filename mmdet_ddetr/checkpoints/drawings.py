"""The checkpoint scheme ``drawings://lite0``: a detector's start from drawings, all but its backbone.

The file lies beside this one; keep_drawings.py wrote it.
"""

from pathlib import Path

from mmengine.runner import CheckpointLoader

from .errors import CheckpointError
from .read import read

SCHEME = 'drawings://'
FOLDER = Path(__file__).parent / 'drawings'


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_drawings(filename: str, map_location=None) -> dict:
    """The checkpoint of that name.

    Raises:
        CheckpointError: there is none.
    """
    path = FOLDER / f'{filename.removeprefix(SCHEME)}.pth'
    if path.parent != FOLDER or not path.is_file():
        names = ', '.join(sorted(path.stem for path in FOLDER.glob('*.pth')))
        raise CheckpointError(f'no checkpoint {filename!r}; after {SCHEME} there is {names}')
    return read(path, map_location)
