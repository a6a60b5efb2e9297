"""What is built of a config that came with a checkpoint.

Plain values are not harmless yet: mmengine's registries take ``os.system`` for a type and call it, and some of mmdet's
and mmcv's own types evaluate a string, run another config or download files. So the config is cut down to what
prediction needs, every type in it has to be registered, the few that do more than compute are refused, and while it is
built, mmengine looks nowhere but in its registries.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

import mmcv.ops
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, TASK_UTILS, TRANSFORMS, Registry
from torch import nn

from ..checkpoints import CheckpointError
from ..registry import MODELS as OUR_MODELS
from ..registry import TASK_UTILS as OUR_TASK_UTILS
from ..registry import TRANSFORMS as OUR_TRANSFORMS

DEFAULT_SCOPES = ('mmdet', 'mmengine')  # where mmengine looks for a name without one
PACKAGES = ('mmdet_ddetr', 'mmdet', 'mmengine', 'mmcv', 'torch')
# Not registered, but words of mmdet's own, and only where it expects them; of those for NMS, mmcv evaluates the name.
NMS, CONV = ('nms', 'soft_nms', 'nms_match'), ('conv', 'last_conv', 'interpolation_conv')
WORDS = {'nms': NMS, 'dqs_cfg': NMS, 'adapt_cfg': ('offset', 'dilation')}
WORDS |= {f'{way}_trans': CONV for way in ('same_up', 'same_down', 'output')}
WORDS |= {f'across_{way}_trans': CONV for way in ('lateral', 'down', 'up', 'skip')}
# They evaluate strings, run a config, download from a hub or read other files.
MORE_THAN_COMPUTE = {
    'ATSSVLFusionHead',
    'AppearanceFreeLink',
    'BertModel',
    'CameraMotionCompensation',
    'Detectron2Wrapper',
    'KnowledgeDistillationSingleStageDetector',
    'LAD',
    'RandomSamplingNegPos',
}
# Of files and addresses: where initial weights come from, which those of the checkpoint replace, and where images do.
LEFT_OUT = ('init_cfg', 'pretrained', 'backend_args', 'file_client_args')


def stored_model(config: dict, source: str) -> ConfigDict:
    """Keep of a stored config what prediction needs.

    Args:
        config: plain values.
        source: the checkpoint it came with, for messages.

    Returns:
        ``model`` and ``test_dataloader.dataset.pipeline``, beside a dataset and a visualizer that are always the same.

    Raises:
        CheckpointError: it has none, or a type in it may not be built.
    """
    try:
        model, pipeline = config['model'], config['test_dataloader']['dataset']['pipeline']
    except (KeyError, TypeError):
        model, pipeline = None, None
    if not isinstance(model, dict) or not isinstance(pipeline, list) or not all(isinstance(t, dict) for t in pipeline):
        raise CheckpointError(f'{source} holds a config without model or test pipeline: pass the config as `model`')
    _import_registered()
    try:
        _vetted_type(model.get('type'), (MODELS,))
        return ConfigDict(
            default_scope='mmdet',
            model=_vetted(model, (MODELS, TASK_UTILS)),
            test_dataloader=dict(
                dataset=dict(type='mmdet.BaseDetDataset', pipeline=_vetted(pipeline, (TRANSFORMS,))),
            ),
            visualizer=dict(type='mmdet.DetLocalVisualizer'),
        )
    except (CheckpointError, RecursionError) as error:
        raise _refusal(error, source) from None


def differences(config: Mapping, stored: Mapping) -> list[str]:
    """What makes other detections of the same weights, as 'test scale [192, 192], not [128, 128]'.

    Args:
        config: the one that counts.
        stored: plain values that came with the checkpoint, of any kind.
    """
    ours, theirs = _deciding(config), _deciding(stored)
    if not ours or not theirs:
        return []
    names = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    return [f'{name} {ours.get(name, "not set")}, not {theirs.get(name, "not set")}' for name in names]


def _deciding(config: Mapping) -> dict[str, object]:
    """Scale of the test pipeline and settings of ``model.test_cfg``, by name; none of a config without these."""
    try:
        pipeline, settings = config['test_dataloader']['dataset']['pipeline'], config['model'].get('test_cfg') or {}
        values = {f'model.test_cfg.{name}': value for name, value in settings.items() if name != '_scope_'}
        for transform in pipeline:
            if transform.get('scale') is not None:
                values['test scale'] = transform['scale']
        return json.loads(json.dumps(values))  # tuples as lists
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return {}


@contextmanager
def registered_only(source: str) -> Iterator[None]:
    """While something is built or run in this context, no registry of mmengine gives more than what is registered.

    Types also come from values that are no ``type`` in the config, as mmcv's ``padding_mode`` and ``resize_type``; and
    a registry imports ``./HungarianAssigner.py`` for that name, where another registry than its own has it.

    Args:
        source: the checkpoint whose config is built, for messages.

    Raises:
        CheckpointError: something was not built, as a type was in none of the registries that it was looked for in, or
            does more than compute.
    """
    missing, get = [], Registry.get

    def get_harmless(registry: Registry, name: str):
        found = get(registry, name)
        if _does_more(found):
            missing.append(name)
            return None
        return found

    with (
        mock.patch('mmengine.registry.registry.get_object_from_string', missing.append),
        mock.patch.object(Registry, 'get', get_harmless),
    ):
        try:
            yield
        except Exception as error:
            if missing:
                raise _refusal(f'type {missing[-1]!r} is not registered for where it stands', source) from error
            raise


def _refusal(reason: object, source: str) -> CheckpointError:
    return CheckpointError(
        f'the config in {source} is refused: {reason}. If you trust it, import what registers its types, or write '
        'it to a file and pass that as `model`'
    )


def _import_registered() -> None:
    import mmdet.registry

    for registry in (OUR_MODELS, OUR_TASK_UTILS, OUR_TRANSFORMS):
        registry.import_from_location()
    for name in ('MODELS', 'TASK_UTILS', 'TRANSFORMS'):
        getattr(mmdet.registry, name).import_from_location()


def _vetted(value, roots: tuple[Registry, ...], key: str | None = None):
    """A copy without what is left out, in which every type is the name of something registered.

    Args:
        key: that the value has in the dict around it.
    """
    if isinstance(value, dict):
        scope = value.get('_scope_')
        if scope is not None and scope not in [registry.scope for root in roots for registry in _tree(root)]:
            raise CheckpointError(f'no registry has the scope {scope!r}')
        kept = {name: _vetted(item, roots, name) for name, item in value.items() if name not in LEFT_OUT}
        if 'type' in value and value['type'] not in WORDS.get(key, ()):
            kept['type'] = _vetted_type(value['type'], roots)
        return kept
    if isinstance(value, list | tuple):
        return type(value)(_vetted(item, roots) for item in value)
    return value


def _does_more(found: object) -> bool:
    return isinstance(found, type) and any(cls.__name__ in MORE_THAN_COMPUTE for cls in found.__mro__)


def _vetted_type(name, roots: tuple[Registry, ...]) -> str:
    if not isinstance(name, str):
        raise CheckpointError(f'{name!r} is no name of a type')
    found, name = _find(name, roots)
    if _does_more(found):
        raise CheckpointError(f'type {name!r} reads other files or evaluates its arguments')
    return name


def _find(name: str, roots: tuple[Registry, ...]) -> tuple[object, str]:
    """What is registered under a name, and the name as mmengine finds it there without importing anything."""
    scope, _, key = name.rpartition('.')
    package = scope.partition('.')[0]
    registries = [registry for root in roots for registry in _tree(root)]
    for registry in registries:
        if registry.scope in ([scope] if scope else DEFAULT_SCOPES) and key in registry.module_dict:
            return registry.module_dict[key], name
    if scope and package in PACKAGES:  # configs in Python's own syntax store where a class was imported from
        for registry in registries:
            found = registry.module_dict.get(key)
            if getattr(found, '__module__', '').partition('.')[0] == package:
                return found, f'{registry.scope}.{key}'
    layer = getattr(mmcv.ops, name, None)  # the RoI layers of mmdet's extractors
    if isinstance(layer, type) and issubclass(layer, nn.Module):
        return layer, name
    raise CheckpointError(f'type {name!r} is not registered')


def _tree(registry: Registry) -> Iterator[Registry]:
    yield registry
    for child in registry.children.values():
        yield from _tree(child)
