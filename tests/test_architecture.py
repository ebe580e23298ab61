"""The rules of the house that a reader relies on: imports run one way, and heavy libraries have one home each."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ["search", "configs", "runners", "pruning", "spaces"]  # each may import only itself and those to its right
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = {
    "torch",
    "torchvision",
    "torch_pruning",
    "ray",
    "mlflow",
    "optuna",
    "fvcore",
    "matplotlib",
    "plotly",
    "sklearn",
}
HOMES = {
    "ray": {"runners/ray/runner.py"},
    "mlflow": {"search/tracking/mlflow_tracker.py"},
    "optuna": {f"search/{each}.py" for each in ("study", "record", "samplers", "sampling", "structured_sampler")},
}
LIGHT = """
    search/__init__.py search/__main__.py search/cli.py search/schedulers/asha.py search/results/pareto.py search/results/result.py
    configs/__init__.py configs/schema.py configs/loading.py
    runners/__init__.py runners/trial.py runners/base.py runners/local.py runners/simulated/runner.py
    pruning/__init__.py pruning/base.py
    spaces/__init__.py spaces/budget.py spaces/widths.py spaces/cost.py spaces/space.py spaces/registry.py
""".split()


def module_file(module):
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return file if file.exists() else ROOT.joinpath(*module.split("."), "__init__.py")


def imports(path, nested):
    """List the modules a file imports: all of them, or only those that loading it imports."""
    found = []
    pending = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or "", *[f"{node.module}.{alias.name}" for alias in node.names]]
            found += [modules[0], *[module for module in modules[1:] if module_file(module).exists()]]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not nested:
            continue
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not nested:
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)
    return found


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_are_absolute(path):
    tree = ast.parse(path.read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_down(path):
    above = PACKAGES[: PACKAGES.index(path.relative_to(ROOT).parts[0])]
    wrong = [module for module in imports(path, nested=True) if module.split(".")[0] in above]
    assert not wrong, f"{name(path)} imports {wrong} from above; declare a Protocol where the need is"


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_a_heavy_library_has_one_home(library, homes):
    users = {name(path) for path in FILES if library in {module.split(".")[0] for module in imports(path, True)}}
    assert users <= homes


@pytest.mark.parametrize("path", [ROOT / light for light in LIGHT if (ROOT / light).exists()], ids=name)
def test_light_files_import_nothing_heavy(path):
    """Follows our own modules too: a light file that loads one which loads torch is not light."""
    seen, pending, heavy = set(), [path], []
    while pending:
        current = pending.pop()
        for module in imports(current, nested=False):
            if module.split(".")[0] in HEAVY:
                heavy.append(f"{name(current)} imports {module}")
            if module.split(".")[0] in PACKAGES and module not in seen:
                seen.add(module)
                pending.append(module_file(module))
    assert not heavy


def test_tests_are_no_packages():
    """`tests/spaces/__init__.py` would hide the package `spaces` from the tests."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_ship_their_types(package):
    assert (ROOT / package / "py.typed").exists()
