"""Quantizer: writes a network as an int8 ONNX file, and scores and times it beside the float32 file."""

import dataclasses
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from filelock import Timeout
from torch import Tensor, nn

from configs.schema import RunConfig
from pruning.export import ExportError
from pruning.formats import read_program, write_network
from pruning.quantization.static import INT8_FILE, fix_batch, quantize_onnx
from runners.data.loading import ImageData
from runners.latency.devices import make_bench
from runners.latency.engines import LatencyError, first_line, keep_freed_memory, onnx_program, parse_device
from runners.latency.external import compare_files, timing_of
from runners.latency.meter import exclusive, watch_of
from runners.latency.timing import Call, Timing, inference, steady_timing
from runners.training.compute_format import using_threads
from runners.training.scoring import exact_score
from runners.trial import TrialResult
from search.results.int8 import Int8

CALIBRATED = 512  # training images, at most; ranges of activations hardly move with more
CALIBRATION_BATCH = 64
PROCESSOR = "cpu:1thread"  # where int8 files are timed when --latency-device is an accelerator or takes no ONNX


@dataclass(frozen=True)
class Quantizer:
    """Writes networks as int8 files: static, per channel, calibrated on training images without augmentation.

    Attributes:
        config: names the task, and the device and the batch size of the timing.
    """

    data: ImageData
    config: RunConfig

    def __call__(self, network: TrialResult, net: nn.Module, folder: Path) -> Int8:
        """Write `model.int8.onnx` into a folder; a network that cannot be quantised gives the reason, and no file.

        Args:
            network: the result of `net`, which is in evaluation mode, on the CPU.

        Raises:
            ExportError: the folder cannot be written.
        """
        with tempfile.TemporaryDirectory() as scratch:
            plain, quantized = Path(scratch) / "model.onnx", Path(scratch) / INT8_FILE
            try:
                write_network(net, "onnx", plain, self.data.input_shape)
                images = self.data.calibration.batches(CALIBRATION_BATCH, device=torch.device("cpu"), limit=CALIBRATED)
                quantize_onnx(plain, quantized, (batch for batch, _ in images))
                figures = self._measured(network, plain, quantized)
            except Exception as error:  # ONNX Runtime raises errors of any class
                return Int8(refused=first_line(error))
            try:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(quantized, folder / INT8_FILE)
            except OSError as error:
                raise ExportError(f"{folder} cannot be written ({error.strerror}); choose another --out") from error
        return figures

    def _measured(self, network: TrialResult, plain: Path, quantized: Path) -> Int8:
        data, train = self.data, dataclasses.replace(self.config.train, device="cpu")
        served = _Served(quantized)
        figures = Int8(
            bytes=quantized.stat().st_size,
            float_bytes=plain.stat().st_size,
            val_accuracy=exact_score(served, data.val, train).score,
            float_val_accuracy=exact_score(_Served(plain), data.val, train).score,
            test_accuracy=exact_score(served, data.test, train).score,
            float_test_accuracy=network.test_accuracy,
        )
        if not self.config.latency.measures:
            return dataclasses.replace(figures, untimed="latency is not measured")
        config = self.config.latency
        place = config.place if self._elsewhere or config.device.startswith("cpu") else PROCESSOR
        try:
            timing = self._board_timing(quantized, plain) if self._elsewhere else self._timing(quantized, plain, place)
        except (LatencyError, Timeout, OSError) as error:
            return dataclasses.replace(figures, untimed=first_line(error))
        return dataclasses.replace(
            figures,
            conditions=f"{place}, batch {config.batch[0]}",
            seconds=timing.median,
            low=timing.low,
            high=timing.high,
            float_seconds=timing.reference_seconds,
            unsteady=timing.problem,
        )

    @property
    def _elsewhere(self) -> bool:
        """Whether a command or agents that take ONNX files measure."""
        return self.config.latency.external and self.config.latency.format == "onnx"

    def _board_timing(self, quantized: Path, plain: Path) -> Timing:
        """Have the device that will serve the files measure them in turns."""
        config, batch = self.config.latency, self.config.latency.batch[0]
        bench = make_bench(config, self.data.input_shape)
        fixed = [fix_batch(path, path.with_name(f"batch{batch}-{path.name}"), batch) for path in (quantized, plain)]
        found, _ = compare_files(bench, (fixed[0], fixed[1]), batch)
        return timing_of(found)

    def _timing(self, quantized: Path, plain: Path, place: str) -> Timing:
        """Time both files in turns on this machine, as networks are timed beside the dense one."""
        keep_freed_memory()
        batch = self.config.latency.batch[0]
        device, images = parse_device(place), torch.zeros(batch, *self.data.input_shape)
        with exclusive(device), using_threads(device.threads):
            files = [path.read_bytes() for path in (quantized, plain)]
            places = [partial(_inference, content, device.threads, images) for content in files]
            return steady_timing(places[0], places[1], watch_of(device))


def _inference(content: bytes, threads: int, images: Tensor) -> Call:
    return inference(onnx_program(content, threads), images.clone())


class _Served(nn.Module):
    """An ONNX file as a module, as which tasks score it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._program = read_program("onnx", path)

    def forward(self, images: Tensor) -> Tensor:
        return self._program(images)
