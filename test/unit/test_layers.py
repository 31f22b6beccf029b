"""The package's layers: each module imports its own layer and those above it in the list, and no module in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "_utils/wsgi_formula"
LAYERS = ["ground", "pillar", "host", "build", "app", "run", "edge", "changes"]
HOST = ["host", "salt_run", "served"]
MODULES = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}


def layer_of(module):
    """The name of a module's layer: its folder, or for the modules beside the folders `host` or `ground`."""
    return module[0] if len(module) > 1 else "host" if module[0] in HOST else "ground"


def imports_of(module, for_types=True):
    """The modules of the package that a module imports, as paths in the package; perhaps those for its types, too."""
    tree = ast.parse(MODULES[module].read_text())
    if not for_types:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*module[: -node.level], *(node.module.split(".") if node.module else ()))
            for name in node.names:
                inner = (*base, name.name)
                candidates = [inner, (*inner, "__init__"), base, (*base, "__init__")]
                yield next(candidate for candidate in candidates if candidate in MODULES)


def test_module_imports_its_own_layer_and_those_above_it():
    below = [
        f"{'/'.join(module)} imports {'/'.join(imported)}"
        for module in MODULES
        for imported in imports_of(module)
        if LAYERS.index(layer_of(imported)) > LAYERS.index(layer_of(module))
    ]
    assert below == []


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter({module: {*imports_of(module, for_types=False)} for module in MODULES}).prepare()


def test_package_itself_imports_nothing():
    assert [*imports_of(("__init__",))] == []
