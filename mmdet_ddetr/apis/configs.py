"""The configs of this package by name.

mmengine's ``mmdet::...`` and ``get_config`` know a fixed list of packages, which no third party can join; this file
does the same for ours.
"""

from argparse import ArgumentParser
from difflib import get_close_matches
from pathlib import Path

from mmengine.config import Config, DictAction

_PACKAGE = Path(__file__).resolve().parents[1]


def list_configs():
    """Return every config of this package, {name: Path}, without the fragments in ``_base_``."""
    for root in (_PACKAGE / '.mim' / 'configs', _PACKAGE.parent / 'configs'):  # installed; a checkout on the path
        if root.is_dir():
            return {path.stem: path for path in sorted(root.rglob('*.py')) if '_base_' not in path.parts}
    raise FileNotFoundError(f'{_PACKAGE} came without its configs: neither {_PACKAGE}/.mim/configs nor a checkout')


def find_config(name):
    """Return the path of a config.

    Args:
        name (str | Path): Path of any config, or the name of one of this package, with or without ``.py``.

    Returns:
        Path: An existing file.

    Raises:
        FileNotFoundError: Neither a file nor one of our names; the message lists the nearest names.
    """
    if Path(name).is_file():
        return Path(name)
    configs = list_configs()
    stem = str(name).removesuffix('.py')
    if stem in configs:
        return configs[stem]
    near = get_close_matches(Path(stem).name, configs, n=3, cutoff=0.5) or list(configs)
    raise FileNotFoundError(
        f'no config {str(name)!r}: neither a file nor a name of mmdet_ddetr, like {", ".join(near)}'
    )


def get_config(name):
    """Return a config by path or name; see :func:`find_config`.

    Returns:
        mmengine.config.Config: With its bases merged in.
    """
    return Config.fromfile(find_config(name))


def parse_options(pairs, prog='--cfg-options'):
    """Return ['a.b=1', 'c=[1,2]', ...] as a dict of typed values, by mmengine's own rules, for ``merge_from_dict``.

    Args:
        pairs (list[str]): ``key=value``.
        prog (str): Whose they are, for the message that ends the program if one is none.
    """
    parser = ArgumentParser(prog=prog)
    parser.add_argument('pairs', nargs='+', action=DictAction)
    return parser.parse_args(pairs).pairs
