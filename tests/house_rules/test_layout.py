"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "gen_unlearn").rglob("*.py"))
OUTER = {"evaluation", "scripts", "tests"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(params=MODULES, ids=name_of)
def module(request: pytest.FixtureRequest) -> ast.Module:
    return ast.parse(request.param.read_text(encoding="utf-8"))


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


def test_imports_nothing_from_the_folders_that_use_it(module: ast.Module) -> None:
    assert not [name for name in imported(module) if name.partition(".")[0] in OUTER]


def test_neither_pickles_nor_prints(module: ast.Module) -> None:
    banned_imports = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert not [name for name in imported(module) if name.partition(".")[0] in banned_imports]
    banned_calls = {"print", "eval", "exec", "torch.load", "torch.save", "np.load", "np.save", "yaml.load"}
    calls = [dotted(node.func) for node in ast.walk(module) if isinstance(node, ast.Call)]
    assert not banned_calls.intersection(calls)


def test_catches_no_error_it_does_not_name(module: ast.Module) -> None:
    for node in ast.walk(module):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}"
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            assert not {"Exception", "BaseException"}.intersection(map(dotted, caught)), f"line {node.lineno}"


def test_public_functions_name_their_arguments(module: ast.Module) -> None:
    unnamed = [node.name for node in public_functions(module) if node.args.kwarg is not None]
    if "ExemplarStore" in [node.name for node in module.body if isinstance(node, ast.ClassDef)]:
        # A diffusers pipeline passes keywords of its own to the loaders of all its parts, new ones with every
        # release; a part whose loader does not take them cannot be in a pipeline.
        unnamed.remove("from_pretrained")
    assert not unnamed


def test_public_functions_are_documented(module: ast.Module) -> None:
    undocumented = [
        node.name
        for node in public_functions(module)
        if ast.get_docstring(node) is None and node.name != "__init__" and not is_stub(node)
    ]
    assert not undocumented


def is_stub(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell whether a function is a protocol's, with ``...`` for a body."""
    return len(node.body) == 1 and ast.unparse(node.body[0]) == "..."


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "a docstring opens every module with code"
    assert text.count("\n") <= 300, "small enough to read in one go"


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
