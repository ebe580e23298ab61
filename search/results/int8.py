"""Int8: what the int8 file of a network reaches, beside the same network as a float32 ONNX file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Int8:
    """The int8 file of a network, or the reason why there is none.

    Both files are scored by ONNX Runtime on the processor, and timed where they will be served. But the test accuracy
    in float32 is that of the network in PyTorch: test images are read once. Accuracies are in [0, 1].

    Attributes:
        refused: why there is no file; empty when there is one, and only then the figures are set.
        bytes, float_bytes: size of the files.
        val_accuracy, float_val_accuracy: on validation.
        test_accuracy, float_test_accuracy: on test images, read once each; the latter None where it was not read.
        conditions: of the timing, such as "cpu:1thread, batch 1" or the address of a board.
        seconds: median of one inference, timed in turns with the float32 file; low, high: its 95% interval.
        float_seconds: median of the float32 file meanwhile.
        untimed: why there are no seconds.
        unsteady: why the interval is wide; empty for a steady timing.
    """

    refused: str = ""
    bytes: int = 0
    float_bytes: int = 0
    val_accuracy: float | None = None
    float_val_accuracy: float | None = None
    test_accuracy: float | None = None
    float_test_accuracy: float | None = None
    conditions: str = ""
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    float_seconds: float | None = None
    untimed: str = ""
    unsteady: str = ""
