"""Holds the architecture: layers, heavy imports, sizes, annotations, docstrings, no import cycle, nothing left undone."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "fmray").rglob("*.py"))
CHECKED = [*FILES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]
MAX_LINES, MAX_FUNCTION_LINES = 400, 60

# What each room may import of fmray, besides itself and the core. Rooms are folders or modules of fmray/.
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "cluster": set(),
    "data": {"cluster"},
    "model": {"cluster"},
    "tasks": {"cluster", "data", "model"},
    "objectives": {"data", "model", "tasks"},
    "evaluate": {"cluster", "data", "model", "tasks", "objectives"},
    "audit": {"cluster", "data", "model", "tasks", "evaluate"},
    "gate": {"model"},
    "train": {"cluster", "data", "model", "tasks", "objectives", "evaluate"},
    "serve": {"cluster", "model", "tasks", "gate"},
    "report": set(),
    "memory": set(),
    "live": {"report"},
    "submit": set(),
    "cli": {"live", "memory", "model", "report", "submit", "serve", "cluster", "evaluate"},
    "__main__": {"cli"},
    "__init__": {"data", "model", "train", "evaluate", "audit", "gate", "serve"},
}
# Modules of these packages are imported in these rooms only.
ONLY_IN = {
    "ray.data": {"data", "evaluate"},
    "ray.train": {"train"},
    "deepspeed": {"train"},
    "ray.tune": {"train"},
    "ray.serve": {"serve"},
}
HEAVY = {"ray", "torch", "deepspeed", "transformers", "pyarrow", "pandas", "sklearn", "tokenizers", "optuna", "fastapi", "starlette", "uvicorn", "tensorboardX", "mlflow", "wandb"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports(path: Path, *, top_level_only: bool) -> list[tuple[str, int]]:
    """Imported module names with their lines; `from a import b` is an import of a.b where that is a module of fmray."""
    found: list[tuple[str, int]] = []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if is_type_checking(child):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                names = [f"{child.module}.{alias.name}" for alias in child.names]
                found.extend((name if name in MODULES or child.module not in MODULES else child.module, child.lineno) for name in names)
            elif not (top_level_only and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))):
                visit(child)

    visit(tree(path))
    return found


def own_imports(path: Path) -> set[str]:
    """The fmray modules that a file imports when it is imported."""
    named = {name for name, _ in imports(path, top_level_only=True) if name.split(".")[0] == "fmray"}
    return {name for name in named if name in MODULES}


def test_rooms_import_only_what_lies_below_them() -> None:
    wrong = []
    for path in FILES:
        room = room_of(module_name(path))
        allowed = ALLOWED[room] | {room, "core", "__init__" if room == "cli" else "core"}
        for name, line in imports(path, top_level_only=False):
            if name.split(".")[0] == "fmray" and name in MODULES and room_of(name) not in allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_libraries_are_imported_only_in_their_rooms() -> None:
    wrong = []
    for path in FILES:
        room = room_of(module_name(path))
        for name, line in imports(path, top_level_only=False):
            for library, rooms in ONLY_IN.items():
                if (name == library or name.startswith(f"{library}.")) and room not in rooms:
                    wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
                if library == "ray.tune" and (name == library or name.startswith("ray.tune.")) and not path.name.startswith("search") and path.parent.name not in ("algorithms", "schedulers", "space"):
                    wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}: ray.tune lives in the search alone")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_fmray_imports_its_own_modules_at_the_top() -> None:
    wrong = []
    for path in FILES:
        top = {(name, line) for name, line in imports(path, top_level_only=True)}
        hidden = [item for item in imports(path, top_level_only=False) if item not in top and item[0].split(".")[0] == "fmray"]
        wrong.extend(f"{path.relative_to(ROOT)}:{line} imports {name} inside a function" for name, line in hidden)
    assert not wrong, "\n".join(wrong)


def test_no_import_cycle() -> None:
    graph = {module: own_imports(path) - {module} for module, path in MODULES.items()}
    state: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert state.get(module) != 1, " -> ".join([*trail, module])
        if state.get(module) == 2:
            return
        state[module] = 1
        for other in sorted(graph[module]):
            visit(other, (*trail, module))
        state[module] = 2

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", CHECKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_names_are_typed_and_documented(path: Path) -> None:
    assert ast.get_docstring(tree(path)), f"{path} has no docstring"
    wrong = []
    for node in tree(path).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            members = [m for m in ast.walk(node) if isinstance(m, (ast.FunctionDef, ast.AsyncFunctionDef))] if isinstance(node, ast.ClassDef) else [node]
            if not ast.get_docstring(node):
                wrong.append(f"{path.name}:{node.lineno} {node.name} has no docstring")
            for function in members:
                named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
                untyped = [a.arg for a in named if a.annotation is None and a.arg not in ("self", "cls")]
                if untyped or (function.returns is None):
                    wrong.append(f"{path.name}:{function.lineno} {function.name} is not fully typed {untyped}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_left_undone_or_swallowed(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", text)
    assert not re.search(r"except(?: Exception)?:\s*\n\s*pass\b", text)
    assert "trust_remote_code=True" not in text


def test_importing_fmray_and_its_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, fmray, fmray.cli; print(sorted({HEAVY!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_top_level_layout() -> None:
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in tracked}
    known = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "fmray", "cluster", "jobs", "tests", "benchmarks"}
    assert {name for name in top if not name.startswith(".")} <= known


def test_ruff_is_clean() -> None:
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_mypy_is_clean() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout
