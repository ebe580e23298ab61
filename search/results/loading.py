"""Loading of a network that a search wrote."""

from pathlib import Path

from torch import nn

from pruning import checkpoint
from pruning.export import CHECKPOINT
from search.results.result import SearchResult
from spaces.errors import WeightsError

RESULT = "result.json"  # of a run folder


def load(path: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Return a narrow network that a search wrote, on the CPU, in eval mode.

    The checkpoint of a network that was given as "package.module:factory" imports and calls that factory.

    Args:
        path: folder or checkpoint of a network, or a run folder, whose chosen network is loaded.
        model: the dense network, for a search that was given a module.

    Raises:
        WeightsError: `path` is no such folder or file, or the file is damaged.
    """
    path = Path(path)
    if (path / CHECKPOINT).is_file():
        path = path / CHECKPOINT
    elif (path / RESULT).is_file():
        chosen = SearchResult.from_json((path / RESULT).read_text()).chosen
        if chosen is None or not chosen.path:
            raise WeightsError(f"the search in {path} has no chosen network; give the folder of one of its networks")
        path = path / chosen.path
    elif path.is_dir():
        raise WeightsError(f"{path} holds neither {CHECKPOINT} nor {RESULT}; give a run folder or one of a network")
    return checkpoint.load(path, model).eval()
