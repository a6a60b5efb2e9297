"""How many levels a detector's attentions are of."""

import copy
import inspect
from collections.abc import Mapping

from mmdet_ddetr.registry import MODELS, class_of


def tie_levels(stack: dict, num_feature_levels: int, default: type) -> dict:
    """A copy of the config of an encoder or a decoder whose attentions have the detector's number of levels.

    Args:
        stack: config of the encoder or the decoder. Of the decoder, the cross-attention alone sees levels.
        num_feature_levels: for every attention that has an argument ``num_levels``.
        default: the stack's class where its config has no ``type``. Layers and attentions without one are the stack's
            and the layer's own.

    Raises:
        ValueError: an attention has another number.
    """
    stack = copy.deepcopy(stack)
    name = 'cross_attn_cfg' if 'cross_attn_cfg' in stack['layer_cfg'] else 'self_attn_cfg'
    cfg = stack['layer_cfg'].get(name)
    if cfg is None or 'num_levels' not in _arguments_of(cfg.get('type', _own_attention(stack, name, default))):
        return stack
    if cfg.setdefault('num_levels', num_feature_levels) != num_feature_levels:
        raise ValueError(
            f'{name}.num_levels must equal num_feature_levels={num_feature_levels}, got {cfg["num_levels"]}'
        )
    return stack


def _own_attention(stack: dict, name: str, default: type) -> type | None:
    """The class of the attention that a layer of the stack has where its config has no ``type``."""
    layer = stack['layer_cfg'].get('type', getattr(class_of(stack.get('type', default), MODELS), 'layer', None))
    attribute = 'cross_attention' if name == 'cross_attn_cfg' else 'attention'
    return None if layer is None else getattr(class_of(layer, MODELS), attribute, None)


def _arguments_of(type_: str | type | None) -> Mapping[str, inspect.Parameter]:
    cls = None if type_ is None else class_of(type_, MODELS)
    return {} if cls is None else inspect.signature(cls).parameters  # where there is no such type, its building says so
