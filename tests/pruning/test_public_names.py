"""The names that a user imports from `pruning`."""

import ast
import importlib
from pathlib import Path

import pytest

import pruning

TREE = ast.parse(Path(pruning.__file__).read_text())
TYPED = {
    alias.name: node.module
    for block in TREE.body
    if isinstance(block, ast.If)
    for node in block.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


def test_type_checkers_see_the_same_names() -> None:
    assert sorted(TYPED) == sorted(pruning.__all__)


@pytest.mark.parametrize("name", pruning.__all__)
def test_a_name_comes_from_the_module_that_type_checkers_read(name: str) -> None:
    assert getattr(pruning, name) is getattr(importlib.import_module(TYPED[name]), name)
