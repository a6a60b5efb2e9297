"""The configs of this package by name.

mmengine's ``mmdet::...`` and ``get_config`` know a fixed list of packages, which no third party can join; this file
does the same for ours.
"""

import re
from difflib import get_close_matches
from pathlib import Path

from mmengine.config import Config, DictAction

from ..checkpoints import CheckpointError, stored_config
from .unread import value_at, why_unread

DICT = re.compile(r'\bdict\(|{')
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
        FileNotFoundError: Neither a file nor one of our names; the message lists the nearest names, or where all are.
    """
    if Path(name).is_file():
        return Path(name)
    configs = list_configs()
    stem = str(name).removesuffix('.py')
    if stem in configs:
        return configs[stem]
    near = get_close_matches(Path(stem).name, configs, n=3, cutoff=0.5)
    hint = (
        f', like {", ".join(near)}' if near else f'; docs/model_zoo.md and list_configs() have its {len(configs)} names'
    )
    raise FileNotFoundError(f'no config {str(name)!r}: neither a file nor a name of mmdet_ddetr{hint}')


class ConfigError(ValueError):
    """A config that cannot be read, or an option that it cannot take."""


def get_config(name):
    """Return a config by path or name; see :func:`find_config`.

    Returns:
        mmengine.config.Config: With its bases merged in.

    Raises:
        FileNotFoundError: As :func:`find_config`.
        ConfigError: The file is no config; the message says why.
    """
    path = find_config(name)
    try:
        return Config.fromfile(path)
    except SyntaxError as error:
        raise ConfigError(f'{path}, line {error.lineno}: {error.msg}: {(error.text or "").strip()}') from error
    except Exception as error:
        reason = (str(error).splitlines() or ['no reason is given'])[0]
        raise ConfigError(f'{path} cannot be read as a config: {type(error).__name__}: {reason}') from error


def parse_options(pairs, prog='--cfg-options'):
    """Return ['a.b=1', 'c=[1,2]', ...] as a dict of typed values, for ``merge_from_dict``.

    Values are read by mmengine's rules, or as Python where there is a ``dict(...)`` or ``{...}`` in them.

    Args:
        pairs (list[str]): ``key=value``.
        prog (str): Whose they are, for messages.

    Raises:
        ConfigError: One is no ``key=value``, or its value has no meaning.
    """
    options = {}
    for pair in pairs:
        key, equals, text = pair.partition('=')
        if not key or not equals:
            raise ConfigError(f'{prog}: got {pair!r}, expected key=value, without blanks around "="')
        try:
            if DICT.search(text):
                options[key] = stored_config.parse(f'value = {text}')['value']
            else:
                options[key] = DictAction._parse_iterable(text)
        except (CheckpointError, AssertionError, RecursionError):
            raise ConfigError(
                f'{prog} {key}: cannot read the value {text!r}; write lists as "[1,2]", and what has dicts in it as in '
                """Python, in quotes: "[dict(type='EMAHook')]\""""
            ) from None
    return options


def merge_options(cfg, pairs, prog='--cfg-options'):
    """Merge ``key=value`` settings into a config; see :func:`parse_options`.

    Args:
        cfg (mmengine.config.Config): Changed in place.

    Raises:
        ConfigError: An option that cannot be read, leads nowhere in the config, or would be read by nobody; with the
            nearest key.
    """
    for key, value in parse_options(pairs, prog).items():
        if why := _dead_end(cfg, key) or _no_number(cfg, key, value) or why_unread(cfg, key):
            raise ConfigError(f'{prog} {key}: {why}')
        try:
            cfg.merge_from_dict({key: value})
        except Exception as error:
            raise ConfigError(f'{prog} {key}: {error}') from error


def _no_number(cfg, key, value):
    """Where a word would take the place of a number."""
    old = value_at(cfg, key)
    if isinstance(old, bool) or not isinstance(old, int | float) or not isinstance(value, str):
        return None
    try:
        float(value)  # inf
    except ValueError:
        return f'got {value!r}, expected a number, as {old!r} is'
    return None


def _dead_end(cfg, key):
    """Where a path leads nowhere."""
    value, names = cfg, key.split('.')
    for i, name in enumerate(names):
        here = '.'.join(names[:i])
        if isinstance(value, list | tuple):
            if not name.isdigit() or int(name) >= len(value):
                return f'{here} is a list of {len(value)}, so the next name is 0 to {len(value) - 1}, not {name!r}'
            value = value[int(name)]
        elif isinstance(value, dict | Config):
            value = value.get(name, {})
        else:
            return f'{here} is {value!r}, which has no {name!r}'
    return None
