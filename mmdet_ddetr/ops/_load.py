"""Loads the compiled extension, or defines the same ops in Python where it is missing."""

import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

# csrc/library.cpp in Python, for installations without the extension; a test compares the two.
SCHEMAS = (
    'ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) '
    '-> Tensor',
    'ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, '
    'Tensor attention_weights, bool deterministic) -> (Tensor, Tensor, Tensor)',
    'ms_deform_attn_fused(Tensor value, SymInt[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets, '
    'Tensor attention_logits) -> Tensor',
    'ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor reference_points, '
    'Tensor sampling_offsets, Tensor attention_logits, bool needs_grad_reference, bool deterministic) '
    '-> (Tensor, Tensor, Tensor, Tensor)',
    'sigmoid_focal_loss(Tensor logits, Tensor labels, float alpha, float gamma, bool sum_classes=False) -> Tensor',
    'sigmoid_focal_loss_backward(Tensor grad_output, Tensor logits, Tensor labels, float alpha, float gamma) -> Tensor',
    'matching_cost(Tensor scores, Tensor boxes, Tensor image, Tensor labels, Tensor targets, float cls_weight, '
    'float l1_weight, float giou_weight, float alpha, float gamma, bool focal) -> Tensor',
    'dropout(Tensor input, float p, Tensor seed) -> Tensor',
)


def load() -> tuple[bool, torch.library.Library]:
    """Whether the extension was loaded, and the library to which Python adds kernels."""
    problem = 'it is not built'
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).parent.parent / f'_C{suffix}'
        if not path.exists():
            continue
        try:
            torch.ops.load_library(path)
            return True, torch.library.Library('mmdet_ddetr', 'FRAGMENT')
        except OSError as error:  # built for another platform, or against CUDA's libraries that are not here
            problem = str(error.__cause__ or error)
    warnings.warn(
        f'mmdet_ddetr: the compiled ops are missing ({problem}); plain PyTorch does their work, many times slower. '
        'See "Build" in csrc/README.md.',
        RuntimeWarning,
        stacklevel=2,
    )
    library = torch.library.Library('mmdet_ddetr', 'DEF')
    for schema in SCHEMAS:
        library.define(schema)
    return False, library


EXTENSION_LOADED, LIBRARY = load()
