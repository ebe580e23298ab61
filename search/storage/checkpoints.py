"""CheckpointStore: where the weights of a search's networks are kept."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from pruning import checkpoint
from runners.trial import TrialResult
from spaces.files import write_atomically

TRIALS = "trials"  # folder of a run folder


class CheckpointStore:
    """Keeps the weights of networks; this one leaves them in memory with their results."""

    def keep(self, result: TrialResult) -> TrialResult:
        """Return a result whose weights are kept here.

        Raises:
            OSError: there is no room for them.
        """
        return result

    def read(self, result: TrialResult) -> bytes | None:
        """Return the weights of a network; None when none were kept.

        Raises:
            WeightsError: they are gone.
        """
        return result.checkpoint

    def drop(self, result: TrialResult) -> None:
        """Remove the weights of a network; in memory they go with the result."""


@dataclass(frozen=True)
class CheckpointFolder(CheckpointStore):
    """Keeps the weights of trials in a run folder.

    A longer training gets a file of its own, and the file of the shorter one goes once the longer one is recorded: a
    record never names weights of another training than that of its figures.
    """

    folder: Path

    @override
    def keep(self, result: TrialResult) -> TrialResult:
        return result.map_networks(self._write)

    @override
    def read(self, result: TrialResult) -> bytes | None:
        return checkpoint.read(self.folder / result.path) if result.path else None

    @override
    def drop(self, result: TrialResult) -> None:
        if result.path:
            (self.folder / result.path).unlink(missing_ok=True)

    def drop_unnamed(self, results: Iterable[TrialResult]) -> None:
        """Remove files that no network of these results names: superseded, or half written when a search was killed."""
        named = {self.folder / network.path for result in results for network in result.networks if network.path}
        folder = self.folder / TRIALS
        for file in (*folder.glob("*.safetensors"), *folder.glob(".*.safetensors.*")):  # the second are half written
            if file not in named:
                file.unlink()

    def _write(self, network: TrialResult) -> TrialResult:
        if network.checkpoint is None:
            return network
        after = f"-e{network.trained}" if len(network.rungs) > 1 else ""
        path = self.folder / TRIALS / f"{network.stem}{after}.safetensors"
        write_atomically(path, network.checkpoint)
        return network.without_checkpoint(str(path.relative_to(self.folder)))
