"""The files beside the weights that ``transformers`` needs: of what model they are, and how it wants its images."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from . import branches, coco_classes, stored_config
from .description import count_names
from .errors import CheckpointError
from .layouts import NATIVE, find_layout

# What transformers calls our detectors, and which of its image processors they have.
KINDS = {
    'DETR': ('Detr', 'detr', 'Detr'),
    'DeformableDETR': ('DeformableDetr', 'deformable_detr', 'DeformableDetr'),
    'ConditionalDETR': ('ConditionalDetr', 'conditional_detr', 'ConditionalDetr'),
    'DABDETR': ('DabDetr', 'dab-detr', 'ConditionalDetr'),
}
NUM_HEADS = 8
NUM_PROPOSALS = 300
DAB_TEMPERATURE = 20
DC5 = ('ResNetDC5', 'mmdet_ddetr.ResNetDC5')  # not asked of the registry, which imports whatever a name says
PREPROCESSOR = {  # of the official codes
    'format': 'coco_detection',
    'do_resize': True,
    'size': {'shortest_edge': 800, 'longest_edge': 1333},
    'do_rescale': True,
    'do_normalize': True,
    'image_mean': [0.485, 0.456, 0.406],
    'image_std': [0.229, 0.224, 0.225],
    'do_pad': True,
}


def make_configs(state_dict: dict[str, Tensor], meta: Mapping) -> tuple[dict, dict]:
    """``config.json`` and ``preprocessor_config.json`` of a model.

    What weights do not tell, the number of heads, of a two-stage model's proposals and the temperature of DAB-DETR's
    positions, is taken from the config in ``meta``; without one they are those of the papers, 8, 300 and 20.

    Args:
        state_dict: weights in our layout, with the class rows that the file has.
        meta: may hold ``cfg`` and ``dataset_meta``.

    Raises:
        CheckpointError: ``transformers`` has no such backbone, or no such head.
    """
    architecture = find_layout(state_dict, NATIVE).architecture
    kind, model_type, processor = KINDS[architecture]
    model_cfg = stored_config.parse(meta['cfg'])['model'] if 'cfg' in meta else {}
    attention = model_cfg.get('encoder', {}).get('layer_cfg', {}).get('self_attn_cfg', {})
    num_heads = attention.get('num_heads', NUM_HEADS)
    rows = coco_classes.num_rows(state_dict)
    labels = _labels(meta.get('dataset_meta', {}).get('classes'), rows - (architecture == 'DETR'), rows)
    config = {
        'architectures': [f'{kind}ForObjectDetection'],
        'model_type': model_type,
        'use_timm_backbone': False,
        'use_pretrained_backbone': False,
        'backbone': None,
        'backbone_config': _backbone(state_dict, model_cfg.get('backbone', {})),
        'hidden_size' if architecture == 'DABDETR' else 'd_model': len(state_dict['encoder.layers.0.norms.0.weight']),
        'num_queries': len(state_dict.get('query_embedding.weight', ())) or model_cfg.get('num_queries', NUM_PROPOSALS),
        'id2label': dict(enumerate(labels)),
        'label2id': {label: i for i, label in enumerate(labels)},
    }
    for coder in ('encoder', 'decoder'):
        config[f'{coder}_layers'] = count_names(state_dict, f'{coder}.layers.', 2)
        config[f'{coder}_attention_heads'] = num_heads
        config[f'{coder}_ffn_dim'] = len(state_dict[f'{coder}.layers.0.ffn.layers.0.0.weight'])
    if architecture == 'DeformableDETR':
        config |= _deformable(state_dict, num_heads, config['num_queries'])
    if architecture == 'DABDETR':
        config |= _dab(state_dict, model_cfg.get('positional_encoding', {}))
    return config, {'image_processor_type': f'{processor}ImageProcessor', **PREPROCESSOR}


def _deformable(state_dict: dict[str, Tensor], num_heads: int, num_queries: int) -> dict:
    levels = len(state_dict['level_embed'])
    box_refine, two_stage = not branches.are_shared(state_dict, 'reg'), branches.is_two_stage(state_dict)
    config = {
        'num_feature_levels': levels,
        'with_box_refine': box_refine,
        'two_stage': two_stage,
        'two_stage_num_proposals': num_queries,
        'tie_word_embeddings': not (box_refine or two_stage),  # 5.x would tie the class branches of these
    }
    for coder, attention in (('encoder', 'self_attn'), ('decoder', 'cross_attn')):
        weights = len(state_dict[f'{coder}.layers.0.{attention}.attention_weights.weight'])
        points, rest = divmod(weights, num_heads * levels)
        if rest:
            raise CheckpointError(f'{weights} attention weights cannot be shared by {num_heads} heads, {levels} levels')
        config[f'{coder}_n_points'] = points
    return config


def _dab(state_dict: dict[str, Tensor], positional_encoding: Mapping) -> dict:
    """As far as transformers has it.

    Raises:
        CheckpointError: the queries are points, or scaled in another way.
    """
    missing = [key for key in ('ref_anchor_head', 'query_scale') if f'decoder.{key}.layers.1.weight' not in state_dict]
    if missing:
        raise CheckpointError(
            f'the DAB-DETR of transformers has the MLP {missing[0]} in its decoder: this one cannot be written for it'
        )
    temperature = positional_encoding.get('temperature', DAB_TEMPERATURE)
    return {
        'num_patterns': len(state_dict.get('patterns.weight', ())),
        'activation_function': 'prelu' if 'encoder.layers.0.ffn.layers.0.1.weight' in state_dict else 'relu',
        'keep_query_pos': 'decoder.layers.1.cross_attn.qpos_proj.weight' in state_dict,
        'temperature_height': temperature,
        'temperature_width': temperature,
    }


def _backbone(state_dict: dict[str, Tensor], cfg: Mapping) -> dict:
    """The ``backbone_config`` of transformers' own ResNet, which needs no timm.

    Raises:
        CheckpointError: it is a ResNeXt, or dilated.
    """
    is_bottleneck = 'backbone.layer1.0.conv3.weight' in state_dict
    last = 'conv3' if is_bottleneck else 'conv2'
    stages = range(1, 5)
    widths = [len(state_dict[f'backbone.layer{s}.0.{last}.weight']) for s in stages]
    inner = widths[0] // 4 if is_bottleneck else widths[0]
    if state_dict['backbone.layer1.0.conv2.weight'].shape[:2] != (inner, inner):
        raise CheckpointError('the ResNet of transformers has no groups: a ResNeXt cannot be written for it')
    if cfg.get('type') in DC5 or set(cfg.get('dilations', (1,))) != {1}:
        raise CheckpointError('the ResNet of transformers is not dilated: a DC5 model cannot be written for it')
    levels = sum(key.startswith('neck.convs.') and key.endswith('.conv.weight') for key in state_dict)
    return {
        'model_type': 'resnet',
        'embedding_size': len(state_dict['backbone.conv1.weight']),
        'hidden_sizes': widths,
        'depths': [count_names(state_dict, f'backbone.layer{s}.', 2) for s in stages],
        'layer_type': 'bottleneck' if is_bottleneck else 'basic',
        'out_features': [f'stage{s}' for s in stages[-levels:]],
    }


def _labels(classes: Sequence[str] | None, number: int, rows: int) -> list[str]:
    """A name for each of ``number`` classes."""
    if classes is None:
        return [f'LABEL_{i}' for i in range(number)]
    if coco_classes.are_coco(classes) and number == coco_classes.NUM_IDS:
        return coco_classes.names_of_ids()
    if len(classes) != number:
        raise CheckpointError(f'the class branches have {rows} rows, which does not fit {len(classes)} classes there')
    return list(classes)
