"""Loading of a network that a search wrote."""

import dataclasses
from pathlib import Path

from torch import nn

from configs.loading import RUN_FILE
from pruning import checkpoint
from pruning.export import CHECKPOINT
from search.results.result import SearchResult
from search.results.serialization import ResultError
from spaces.errors import WeightsError

RESULT = "result.json"  # of a run folder


def read_result(folder: Path | str) -> SearchResult:
    """Return the result of a finished search from its run folder.

    Raises:
        ResultError: the folder holds no result, or one that this version cannot read.
    """
    file = Path(folder) / RESULT
    if not file.is_file():
        way_out = "give the run folder of a finished search"
        if (Path(folder) / RUN_FILE).is_file():
            way_out = f"the search has not ended: finish it with --resume {folder}"
        raise ResultError(f"{str(folder)!r} has no {RESULT}; {way_out}")
    return dataclasses.replace(SearchResult.from_json(file.read_bytes()), folder=str(folder))


def load(path: Path | str, model: nn.Module | None = None, *, trust: bool = False) -> nn.Module:
    """Return a narrow network that a search wrote, on the CPU, in eval mode.

    Args:
        path: folder or checkpoint of a network, or a run folder, whose chosen network is loaded.
        model: the dense network, for a search that was given a module, or a file that is not trusted.
        trust: whether the "package.module:factory" that a file names may be imported and called.

    Raises:
        WeightsError: `path` is no such folder or file, the file is damaged, or it names code and is not trusted.
    """
    path = Path(path)
    if (path / CHECKPOINT).is_file():
        path = path / CHECKPOINT
    elif (path / RESULT).is_file():
        chosen = read_result(path).chosen
        if chosen is None or not chosen.path:
            raise WeightsError(f"the search in {path} has no chosen network; give the folder of one of its networks")
        path = path / chosen.path
    elif path.is_dir():
        raise WeightsError(f"{path} holds neither {CHECKPOINT} nor {RESULT}; give a run folder or one of a network")
    return checkpoint.load(path, model, trust=trust).eval()
