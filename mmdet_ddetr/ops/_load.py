"""Loads the compiled extension, or defines the same ops in Python where it is missing."""

import json
import sys
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import Distribution
from pathlib import Path

import torch

PACKAGE = Path(__file__).parent.parent

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
    'deform_conv2d(Tensor input, Tensor offset, Tensor weight, int[] stride, int[] padding, int[] dilation, '
    'Tensor? mask) -> Tensor',
    'deform_conv2d_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, int[] stride, '
    'int[] padding, int[] dilation, Tensor? mask, bool needs_grad_samples, bool needs_grad_weight, '
    'bool deterministic) -> (Tensor, Tensor, Tensor, Tensor)',
    'depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding) -> Tensor',
    'depthwise_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? bias, int[] stride, '
    'int[] padding, bool needs_grad_input, bool needs_grad_weight, bool deterministic) -> (Tensor, Tensor, Tensor)',
    'depthwise_conv2d_clamped(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, float low, '
    'float high) -> Tensor',
    'packed_linear(Tensor x, Tensor packed, Tensor bias, Tensor? add, float low, float high) -> Tensor',
    'deform_roi_pool(Tensor input, Tensor rois, Tensor? offset, int[] output_size, float spatial_scale, '
    'int sampling_ratio, float gamma, int group_size, bool rounded) -> Tensor',
    'deform_roi_pool_backward(Tensor grad_output, Tensor input, Tensor rois, Tensor? offset, int[] output_size, '
    'float spatial_scale, int sampling_ratio, float gamma, int group_size, bool rounded, bool needs_grad_input, '
    'bool needs_grad_offset, bool deterministic) -> (Tensor, Tensor)',
    'sigmoid_focal_loss(Tensor logits, Tensor labels, float alpha, float gamma, bool sum_classes=False) -> Tensor',
    'sigmoid_focal_loss_backward(Tensor grad_output, Tensor logits, Tensor labels, float alpha, float gamma) -> Tensor',
    'matching_cost(Tensor scores, Tensor boxes, Tensor image, Tensor labels, Tensor targets, float cls_weight, '
    'float l1_weight, float giou_weight, float alpha, float gamma, bool focal) -> Tensor',
    'dropout(Tensor input, float p, Tensor seed) -> Tensor',
    'nms_keep(Tensor boxes, float iou_threshold, int offset=0) -> Tensor',
)


def load() -> tuple[bool, torch.library.Library]:
    """Whether the extension was loaded, and the library to which Python adds kernels."""
    problem = 'it is not built'
    for suffix in EXTENSION_SUFFIXES:
        path = PACKAGE / f'_C{suffix}'
        if not path.exists():
            continue
        try:
            torch.ops.load_library(path)
            return True, _complete(torch.library.Library('mmdet_ddetr', 'FRAGMENT'))
        except OSError as error:  # built for another platform, or against CUDA's libraries that are not here
            problem = str(error.__cause__ or error)
    warnings.warn(
        f'mmdet_ddetr: the compiled ops are missing ({problem}); plain PyTorch does their work, many times slower. '
        f'{how_to_build(PACKAGE, sys.path)}',
        RuntimeWarning,
        stacklevel=2,
    )
    library = torch.library.Library('mmdet_ddetr', 'DEF')
    for schema in SCHEMAS:
        library.define(schema)
    return False, library


def _complete(library: torch.library.Library) -> torch.library.Library:
    """Define what an extension lacks that was built from older sources."""
    lacking = [schema for schema in SCHEMAS if not hasattr(torch.ops.mmdet_ddetr, schema.split('(')[0])]
    for schema in lacking:
        library.define(schema)
    if lacking:
        warnings.warn(
            f'mmdet_ddetr: the compiled ops were built from older sources; plain PyTorch does the work of '
            f'{", ".join(schema.split("(")[0] for schema in lacking)}. {how_to_build(PACKAGE, sys.path)}',
            RuntimeWarning,
            stacklevel=3,
        )
    return library


def how_to_build(package: Path, search_path: list[str], variables: str = '') -> str:
    """What the user of ``package``, a checkout or an installed folder, can do for its compiled ops.

    Args:
        search_path: where else the package may be, as ``sys.path``.
        variables: for the build, such as 'FORCE_CUDA=1 '.
    """
    if sys.platform == 'win32':
        return 'They do not build on Windows; they do in the Windows Subsystem for Linux.'
    if (package.parent / 'csrc').is_dir() and (package.parent / 'setup.py').is_file():
        build = f'{variables}pip install --no-deps --no-build-isolation -e {package.parent}'
        others = [Path(folder, package.name) for folder in search_path]
        installed = [other for other in others if other.resolve() != package.resolve() and any(other.glob('_C.*'))]
        if installed:
            return (
                f'Python found the source folder {package.parent} before the installed package {installed[0]}, which '
                f'has them: start it in another folder, or build them in place: {build}'
            )
        return f'Build them, with GCC >= 9 or Clang >= 12: {build}'
    source = _installed_from(package) or 'the folder or archive that it was installed from'
    return (
        'Install a compiler, GCC >= 9 or Clang >= 12 (Debian, Ubuntu: apt install g++; macOS: xcode-select --install), '
        f'then the package again: {variables}MMDET_DDETR_EXT=1 pip install --force-reinstall --no-deps --no-cache-dir '
        f'--no-build-isolation {source}'
    )


def _installed_from(package: Path) -> str | None:
    """Address of the sources, as pip noted it; None for an index or a wheel, which holds none."""
    for distribution in Distribution.discover(name=package.name, path=[str(package.parent)]):
        url = json.loads(distribution.read_text('direct_url.json') or '{}').get('url', '')
        if url and not url.endswith('.whl'):
            return url
    return None


EXTENSION_LOADED, LIBRARY = load()
