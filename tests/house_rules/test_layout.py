"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "gen_unlearn").rglob("*.py"))
OUTER = {"evaluation", "scripts", "tests"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def modules() -> dict[str, ast.Module]:
    """All modules of the package by name."""
    return {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def offences(
    modules: dict[str, ast.Module], find: Callable[[ast.Module], Iterable[str]]
) -> dict[str, list[str]]:
    """Return what is found in each module that has any."""
    found = {name: list(find(module)) for name, module in modules.items()}
    return {name: each for name, each in found.items() if each}


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the absolute name of everything a module imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` for a chain of names, and an empty text for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield functions of a module and methods of its classes, none with a leading underscore."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    for owner in [tree, *classes]:
        for node in owner.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
                not node.name.startswith("_") or node.name in ("__init__", "__call__")
            ):
                yield node


def test_there_is_a_package() -> None:
    assert len(MODULES) > 40


def test_nothing_is_imported_from_the_folders_that_use_it(modules: dict[str, ast.Module]) -> None:
    assert not offences(
        modules, lambda module: [name for name in imported(module) if name.partition(".")[0] in OUTER]
    )


def test_nothing_pickles_or_prints(modules: dict[str, ast.Module]) -> None:
    assert not offences(modules, unwanted)


def unwanted(module: ast.Module) -> Iterator[str]:
    """Yield imports and calls that a module must not have."""
    banned_imports = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    yield from (name for name in imported(module) if name.partition(".")[0] in banned_imports)
    banned_calls = {"print", "eval", "exec", "torch.load", "torch.save", "np.load", "np.save", "yaml.load"}
    calls = {dotted(node.func) for node in ast.walk(module) if isinstance(node, ast.Call)}
    yield from banned_calls & calls


def test_no_error_is_caught_that_is_not_named(modules: dict[str, ast.Module]) -> None:
    assert not offences(modules, unnamed_errors)


def unnamed_errors(module: ast.Module) -> Iterator[str]:
    """Yield the lines that catch all errors."""
    for node in ast.walk(module):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(each is None or dotted(each) in ("Exception", "BaseException") for each in caught):
                yield f"line {node.lineno}"


def test_public_functions_name_their_arguments(modules: dict[str, ast.Module]) -> None:
    assert offences(modules, takes_any_keyword) == {
        # A diffusers pipeline passes keywords of its own to the loaders of all its parts, new ones with every
        # release; a part whose loader does not take them cannot be in a pipeline.
        "gen_unlearn/exemplars.py": ["from_pretrained"]
    }


def takes_any_keyword(module: ast.Module) -> list[str]:
    """Return public functions with arguments that have no name."""
    return [node.name for node in public_functions(module) if node.args.kwarg is not None]


def test_public_functions_are_documented(modules: dict[str, ast.Module]) -> None:
    assert not offences(modules, undocumented)


def undocumented(module: ast.Module) -> list[str]:
    """Return public functions without a docstring."""
    return [
        node.name
        for node in public_functions(module)
        if ast.get_docstring(node) is None and node.name != "__init__" and not is_stub(node)
    ]


def is_stub(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell whether a function is a protocol's, with ``...`` for a body."""
    return len(node.body) == 1 and ast.unparse(node.body[0]) == "..."


def test_every_module_says_what_it_is(modules: dict[str, ast.Module]) -> None:
    empty = {name_of(path) for path in MODULES if not path.read_text(encoding="utf-8").strip()}
    silent = {name for name, module in modules.items() if not ast.get_docstring(module)}
    assert not silent - empty, "a docstring opens every module with code"


def test_every_module_is_small_enough_to_read_in_one_go() -> None:
    lines = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in MODULES}
    assert not {name: count for name, count in lines.items() if count > 300}


def tracked_texts() -> Iterator[tuple[str, str]]:
    """Yield the name and content of every text file under version control."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" not in content:
            yield name, content.decode("utf-8")


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    folders = ["/" + folder + "/" for folder in ("work", "root", "home/[a-z]+", "Users/[A-Za-z]+", "opt/gu")]
    hosts = ["https?://[^ ]*" + word for word in ("artifactory", "nexus", "pypi\\.[a-z]+\\.internal", "@")]
    addresses = [r"\b(?:10|127|192\.168)\.\d+\.\d+(?:\.\d+)?:\d+", "index" + "-url", "local" + "host:"]
    pattern = re.compile("|".join([*(rf"(?<![\w.]){folder}" for folder in folders), *hosts, *addresses]))
    found = [f"{name}: {match.group()}" for name, text in tracked_texts() for match in pattern.finditer(text)]
    assert not found


def test_every_recipe_is_explained() -> None:
    explained = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    recipes = sorted((ROOT / "configs").glob("*.yaml"))
    assert recipes
    assert not [recipe.name for recipe in recipes if f"`{recipe.name}`" not in explained]
    mentioned = set(re.findall(r"`([a-z0-9_]+\.yaml)`", explained)) - {"recipe.yaml"}
    assert not mentioned - {recipe.name for recipe in recipes}, "explains no recipe that is gone"
