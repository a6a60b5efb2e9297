"""The mask head of the official DETR, which the hub's files name in the same way."""

from torch import Tensor

MASKS = """
bbox_attention.q_linear.*  mask_head.attention.query_proj.*
bbox_attention.k_linear.*  mask_head.attention.key_proj.*
mask_head.lay1.*           mask_head.convs.0.0.*
mask_head.gn1.*            mask_head.convs.0.1.*
mask_head.lay2.*           mask_head.convs.1.0.*
mask_head.gn2.*            mask_head.convs.1.1.*
mask_head.lay3.*           mask_head.convs.2.0.*
mask_head.gn3.*            mask_head.convs.2.1.*
mask_head.lay4.*           mask_head.convs.3.0.*
mask_head.gn4.*            mask_head.convs.3.1.*
mask_head.lay5.*           mask_head.convs.4.0.*
mask_head.gn5.*            mask_head.convs.4.1.*
mask_head.adapter1.*       mask_head.laterals.0.*
mask_head.adapter2.*       mask_head.laterals.1.*
mask_head.adapter3.*       mask_head.laterals.2.*
mask_head.out_lay.*        mask_head.out.*
"""
NAMES = ('bbox_attention.', 'mask_head.')

# transformers 5 gives them other names in memory, not in files.
IN_MEMORY_SINCE_5 = {
    r'^bbox_attention\.([qk])_proj\.': r'bbox_attention.\1_linear.',
    r'^mask_head\.conv([12])\.conv\.': r'mask_head.lay\1.',
    r'^mask_head\.conv([12])\.norm\.': r'mask_head.gn\1.',
    r'^mask_head\.output_conv\.': 'mask_head.out_lay.',
}
for i in range(3):
    stage = rf'^mask_head\.fpn_stages\.{i}\.'
    IN_MEMORY_SINCE_5[stage + r'fpn_adapter\.'] = f'mask_head.adapter{i + 1}.'
    IN_MEMORY_SINCE_5[stage + r'refine\.conv\.'] = f'mask_head.lay{i + 3}.'
    IN_MEMORY_SINCE_5[stage + r'refine\.norm\.'] = f'mask_head.gn{i + 3}.'


def wrap(state_dict: dict[str, Tensor], box_model: str) -> dict[str, Tensor]:
    """Where there is a mask head, all other keys begin with ``box_model``."""
    if not any(key.startswith(NAMES) for key in state_dict):
        return state_dict
    return {key if key.startswith(NAMES) else box_model + key: value for key, value in state_dict.items()}
