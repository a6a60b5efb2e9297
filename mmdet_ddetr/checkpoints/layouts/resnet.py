"""The names of a ResNet's parameters; ours are torchvision's, which timm, mmdet and the official codes share."""

TORCHVISION = (
    'conv1.*',
    'bn1.*',
    'layer{s}.{b}.conv{k}.*',
    'layer{s}.{b}.bn{k}.*',
    'layer{s}.{b}.downsample.0.*',
    'layer{s}.{b}.downsample.1.*',
)


def torchvision(prefix: str) -> str:
    """Table for torchvision's names behind ``prefix``."""
    return '\n'.join(f'{prefix}{name}  backbone.{name}' for name in TORCHVISION)


def huggingface(prefix: str) -> str:
    """Table for ``transformers.ResNetBackbone``, which counts stages and convolutions from 0."""
    lines = [
        f'{prefix}embedder.embedder.convolution.*    backbone.conv1.*',
        f'{prefix}embedder.embedder.normalization.*  backbone.bn1.*',
    ]
    for s in range(4):
        theirs, ours = f'{prefix}encoder.stages.{s}.layers.{{b}}', f'backbone.layer{s + 1}.{{b}}'
        lines += [
            f'{theirs}.shortcut.convolution.*    {ours}.downsample.0.*',
            f'{theirs}.shortcut.normalization.*  {ours}.downsample.1.*',
        ]
        for k in range(3):
            lines += [
                f'{theirs}.layer.{k}.convolution.*    {ours}.conv{k + 1}.*',
                f'{theirs}.layer.{k}.normalization.*  {ours}.bn{k + 1}.*',
            ]
    return '\n'.join(lines)


def detectron2(prefix: str) -> str:
    """Table for detectron2's ResNet, where a norm is part of its convolution and stages count from 2."""
    lines = [
        f'{prefix}stem.conv1.norm.*  backbone.bn1.*',
        f'{prefix}stem.conv1.*       backbone.conv1.*',
    ]
    for s in (1, 2, 3, 4):
        theirs, ours = f'{prefix}res{s + 1}.{{b}}', f'backbone.layer{s}.{{b}}'
        lines += [
            f'{theirs}.shortcut.norm.*   {ours}.downsample.1.*',
            f'{theirs}.shortcut.*        {ours}.downsample.0.*',
            f'{theirs}.conv{{k}}.norm.*  {ours}.bn{{k}}.*',
            f'{theirs}.conv{{k}}.*       {ours}.conv{{k}}.*',
        ]
    return '\n'.join(lines)
