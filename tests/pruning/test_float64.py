"""MPS has no float64: methods compute in it only what has left the device. One without it is made up here."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pruning.base import METHODS, Goal
from runners.evaluation.context import TrialContext
from spaces.budget import Budget
from spaces.space import uniform_ratios


class MadeUpDevice(TorchFunctionMode):
    """Takes parameters, images and all that is computed from them to be on a device; `cpu` takes it off.

    Raises TypeError where a tensor on it becomes float64, as torch does on MPS.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.float64: list[str] = []
        self._there: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._there[images] = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, Tensor)]
        there = any(isinstance(leaf, nn.Parameter) or leaf in self._there for leaf in given)
        out = func(*args, **(kwargs or {}))
        if not there:
            return out
        if getattr(func, "__name__", "") == "cpu":
            return torch.ops.aten.alias(out)  # a tensor of its own
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                if leaf.dtype == torch.float64:
                    raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
                if all(leaf is not one for one in given):
                    self._there[leaf] = True
        return out


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_computes_in_float64_only_what_has_left_the_device(name, tiny_search_context, monkeypatch) -> None:
    made, method = tiny_search_context, METHODS[name]()
    context = TrialContext(made.data, made.train, 0)
    net = copy.deepcopy(made.net).eval()
    budget = Budget("flops", int(0.6 * made.space.dense_cost.flops))
    widths = made.space.fit(uniform_ratios(made.space), [budget])
    goal = Goal(widths=widths) if method.takes_widths else Goal(budgets=(budget,))
    for module in ("rewriting.index_maps", "methods.aofp.halving", "methods.kse.kernel_clustering"):
        monkeypatch.setattr(f"pruning.{module}.has_float64", lambda _: False)
    with MadeUpDevice(made.data.train.images):
        context.prepared = method.prepare(net, made.space, context)
        for _ in method.run(net, made.space, goal, context):
            pass


def test_the_device_has_no_float64() -> None:
    images = torch.zeros(2, 3)
    with MadeUpDevice(images):
        assert (images * 2).cpu().double().dtype == torch.float64
        with pytest.raises(TypeError, match="float64"):
            (images * 2).double()
