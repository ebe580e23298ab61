"""Where the weights of a search's networks are kept."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from pruning import checkpoint
from runners.trial import TrialResult

TRIALS = "trials"


class Archive(Protocol):
    """Keeps the weights of networks."""

    def keep(self, result: TrialResult) -> TrialResult:
        """Return a result with its weights here, and no longer in memory."""
        ...

    def read(self, result: TrialResult) -> bytes | None:
        """Return the weights of a network; None when none were kept.

        Raises:
            WeightsError: they are gone.
        """
        ...

    def drop(self, result: TrialResult) -> None:
        """Remove the weights of a network."""
        ...


class InMemory:
    """Leaves weights with their results."""

    def keep(self, result: TrialResult) -> TrialResult:
        """Return the result as it is."""
        return result

    def read(self, result: TrialResult) -> bytes | None:
        """Return the weights that the result has."""
        return result.checkpoint

    def drop(self, result: TrialResult) -> None:
        """Do nothing: they go with the result."""


@dataclasses.dataclass(frozen=True)
class TrialFiles:
    """Keeps the weights of trials in a run folder (implements `Archive`).

    A longer training gets a file of its own, and that of the shorter one goes when it is recorded: a record never
    names weights that are not those of its figures.
    """

    folder: Path

    def keep(self, result: TrialResult) -> TrialResult:
        """Return a result with the weights of every network of the trial on disk."""
        return result.map_networks(self._kept)

    def read(self, result: TrialResult) -> bytes | None:
        """Return the weights of a network; None when none were kept.

        Raises:
            WeightsError: the file is gone.
        """
        return checkpoint.read(self.folder / result.path) if result.path else None

    def drop(self, result: TrialResult) -> None:
        """Remove the file of a network."""
        if result.path:
            (self.folder / result.path).unlink(missing_ok=True)

    def drop_unnamed(self, results: Iterable[TrialResult]) -> None:
        """Remove files that no network of these trials names: superseded, or in the making when a search was killed."""
        named = {self.folder / network.path for result in results for network in result.networks if network.path}
        folder = self.folder / TRIALS
        for file in (*folder.glob("*.safetensors"), *folder.glob(".*.safetensors.*")):  # the latter half written
            if file not in named:
                file.unlink()

    def _kept(self, network: TrialResult) -> TrialResult:
        if network.checkpoint is None:
            return network
        after = f"-e{network.trained}" if len(network.rungs) > 1 else ""
        path = self.folder / TRIALS / f"{network.stem}{after}.safetensors"
        checkpoint.write(path, network.checkpoint)
        return network.without_checkpoint(str(path.relative_to(self.folder)))
