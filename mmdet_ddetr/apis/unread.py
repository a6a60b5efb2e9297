"""Options that nothing would read: names that a config file uses for itself, and misspelt ones.

What is built from a dict with a ``type`` checks its arguments itself, see ``mistakes.py``. Left are the names at the
top of a config and the dicts of which only some keys are looked up.
"""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from inspect import signature

from mmengine.runner import FlexibleRunner, Runner

READ = {name for cls in (Runner, FlexibleRunner) for name in signature(cls.__init__).parameters} - {'self', 'cfg'}
READ |= {'runner_type', 'auto_scale_lr', 'tta_model', 'tta_pipeline'}

# Keys that are looked up in dicts without a type, {pattern of the dict's path: keys}.
LOOKED_UP = {
    r'auto_scale_lr': {'enable', 'base_batch_size', 'rule'},
    r'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    r'env_cfg\.mp_cfg': {'mp_start_method', 'opencv_num_threads'},
    r'optim_wrapper\.clip_grad': {'type', 'max_norm', 'norm_type', 'error_if_nonfinite', 'foreach', 'clip_value'},
    r'optim_wrapper\.paramwise_cfg': {
        *('custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult'),
        *('dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate'),
    },
    r'\w+_dataloader(\.dataset)+\.filter_cfg': {'filter_empty_gt', 'min_size'},
}
FREE = re.compile(r'\.(metainfo|custom_keys|class_names|backend_args|data_prefix)\b')  # any keys
MISSPELT = 0.8  # so alike is a new key to its neighbour that it is taken for it
SIZE = re.compile(r'((im(g|age)?|input|test|train)_?)?(si?ze?s?|scales?|resolution|shape)')
SHOWN = 3


def why_unread(cfg: Mapping, key: str) -> str | None:
    """Why a config's reader would not look at an option, and what to write instead; None if it would.

    Args:
        cfg: without the option.
        key: of the option, with dots.
    """
    top, _, rest = key.partition('.')
    if top not in READ:
        return f'nothing reads {top!r}{_instead(cfg, top, rest)}'
    parent, _, name = key.rpartition('.')
    siblings = value_at(cfg, parent) or {}
    if not parent or FREE.search(f'.{parent}') or not isinstance(siblings, Mapping) or name in siblings:
        return None
    known = next((keys for pattern, keys in LOOKED_UP.items() if re.fullmatch(pattern, parent)), None)
    if known is None and ('type' in siblings or name == 'type'):
        return None
    near = get_close_matches(name, known or siblings, n=1, cutoff=0.6 if known else MISSPELT)
    if known is not None and name not in known:
        return f'nothing reads {name!r} in {parent}; ' + (
            f'did you mean {parent}.{near[0]}?' if near else f'it has {", ".join(sorted(known))}'
        )
    return f'nothing reads {name!r} in {parent}; did you mean {parent}.{near[0]}?' if known is None and near else None


def _instead(cfg: Mapping, top: str, rest: str) -> str:
    """What to write in place of a name at the top that is not read."""
    rest = rest and f'.{rest}'
    places = _places(cfg, top)
    size = '; the size of the images is set by --image-size' if SIZE.fullmatch(top) else ''
    if places:
        more = ', ...' if len(places) > SHOWN else ''
        stands = ', '.join(f'{place}{rest}' for place in places[:SHOWN])
        return f': the config file uses this name for itself, and its value stands at {stands}{more}: set that{size}'
    if size:
        return size
    near = [path for path, _ in _leaves(cfg) if path.rpartition('.')[2] == top]
    near = near or get_close_matches(top, sorted(READ | {path for path, _ in _leaves(cfg)}), n=1)
    return f'; did you mean {near[0]}{rest}?' if near else ''


def _places(cfg: Mapping, top: str) -> list[str]:
    """Where the value of a config file's own variable went: equal lists and dicts, and numbers with a like name."""
    if top not in cfg:
        return []
    value = cfg[top]
    alike = [
        (path, found) for path, found in _leaves(cfg, values=True) if found == value and type(found) is type(value)
    ]
    if isinstance(value, list | tuple | Mapping) and value:
        paths = [path for path, _ in alike]
        return [path for path in paths if not any(path.startswith(f'{other}.') for other in paths)]
    return [path for path, _ in alike if path.rpartition('.')[2] in (top, top.rpartition('_')[2])]


def _leaves(cfg, prefix: str = '', values: bool = False) -> Iterator[tuple[str, object]]:
    """(path, value) of all that is read, lists and, with ``values``, whatever is in them included."""
    items = cfg.items() if hasattr(cfg, 'items') else enumerate(cfg)
    for name, value in items:
        if not prefix and name not in READ:
            continue
        path = f'{prefix}{name}'
        yield path, value
        if hasattr(value, 'items') or (values and isinstance(value, list | tuple)):
            yield from _leaves(value, f'{path}.', values)


def value_at(cfg, path: str):
    """What stands at a dotted path of a config; None: nothing."""
    for part in path.split('.'):
        if isinstance(cfg, list | tuple):
            cfg = cfg[int(part)] if part.isdecimal() and int(part) < len(cfg) else None
        else:
            cfg = cfg.get(part) if hasattr(cfg, 'get') else None
    return cfg
