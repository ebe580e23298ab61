"""Networks of a search in the formats of other runtimes, compared with the network, and a model card beside them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from configs.loading import RUN_FILE, code_named, read_config
from configs.loading import load as load_config
from pruning import checkpoint
from pruning.export import ExportError, RefusedError, WrittenFile, write_format
from pruning.formats import FormatError
from runners.data.loading import load_data
from runners.training.task import task_of
from runners.trial import TrialResult
from search.finalization.int8 import Quantizer
from search.finalization.model_card import write_card
from search.results.int8 import Int8
from search.results.loading import load, read_result
from search.results.result import SearchResult
from spaces.errors import SlimfrontError
from spaces.zoo.models import default_input_shape

EXPORTS = "exports"  # folder of a run folder


@dataclass(frozen=True)
class Export:
    """The files of one network in several formats.

    Attributes:
        card: of the model, in the same folder.
        refused: format -> why there is no file in it.
        int8: what `model.int8.onnx` reaches, where it is among the files.
    """

    network: TrialResult
    files: Sequence[WrittenFile]
    card: Path
    refused: Mapping[str, SlimfrontError]
    int8: Int8 | None = None


def find_network(result: SearchResult, label: str) -> TrialResult:
    """Return a network of a search by its label, such as "9" or "7.2"; an empty label is the chosen one.

    Raises:
        ExportError: there is none, or it has no weights.
    """
    if not label:
        if result.chosen is None:
            raise ExportError("this search has no chosen network; name one of its networks with --trial")
        return result.chosen
    networks = {network.label: network for trial in result.results for network in trial.networks}
    if label not in networks:
        raise ExportError(f"this search has no network {label!r}; it has {', '.join(networks)}")
    if not networks[label].path:
        reason = networks[label].error or "none were kept"
        raise ExportError(f"network {label} has no weights ({' '.join(reason.split())}); take another one")
    return networks[label]


def export_from_run(
    run: Path,
    label: str,
    formats: Sequence[str],
    out: Path | None = None,
    *,
    int8: bool = False,
    trust: bool = False,
) -> Export:
    """Write a network of a finished search, from its run folder alone.

    Args:
        out: folder of the files; None takes `exports/trial-NNNN` in the run folder.
        int8: whether it is quantised too, for which the images of the search are read.
        trust: whether the "package.module:factory" that the run names may be imported and called.

    Raises:
        ResultError: the folder holds no finished search.
        SlimfrontError: the network cannot be found, or not be written in the first of these formats that is refused.
    """
    result = read_result(run)
    network = find_network(result, label)
    folder = out or run / EXPORTS / f"trial-{network.stem}"
    net = load(run / network.path, trust=trust)
    if int8:
        made = _quantizer(run, trust)(network, net, folder)
        if made.refused:
            raise RefusedError(f"network {network.label} has no int8 file: {made.refused}; leave out --quantize")
        result = dataclasses.replace(result, int8={network.label: made})
    exported = export_formats(result, network, net, checkpoint.read_header(run / network.path), folder, formats)
    for error in exported.refused.values():
        raise error
    return exported


def export_formats(
    result: SearchResult,
    network: TrialResult,
    net: nn.Module,
    header: checkpoint.Header,
    folder: Path,
    formats: Sequence[str],
    written: Sequence[WrittenFile] = (),
) -> Export:
    """Write a network into a folder in several formats, with its model card; a format that is refused is left out.

    Args:
        net: the network, in evaluation mode, on the CPU.
        header: of its checkpoint.
        written: files of the network that are in the folder already.

    Raises:
        ExportError: the folder cannot be written.
    """
    channels, height, width = result.space["input_shape"]
    files, refused = [*written], {}
    for name in formats:
        try:
            files.append(write_format(net, name, folder, (channels, height, width), header))
        except (FormatError, RefusedError) as error:
            refused[name] = error
    layers = sorted({str(layer["kind"]) for layer in header.layers.values()})
    card = write_card(result, network, files, folder, layers)
    return Export(network, files, card, refused, result.int8.get(network.label))


def _quantizer(run: Path, trust: bool) -> Quantizer:
    """Return what quantises the networks of a run, with its images.

    Raises:
        SlimfrontError: the settings or the images of the run cannot be read, or name code that is not trusted.
    """
    named = code_named(read_config(str(run / RUN_FILE)))
    if named and not trust:
        raise ExportError(f"{run} names code, {' and '.join(named)}; add --trust-code if you trust it")
    config = load_config(str(run / RUN_FILE))
    classifies = task_of(config.train).classifies
    data = load_data(config.data, config.seed, default_input_shape(config.model), classifies=classifies)
    return Quantizer(data, config)
