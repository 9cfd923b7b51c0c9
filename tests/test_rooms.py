"""Where modules live: public names load when asked for, little comes along, old names still import."""

import ast
import importlib
import subprocess
import sys

import pytest
from flax import nnx

import mhd_jax as mhd
from mhd_jax.core import moved
from tests.builders import ROOT

PACKAGE = ROOT / "mhd_jax"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(module):
    """Modules of the package that a module's text imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in inside}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & FILES.keys() - {"mhd_jax"}


def closure(module):
    """All that comes along with a module, but for the packages' own files."""
    found, left = set(), [module]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += imported(one)
    return {one for one in found if FILES[one].name != "__init__.py"}


def test_the_package_has_few_files_of_its_own():
    assert {path.name for path in PACKAGE.glob("*.py")} <= {
        "__init__.py",
        "__main__.py",
        "clients.py",
        "version.py",
    }


def test_an_algorithm_brings_little_along():
    brought = closure("mhd_jax.algorithms.mhd")
    assert len(brought) <= 35, sorted(brought)
    assert not any(name.startswith(("mhd_jax.engine", "mhd_jax.runs")) for name in brought)


@pytest.mark.parametrize(
    ("imported", "left_out"),
    [
        ("mhd_jax", {"jax", "flax", "numpy", "mhd_jax.engine"}),
        # Few runs need these, or only at their end.
        ("mhd_jax.cli.commands.train", {"flax.nnx", "matplotlib", "sklearn", "pandas", "torch"}),
    ],
)
def test_an_import_leaves_out_what_it_does_not_need(imported, left_out):
    program = f"import sys, {imported}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not left_out & set(done.stdout.split())


def test_models_of_earlier_versions_are_found_where_they_were_saved_by():
    there = importlib.import_module("mhd_jax.models.from_nnx")
    assert there.FromNNX is type(mhd.models.from_nnx(nnx.Linear, 2, 3))
    with pytest.raises(AttributeError, match="FromLinen"):
        _ = there.FromLinen


def test_public_names_are_there_and_listed():
    for name in mhd.__all__:
        found = getattr(mhd, name)
        assert getattr(found, "__name__", name).rpartition(".")[2] == name
    assert set(mhd.__all__) <= set(dir(mhd))
    with pytest.raises(AttributeError, match="no attribute 'simulation'"):
        _ = mhd.simulation


def test_type_checkers_are_told_the_same_places():
    (block,) = [
        node
        for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
        if isinstance(node, ast.If)
    ]
    told = {
        alias.name: f"{node.module}.{alias.name}" for node in block.body for alias in node.names
    }
    assert told == {name: place.replace(":", ".") for name, place in mhd._PLACES.items()}


@pytest.mark.parametrize("old", moved.MODULES)
def test_old_names_import_with_a_warning(old):
    new = importlib.import_module(moved.MODULES[old])
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=rf"{old} is {new.__name__} now"):
        module = importlib.import_module(old)
    names = [name for name in vars(new) if not name.startswith("_")]
    assert all(getattr(module, name) is getattr(new, name) for name in names)


def test_old_modules_come_from_the_package_itself():
    vars(mhd).pop("groups", None)
    sys.modules.pop("mhd_jax.groups", None)
    with pytest.warns(DeprecationWarning, match="mhd_jax.groups is mhd_jax.training.groups now"):
        from mhd_jax import groups
    assert groups.init_state is importlib.import_module("mhd_jax.training.groups").init_state
