"""Registries of scope ``mmdet_ddetr``, children of mmengine's roots.

A config keeps ``default_scope = 'mmdet'`` and writes our types with their scope, ``mmdet_ddetr.DeformableDETR``:
mmengine then imports this file by itself, and each registry imports the modules in ``locations`` on first use. Nothing
is registered into mmdet's own registries.
"""

from mmdet import registry as mmdet_registry
from mmdet.registry import DATASETS as MMDET_DATASETS
from mmdet.registry import HOOKS as MMDET_HOOKS
from mmdet.registry import METRICS as MMDET_METRICS
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.registry import TASK_UTILS as MMDET_TASK_UTILS
from mmdet.registry import TRANSFORMS as MMDET_TRANSFORMS
from mmdet.registry import VISBACKENDS as MMDET_VISBACKENDS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import Registry

from . import checkpoints  # noqa: F401  every ``load_from`` is read by its loaders, whatever is built

SCOPE = 'mmdet_ddetr'

MODELS = Registry(
    'model',
    parent=MMDET_MODELS,
    scope=SCOPE,
    locations=[
        'mmdet_ddetr.backbones',
        'mmdet_ddetr.necks',
        'mmdet_ddetr.layers',
        'mmdet_ddetr.heads',
        'mmdet_ddetr.detectors',
    ],
)
TASK_UTILS = Registry('task util', parent=MMDET_TASK_UTILS, scope=SCOPE, locations=['mmdet_ddetr.task_modules'])
DATASETS = Registry('dataset', parent=MMDET_DATASETS, scope=SCOPE, locations=['mmdet_ddetr.datasets'])
TRANSFORMS = Registry('transform', parent=MMDET_TRANSFORMS, scope=SCOPE, locations=['mmdet_ddetr.datasets'])
METRICS = Registry('metric', parent=MMDET_METRICS, scope=SCOPE, locations=['mmdet_ddetr.evaluation'])
HOOKS = Registry('hook', parent=MMDET_HOOKS, scope=SCOPE, locations=['mmdet_ddetr.hooks'])
LOOPS = Registry('loop', parent=mmdet_registry.LOOPS, scope=SCOPE, locations=['mmdet_ddetr.loops'])
VISBACKENDS = Registry('vis_backend', parent=MMDET_VISBACKENDS, scope=SCOPE, locations=['mmdet_ddetr.visualization'])
STRATEGIES = Registry('strategy', parent=MMENGINE_STRATEGIES, scope=SCOPE, locations=['mmdet_ddetr.strategies'])

# A config that has one of ours as its base (``mmdet_ddetr::...``) gives every type of it our scope, also where this
# package adds no type; mmengine warns where a scope has no registry.
for parent in (
    mmdet_registry.DATA_SAMPLERS,
    mmdet_registry.EVALUATOR,
    mmdet_registry.LOG_PROCESSORS,
    mmdet_registry.OPTIMIZERS,
    mmdet_registry.OPTIM_WRAPPERS,
    mmdet_registry.OPTIM_WRAPPER_CONSTRUCTORS,
    mmdet_registry.PARAM_SCHEDULERS,
    mmdet_registry.VISUALIZERS,
):
    Registry(parent.name, parent=parent, scope=SCOPE, locations=['mmdet_ddetr'])


def class_of(type_: str | type, registry: Registry) -> type | None:
    """The class that a config's ``type`` stands for: a name, or the class itself (mmengine's pure-Python configs).

    Args:
        type_: with or without scope; without one it is looked for in this registry, then in its parents.

    Returns:
        The class or function; None if there is none of that name.
    """
    registry.import_from_location()
    return registry.get(type_) if isinstance(type_, str) else type_


def our_class(type_: str | type, registry: Registry) -> type | None:
    """``class_of``, with this package's class in place of one of the same name in mmdet, mmcv or mmengine."""
    cls, ancestor = class_of(type_, registry), registry.parent
    name = getattr(cls, '__name__', None)
    while ancestor is not None:
        if ancestor.module_dict.get(name) is cls:
            return registry.module_dict.get(name, cls)
        ancestor = ancestor.parent
    return cls


def is_a(type_: str | type, registry: Registry, base: type) -> bool:
    """Whether a config's ``type`` stands for a class or a subclass of it; False where there is no such type."""
    cls = class_of(type_, registry)
    return isinstance(cls, type) and issubclass(cls, base)
