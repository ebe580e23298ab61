"""Static int8 quantisation of an ONNX file, by ONNX Runtime's own tools.

Weights are int8 per channel, activations int8 with ranges that are found on calibration images (QDQ format: every
runtime that reads ONNX sees float operations between pairs of QuantizeLinear and DequantizeLinear).
"""

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from pruning.formats import ONNX_INPUT, RUNTIME_PACKAGES, FormatError

INT8_FILE = "model.int8.onnx"


def check_int8() -> None:
    """Raise FormatError with the line that installs them where packages for int8 are missing."""
    missing = [package for package in RUNTIME_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise FormatError(
            f"--quantize int8 needs {', '.join(missing)}, not installed here; pip install 'slimfront[onnx]'"
        )


def quantize_onnx(source: Path, path: Path, calibration: Iterable[Tensor]) -> None:
    """Write the int8 form of a float32 ONNX file; the file takes and returns float32 as before.

    Args:
        source: as `pruning.formats.write_network` writes it.
        path: of the new file.
        calibration: batches of images, shape (B, C, H, W), from which the ranges of activations are found.

    Raises:
        FormatError: the network has no operation that is quantised.
        Exception: of any class, where ONNX Runtime cannot quantise the network.
    """
    onnx: Any = importlib.import_module("onnx")
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    batches = iter(calibration)

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]  # the base class is loaded with the extra
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {ONNX_INPUT: batch.cpu().numpy()}

    with tempfile.TemporaryDirectory() as folder:
        prepared = os.path.join(folder, "prepared.onnx")
        shapes.quant_pre_process(os.fspath(source), prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            os.fspath(path),
            Images(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    operations = {node.op_type for node in onnx.load(os.fspath(path)).graph.node}
    if "QuantizeLinear" not in operations:
        path.unlink()
        raise FormatError("none of its operations can be quantised")


def fix_batch(source: Path, path: Path, batch: int) -> Path:
    """Write an ONNX file that takes any number of images as one that takes so many, for runtimes with fixed shapes."""
    onnx: Any = importlib.import_module("onnx")
    model = onnx.load(os.fspath(source))
    del model.graph.value_info[:]  # shapes of intermediate tensors, which runtimes find anew
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, os.fspath(path))
    return path
