"""Print how large the house is: `make stats`; the last line is one JSON object.

    python tests/support/stats.py                  # this checkout
    python tests/support/stats.py ../before        # another one

Source files are those that git knows; a circle is a set of files each of which reaches the others by its imports.
"""

import ast
import json
import subprocess
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_FUNCTION_LINES, MAX_PARAMETERS = 60, 8


def source_files(root: Path) -> list[Path]:
    """Return the Python files that git tracks, relative to the root."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=root, capture_output=True, text=True, check=True)
    return [Path(name) for name in listed.stdout.splitlines()]


def is_test(path: Path) -> bool:
    return path.parts[0] == "tests"


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    return len([a for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.arg != "self"])


def comment_lines(path: Path) -> int:
    with tokenize.open(path) as file:
        tokens = tokenize.generate_tokens(file.readline)
        return len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})


def import_graph(trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """Return module -> modules of ours that it imports, at any depth of the code."""
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in trees}
    graph = defaultdict(set)
    for name, path in names.items():
        for node in ast.walk(trees[path]):
            if isinstance(node, ast.Import):
                reached = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                home = node.module if node.level == 0 else ".".join([*path.parent.parts, node.module])
                reached = {f"{home}.{alias.name}" for alias in node.names} | {home}
            else:
                continue
            graph[name] |= {other for other in reached if other in names and other != name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the sets of modules that import each other, directly or through others."""
    from scipy.sparse import lil_matrix
    from scipy.sparse.csgraph import connected_components

    names = sorted({*graph, *(other for others in graph.values() for other in others)})
    number = {name: i for i, name in enumerate(names)}
    edges = lil_matrix((len(names), len(names)), dtype=bool)
    for name, others in graph.items():
        for other in others:
            edges[number[name], number[other]] = True
    _, component = connected_components(edges.tocsr(), directed=True, connection="strong")
    members = defaultdict(list)
    for name, group in zip(names, component, strict=True):
        members[group].append(name)
    return [group for group in members.values() if len(group) > 1]


def measure(root: Path) -> dict:
    """Return the figures of a checkout."""
    files = source_files(root)
    trees = {path: ast.parse((root / path).read_text(encoding="utf-8")) for path in files}
    lines = {path: len((root / path).read_text(encoding="utf-8").splitlines()) for path in files}
    product = [path for path in files if not is_test(path)]
    long, wide = [], []
    for path in product:
        for function in functions(trees[path]):
            length = function.end_lineno - function.lineno + 1
            long += [f"{path}:{function.name} ({length})"] if length > MAX_FUNCTION_LINES else []
            count = num_parameters(function)
            wide += [f"{path}:{function.name} ({count})"] if count > MAX_PARAMETERS else []
    product_lines = sum(lines[path] for path in product)
    return {
        "files": len(product),
        "product_lines": product_lines,
        "test_lines": sum(lines[path] for path in files if is_test(path)),
        "comment_share": round(sum(comment_lines(root / path) for path in product) / product_lines, 3),
        "files_of_folder": dict(Counter(str(path.parent) for path in files).most_common(8)),
        "functions_over_60_lines": sorted(long),
        "functions_over_8_parameters": sorted(wide),
        "circles": circles(import_graph({path: trees[path] for path in product})),
        "readme_bytes": len((root / "README.md").read_bytes()),
    }


def main(argv: list[str]) -> None:
    figures = measure(Path(argv[0]).resolve() if argv else ROOT)
    for name, value in figures.items():
        print(f"{name}: {len(value) if isinstance(value, list) else value}")
        for entry in value if isinstance(value, list) else ():
            print(f"    {entry}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
