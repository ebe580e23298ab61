"""The worker of a search, as Tune runs it."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray import tune
from typing_extensions import override

from runners.ray.evaluation_thread import EvaluationThread
from runners.ray.objects import unpickled
from runners.trial import SavedTraining, Trial, TrialResult, TrialState
from spaces.files import no_room

NODE_LABEL = "ray.io/node-id"  # which Ray gives every node
logger = logging.getLogger(__name__)


class Worker(tune.Trainable):  # type: ignore[misc]
    """A process that evaluates one trial after the other; a step of Tune is a report or a state within an epoch."""

    shared: Any  # reference to what `pickled` made of (evaluator, search context), in the object store
    resources: Mapping[str, float]  # of one trial

    @override
    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Return the resources of a trial, on a node that has not lost it."""
        avoided = config["assignment"].avoided
        selector: dict[str, Any] = {}
        if avoided:
            selector = {"bundle_label_selector": [{NODE_LABEL: f"!in({','.join(avoided)})"}]}
        return tune.PlacementGroupFactory([dict(cls.resources)], **selector)

    @override
    def setup(self, config: dict[str, Any]) -> None:
        self._evaluator, search_context = unpickled(ray.get(self.shared))
        self._search_context = dataclasses.replace(search_context, save=self._keep)
        self._thread = EvaluationThread()
        torch.set_num_threads(self._search_context.threads)  # workers that each use all cores slow each other down
        os.environ["OMP_NUM_THREADS"] = str(self._search_context.threads)
        self.reset_config(config)

    @override
    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._last_result = None  # would keep the checkpoints of the previous trial in memory
        self._trial: Trial = new_config["assignment"].trial
        self._evaluation = self._evaluator(self._trial, self._search_context)
        self._proceed: bool | None = None
        self._saved: SavedTraining | None = None
        return True

    def begin(self, trial: Trial | None) -> str:
        """Return the id of the node; evaluate the present trial with the weights of `trial`, if it is given."""
        if trial is not None:
            self._evaluation = self._evaluator(trial, self._search_context)
        return str(ray.get_runtime_context().get_node_id())

    def _keep(self, saved: SavedTraining) -> None:
        """Send a state: one within an epoch at once, another with the report that follows it."""
        if saved.within_epoch:
            self._thread.hand_out(saved)
        else:
            self._saved = saved

    def end_early(self) -> None:
        """End the present trial at its next step."""
        self._proceed = False

    @override
    def step(self) -> dict[str, Any]:
        try:
            found = self._thread.advance(self._evaluation, self._proceed)
        except Exception as error:  # if it left this method, Tune would discard the worker
            logger.debug("trial %d failed", self._trial.number, exc_info=True)
            found = self._failed(error, lost=isinstance(error, OSError) and no_room(error))
        if isinstance(found, TrialResult):
            return self._sent(found)
        if isinstance(found, SavedTraining):
            return {"saved": found}
        self._proceed, saved = True, self._saved
        self._saved = None
        return {"report": found, "saved": saved}

    def _sent(self, result: TrialResult) -> dict[str, Any]:
        """Return a result as it crosses the network, its weights in the object store."""
        try:
            checkpoints = {label: ray.put(weights) for label, weights in result.checkpoints.items()}
        except ray.exceptions.OutOfDiskError as error:  # neither memory nor disk has room for them
            result, checkpoints = self._failed(error, lost=True), {}
        return {"done": True, "outcome": result.with_checkpoints({}), "checkpoints": checkpoints}

    def _failed(self, error: Exception, *, lost: bool) -> TrialResult:
        """Return the result of a trial with an error; `lost` where that is of this node, which has no room."""
        return TrialResult(self._trial, TrialState.FAILED, error=f"{type(error).__name__}: {error}", lost=lost)

    @override
    def cleanup(self) -> None:
        if not self._thread.busy:  # else it ends with the process
            self._evaluation.close()
