"""The int8 files of the networks beside their float32 files, a line per network."""

from collections.abc import Mapping

from search.reporting.wording import TextTable, in_bytes, milliseconds, percent
from search.results.int8 import Int8


def int8_table(files: Mapping[str, Int8]) -> TextTable | None:
    """Tabulate size, accuracy and latency of the int8 files beside float32; None where none was written.

    Args:
        files: label of a network -> its file.
    """
    made = {label: int8 for label, int8 in files.items() if not int8.refused}
    if not made:
        return None
    rows = [(label, *_cells(int8)) for label, int8 in made.items()]
    conditions = next((f"ms on {int8.conditions}" for int8 in made.values() if int8.conditions), "not timed")
    title = f"int8 beside float32 ONNX files ({conditions})"
    columns = ("network", ">size", ">float", ">val", ">float", ">test", ">float", ">ms", ">float")
    return TextTable(title, columns, rows)


def int8_statements(files: Mapping[str, Int8]) -> list[str]:
    """Name the networks without an int8 file, and those whose timing is missing or unsteady."""
    lines = []
    for label, int8 in files.items():
        if int8.refused:
            lines.append(f"network {label} has no int8 file: {int8.refused}")
        elif int8.untimed or int8.unsteady:
            lines.append(f"int8 of network {label}: {int8.untimed or f'unsteady, {int8.unsteady}'}")
    return lines


def _cells(int8: Int8) -> tuple[str, ...]:
    times = ("-" if seconds is None else milliseconds(seconds) for seconds in (int8.seconds, int8.float_seconds))
    accuracies = (int8.val_accuracy, int8.float_val_accuracy, int8.test_accuracy, int8.float_test_accuracy)
    return (in_bytes(int8.bytes), in_bytes(int8.float_bytes), *map(percent, accuracies), *times)
