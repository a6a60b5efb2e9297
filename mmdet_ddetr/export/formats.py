"""The files a traced program is written to."""

import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.export import ExportedProgram

from mmdet_ddetr.ops import reference
from mmdet_ddetr.ops._register import pairs

from .description import KEY, Description, ExportError
from .program import OUTPUTS

OPSET = 20  # of ONNX, with DeformConv (19) and GridSample's present words (20)


@dataclass(frozen=True)
class Format:
    write: Callable[[ExportedProgram, Path, Description, str], None]
    attention: tuple[str, ...]  # ways to compute it, the usual one first
    needs: tuple[str, ...] = ()  # packages beside PyTorch


def check_format(name: str, attention: str | None) -> tuple[Callable, str]:
    """The writer of a format, and how it computes attention where nobody said.

    Raises:
        ExportError: there is no such format, or it has no such attention.
        ImportError: a package is missing.
    """
    if name not in FORMATS:
        raise ExportError(f'format must be one of {", ".join(FORMATS)}, got {name!r}')
    chosen = FORMATS[name]
    if attention is not None and attention not in chosen.attention:
        raise ExportError(f'attention must be one of {", ".join(chosen.attention)} in {name}, got {attention!r}')
    missing = [package for package in chosen.needs if find_spec(package) is None]
    if missing:
        raise ImportError(f'format {name} needs {" and ".join(missing)}: pip install {" ".join(missing)}')
    return chosen.write, attention or chosen.attention[0]


def write_onnx(
    traced: ExportedProgram, path: Path, description: Description, attention: str, has_deform_conv: bool = True
) -> None:
    """ONNX, opset 20, in standard operators.

    Args:
        attention, has_deform_conv: as of ``onnx_ops.translations``.
    """
    import onnxscript.optimizer
    from onnx_ir.passes import common

    from .onnx_ops import translations

    outputs = OUTPUTS[: len(traced.graph_signature.user_outputs)]
    exported = torch.onnx.export(
        traced,
        dynamo=True,
        opset_version=OPSET,
        optimize=False,  # it compares every node with every pattern: minutes, and runtimes do the same again
        verbose=False,
        input_names=['images', 'sizes'],
        output_names=list(outputs),
        custom_translation_table=translations(attention, has_deform_conv),
    )
    model = exported.model
    onnxscript.optimizer.fold_constants(model)
    for simplify in (
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True),
    ):
        simplify(model)
    name_dimensions(model)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # paths and source lines of this machine
    model.producer_name, model.producer_version = 'mmdet_ddetr', None
    model.metadata_props[KEY] = description.to_json()
    with whole(path) as part:
        exported.save(part)


def name_dimensions(model) -> None:
    """Call dimensions what they are rather than a formula of symbols."""
    import onnx_ir

    names = dict(
        images=('batch', None, 'height', 'width'),
        sizes=('batch', None),
        boxes=('batch', 'detections', None),
        scores=('batch', 'detections'),
        labels=('batch', 'detections'),
        masks=('batch', 'detections', 'mask_height', 'mask_width'),
    )
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = onnx_ir.Shape(
            [dim if isinstance(dim, int) else name for dim, name in zip(value.shape, names[value.name], strict=True)]
        )


def write_openvino(traced: ExportedProgram, path: Path, description: Description, attention: str) -> None:
    """OpenVINO's IR, an .xml and a .bin beside it, by way of ONNX."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / 'model.onnx'
        write_onnx(traced, onnx_path, description, attention, has_deform_conv=False)  # OpenVINO reads none
        model = openvino.convert_model(onnx_path)
    model.set_rt_info(description.to_json(), [KEY])
    with whole(path) as part:
        openvino.save_model(model, part, compress_to_fp16=False)


def write_pt2(traced: ExportedProgram, path: Path, description: Description, attention: str) -> None:
    """PyTorch's own archive."""
    archive = io.BytesIO()  # where a disk is full, PyTorch ends the process
    torch.export.save(with_attention(traced, attention), archive, extra_files={KEY: description.to_json()})
    with whole(path) as part:
        part.write_bytes(archive.getbuffer())


def write_aoti(traced: ExportedProgram, path: Path, description: Description, attention: str) -> None:
    """A compiled package (AOTInductor), for the device and the kind of processor that it is made on."""
    with tempfile.TemporaryDirectory() as folder:
        package = torch._inductor.aoti_compile_and_package(
            with_attention(traced, attention),
            package_path=str(Path(folder) / 'model.pt2'),
            inductor_configs={'aot_inductor.metadata': {KEY: description.to_json()}},
        )
        with whole(path) as part:
            shutil.move(package, part)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path in a folder beside ``path`` to write to; what is there afterwards takes its place, or nothing does.

    Where a file names others, as ONNX the one of a large model's weights, they come with it under their own names.

    Raises:
        OSError: it cannot be written; says which file. A previous one is as it was.
    """
    try:
        with tempfile.TemporaryDirectory(prefix='.', dir=path.absolute().parent) as folder:
            part = Path(folder, path.name)
            yield part
            files = sorted(Path(folder).iterdir(), key=lambda file: file == part)  # what names the others comes last
            for file in files:
                with open(file, 'rb+') as written:
                    os.fsync(written.fileno())
            for file in files:
                os.replace(file, path.with_name(file.name))
    except (OSError, RuntimeError) as error:  # of OpenVINO
        reason = getattr(error, 'strerror', None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(f'{path} cannot be written: {reason}') from error


def with_attention(traced: ExportedProgram, attention: str) -> ExportedProgram:
    """The program with plain PyTorch in place of this package's ops, unless ``attention`` is ``op``."""
    if attention == 'op':
        return traced
    way = '_by_gather' if attention == 'gather' else ''
    plain, fused = (getattr(reference, name + way) for name in ('ms_deform_attn', 'ms_deform_attn_fused'))
    ops = torch.ops.mmdet_ddetr

    def deform_conv2d(input, offset, weight, stride, padding, dilation, mask):
        return reference.deform_conv2d(input, offset, weight, None, stride, padding, dilation, mask)

    return traced.run_decompositions(
        {
            ops.ms_deform_attn.default: lambda value, shapes, *points: plain(value, pairs(shapes), *points),
            ops.ms_deform_attn_fused.default: lambda value, shapes, *points: fused(value, pairs(shapes), *points),
            ops.deform_conv2d.default: deform_conv2d,
        }
    )


@contextmanager
def quiet():
    """Without what PyTorch says of itself: its own deprecated names, torchvision, constants that are not folded."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)


OF_ONNX = 'gridsample', 'gather', 'plugin'
OF_PYTORCH = 'gridsample', 'gather', 'op'
FORMATS = dict(
    onnx=Format(write_onnx, OF_ONNX, ('onnx', 'onnxscript')),
    openvino=Format(write_openvino, OF_ONNX[:2], ('onnx', 'onnxscript', 'openvino')),
    pt2=Format(write_pt2, OF_PYTORCH),
    aoti=Format(write_aoti, OF_PYTORCH),
)
