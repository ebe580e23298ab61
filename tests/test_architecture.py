"""The rules of the house that a reader relies on: imports run one way, and heavy libraries have one home each.

Every import counts, those inside functions and under `TYPE_CHECKING` too, unless a test says otherwise. An import of
`a.b.c` is an import of that module alone; the `__init__` files that Python runs on the way count for lightness only.
"""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Packages, and the wings (sub-packages) and root modules of each, top down: each may import only itself and what
# stands below it. `__init__` of a package lists the public names, which come from anywhere below.
ORDER = {
    "search": """
        __init__ __main__ cli commands orchestrator library servers finalization tracking reporting planning tuner
        interrupts schedulers
        searchers latency storage callbacks environment time_left results problem
    """.split(),
    "configs": """
        __init__ loading schema passwords parsing
    """.split(),
    "runners": """
        __init__ placement ray simulated local evaluation latency training data learning_curve cache capacity
        search_training config base trial
    """.split(),
    "pruning": """
        __init__ methods criteria calibration quantization export file_size formats checkpoint header_check inference
        sensitivity allocation rewriting selection traits settings base steps
    """.split(),
    "spaces": """
        __init__ tracing zoo counting targets slicing space projection fields widths budget cost groups registry files
        errors lazy
    """.split(),
}
PACKAGES = list(ORDER)
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES})
MOST_FILES = 14  # Python files in one folder, `__init__` included
MOST_FLOORS = 10  # modules on the longest chain of imports inside search/

HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "torch_pruning",
    "ray",
    "mlflow",
    "optuna",
    "fvcore",
    "matplotlib",
    "plotly",
    "sklearn",
}
HOMES = {  # library -> the files or folders that may import it
    "ray": ("runners/ray/",),
    "mlflow": ("search/tracking/",),
    "optuna": ("search/searchers/", "search/storage/"),
    "matplotlib": ("search/reporting/picture.py",),
    "plotly": ("search/reporting/page/report.py", "search/reporting/page/charts.py"),
}
LIGHT = """
    search/__init__.py search/__main__.py search/cli.py search/results/pareto.py search/results/result.py
    configs/__init__.py configs/schema.py configs/loading.py
    runners/__init__.py runners/config.py runners/trial.py runners/base.py runners/local.py runners/simulated/runner.py
    pruning/__init__.py pruning/base.py
    spaces/__init__.py spaces/budget.py spaces/widths.py spaces/cost.py spaces/space.py spaces/registry.py
    spaces/zoo/models.py
""".split()


def name(path):
    return path.relative_to(ROOT).as_posix()


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


@cache
def imports(path, nested):
    """List the modules that a file imports: all of them, or only those that are imported when it is loaded."""
    found = []
    pending = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [module for module in submodules if module not in MODULES]
            found += [module for module in submodules if module in MODULES] + ([node.module] if names else [])
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not nested:
            continue
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not nested:
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)
    return found


def own_imports(path, nested=True):
    return [module for module in imports(path, nested) if module in MODULES]


def place(module):
    """Return the package of a module, and the wing or root module of it that the module belongs to."""
    package, *rest = module.split(".")
    return package, rest[0] if rest else "__init__"


def rank(module):
    package, entry = place(module)
    return PACKAGES.index(package), ORDER[package].index(entry)


def circles(graph):
    """List the groups of nodes that reach one another; `graph` is node -> set of nodes."""
    reached = {}
    for start in graph:
        seen, pending = set(), [start]
        while pending:
            new = graph.get(pending.pop(), set()) - seen
            seen |= new
            pending += new
        reached[start] = seen
    groups = {frozenset(other for other in reached[node] if node in reached[other]) for node in graph}
    return sorted(sorted(group) for group in groups if group)


def chain(graph):
    """Return the longest path of an acyclic graph."""

    @cache
    def longest(node):
        return (node, *max((longest(below) for below in graph[node]), key=len, default=()))

    return max((longest(node) for node in graph), key=len)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_are_absolute(path):
    tree = ast.parse(path.read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_order_names_every_wing_and_root_module(package):
    entries = {place(module)[1] for module in MODULES if module.split(".")[0] == package}
    assert entries == set(ORDER[package])


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_down(path):
    """Down to another package, wing or root module; inside a wing only circles are forbidden."""
    module = module_name(path)
    if place(module)[1] not in ORDER[place(module)[0]]:
        pytest.skip("not in the order, which fails above")
    below = [other for other in own_imports(path) if place(other)[1] in ORDER[place(other)[0]]]
    wrong = [other for other in below if place(other) != place(module) and rank(other) < rank(module)]
    assert not wrong, f"{name(path)} imports {wrong} from above; declare a Protocol where the need is"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_names_are_imported_from_the_module_that_defines_them(path):
    wrong = [module for module in own_imports(path) if MODULES[module].name == "__init__.py"]
    assert not wrong, f"{name(path)} imports names from {wrong}; import them from the modules that define them"


def test_no_modules_import_one_another_in_a_circle():
    assert circles({module: set(own_imports(path)) - {module} for module, path in MODULES.items()}) == []


def test_no_two_folders_import_each_other():
    """A folder and one inside it may: the files beside the inner folder serve it, or are served by it."""
    edges = {
        (path.parent, MODULES[module].parent)
        for path in FILES
        for module in own_imports(path)
        if path.name != "__init__.py"
    }
    pairs = {
        tuple(sorted((name(left), name(right))))
        for left, right in edges
        if (right, left) in edges and left not in [right, *right.parents] and right not in left.parents
    }
    assert sorted(pairs) == []


def test_search_has_few_import_floors():
    """The longest chain of modules of search/ in which each imports the next one, be it inside a function."""
    search = {module: path for module, path in MODULES.items() if module.startswith("search.")}
    graph = {module: frozenset({*own_imports(path)} & {*search}) for module, path in search.items()}
    assert circles(graph) == []
    longest = chain(graph)
    assert len(longest) <= MOST_FLOORS, " -> ".join(longest)


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_no_folder_holds_too_many_files(folder):
    assert len(list(folder.glob("*.py"))) <= MOST_FILES


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_an_init_holds_a_docstring_and_public_names_only(folder):
    path = folder / "__init__.py"
    docstring, *body = ast.parse(path.read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant)
    imported = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    rest = [ast.unparse(node) for node in body if node not in imported]
    if folder.parent == ROOT:
        allowed = ("if TYPE_CHECKING:", "__all__ = ", "_HOMES = ", "__getattr__, __dir__ = attach(")
        assert [line for line in rest if not line.startswith(allowed)] == []
        return
    names = sorted(alias.asname or alias.name for node in imported for alias in node.names)
    assert [line.partition(" = ")[0] for line in rest] == ["__all__"]
    assert sorted(ast.literal_eval(rest[0].partition(" = ")[2])) == names
    assert all(node.module.startswith(f"{module_name(path)}.") for node in imported), "a wing gives its own names only"


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_a_heavy_library_has_one_home(library, homes):
    users = [name(path) for path in FILES if library in {module.split(".")[0] for module in imports(path, True)}]
    assert [user for user in users if not user.startswith(homes)] == []
    assert users, f"nothing imports {library}"


@pytest.mark.parametrize("light", LIGHT)
def test_light_files_import_nothing_heavy(light):
    """Follows our own modules too, and the `__init__` of every folder on the way to them."""
    seen, pending, heavy = set(), [module_name(ROOT / light)], []
    while pending:
        module = pending.pop()
        parents = [module.rsplit(".", depth)[0] for depth in range(module.count(".") + 1)]
        for current in set(parents) - seen:
            seen.add(current)
            heavy += [
                f"{current} imports {other}"
                for other in imports(MODULES[current], nested=False)
                if other.split(".")[0] in HEAVY
            ]
            pending += own_imports(MODULES[current], nested=False)
    assert not heavy


def distribution_of(requirement):
    return re.split(r"[^\w-]", requirement)[0].lower()


def test_the_declared_dependencies_are_those_that_are_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {distribution_of(requirement) for requirement in project["dependencies"]}
    extras = project["optional-dependencies"]
    optional = {distribution_of(text) for name, extra in extras.items() if name != "test" for text in extra}
    modules = {module.split(".")[0] for path in FILES for module in imports(path, True)}
    # pydantic requires pydantic-core in one version, which is a part of it.
    third_party = modules - sys.stdlib_module_names - set(PACKAGES) - {"pydantic_core"}
    distributions = {
        module: {name.lower().replace("_", "-") for name in names}
        for module, names in packages_distributions().items()
        if module in third_party
    }
    undeclared = {module for module in third_party if not distributions.get(module, {module}) & (declared | optional)}
    assert (undeclared, declared - set().union(*distributions.values())) == (set(), set())


def test_tests_are_no_packages():
    """`tests/spaces/__init__.py` would hide the package `spaces` from the tests."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_ship_their_types(package):
    assert (ROOT / package / "py.typed").exists()


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [["a", "b", "c"]]


def test_the_longest_chain_is_found():
    graph = {"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset(), "d": frozenset("c")}
    assert chain(graph) == ("a", "b", "c")
