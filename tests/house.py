"""Who imports whom, and what words are used, read from the sources: Python by its syntax, Rust by its text."""

import ast
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

Graph = dict[str, set[str]]


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Return modules of which each imports the next and the last is the first again; none if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def later(graph: Graph, order: list[str]) -> list[str]:
    """Return the imports of a module from a later stage, the stages in `order`, as "importer -> imported"."""
    rank = {stage: place for place, stage in enumerate(order)}

    def stage(module: str) -> int | None:
        return rank.get([*module.split("."), ""][1])

    return sorted(
        f"{module} -> {imported}"
        for module, its_imports in graph.items()
        for imported in its_imports
        if (here := stage(module)) is not None and (there := stage(imported)) is not None and there > here
    )


def python_graph(package: Path, results: Iterable[str] = ()) -> Graph:
    """Return the modules that each module of a package imports, anywhere in it.

    Args:
        package: its folder.
        results: modules of which imports within functions, or for types alone, do not count.
    """
    files = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    compiled = {f"{package.name}.{path.stem}": set[str]() for path in package.glob("*.pyi")}
    files = {**files, **dict.fromkeys(compiled, package)}
    graph: Graph = compiled
    for module in files.keys() - compiled.keys():
        path = files[module]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = module not in results
        graph[module] = {
            target
            for name in _imported(tree, inside=inside)
            if (target := _longest(name, files, ".")) is not None and target != module
        }
    return graph


def _imported(node: ast.AST, *, inside: bool) -> Iterator[str]:
    """Yield the dotted names of all that is imported below a node, in functions too if `inside`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif inside or not (isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types(child)):
            yield from _imported(child, inside=inside)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _longest(name: str, known: Mapping[str, object], separator: str) -> str | None:
    """Return the longest beginning of a name that is a module; a bare package counts for what is not a module below it."""
    parts = name.split(separator)
    while parts and separator.join(parts) not in known:
        parts.pop()
    return separator.join(parts) or None


def rust_graph(source: Path) -> Graph:
    """Return the modules that each module of a crate names, tests left out."""
    files = {}
    for path in sorted(source.rglob("*.rs")):
        parts = list(path.relative_to(source).with_suffix("").parts)
        if parts[-1] in ("mod", "lib"):
            parts.pop()
        files["::".join(["crate", *parts])] = path
    tests = {module for module in files if re.search(r"::(tests|\w+_tests|fuzzing)\b", module)}
    graph: Graph = {}
    for module, path in files.items():
        if module in tests:
            continue
        code = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
        code = re.split(r"#\[cfg\(test\)\]\s*mod tests \{", code)[0]
        code = re.sub(r"pub\(in [^)]*\)", "pub", code)
        targets = {_longest(name, files, "::") for name in _named(module, code)}
        graph[module] = {target for target in targets if target not in (None, module, *tests)}
    return graph


def _named(module: str, code: str) -> Iterator[str]:
    """Yield the absolute paths that code of a module names, those of modules within the file included."""
    while match := re.search(r"\bmod (\w+) \{", code):
        end, depth = match.end(), 1
        while depth and end < len(code):
            depth += (code[end] == "{") - (code[end] == "}")
            end += 1
        yield from _named(f"{module}::{match[1]}", code[match.end() : end - 1])
        code = code[: match.start()] + code[end:]
    names = [name for tree in re.findall(r"\buse\s+([^;]+);", code) for name in _flat(tree)]
    names += re.findall(r"\b(?:crate|super)(?:::\w+)+", code)
    yield from (_absolute(module, name) for name in names)


def _flat(tree: str) -> list[str]:
    """Return the paths of a `use` tree: `a::{b, c::{d, e}}` names a::b, a::c::d and a::c::e."""
    tree = re.sub(r"\s+", "", re.sub(r"\s+as\s+\w+", "", tree))
    head, brace, rest = tree.partition("{")
    if not brace:
        return [tree]
    parts, depth, start = [], 0, 0
    body = rest[:-1] + ","
    for place, letter in enumerate(body):
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append(body[start:place])
            start = place + 1
    return [head + path for part in parts if part for path in _flat(part)]


def _absolute(module: str, name: str) -> str:
    first, _, rest = name.partition("::")
    if first == "crate":
        return name
    if first == "super":
        return (
            _absolute(module.rpartition("::")[0], rest)
            if rest.startswith("super::")
            else (f"{module.rpartition('::')[0]}::{rest}")
        )
    if first == "self":
        return f"{module}::{rest}"
    return f"{module}::{name}"


def python_words(path: Path) -> set[str]:
    """Return the names in a Python file: what is neither text nor a comment."""
    with tokenize.open(path) as file:
        return {each.string for each in tokenize.generate_tokens(file.readline) if each.type == tokenize.NAME}


def rust_code(path: Path) -> str:
    """Return a Rust file without its comments and texts."""
    return re.sub(r'//[^\n]*|"(?:\\.|[^"\\])*"', " ", path.read_text(encoding="utf-8"))


def rust_words(path: Path) -> set[str]:
    """Return the names in a Rust file."""
    return set(re.findall(r"[A-Za-z_]\w*", rust_code(path)))
