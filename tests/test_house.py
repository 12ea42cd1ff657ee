"""The tree's own rules: no imports in circles, none from a later stage, and one word for one thing."""

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import spice_rs
from house import circle, later, python_graph, python_words, rust_code, rust_graph, rust_words
from spice_rs.analysis.inputs import SelectionInputs
from spice_rs.commands.options import argument_docs
from spice_rs.selection.constraints import PER_ROW, SCALARS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "spice_rs"
CRATE = ROOT / "rust" / "spice-core" / "src"

STAGES = ["data", "store", "extraction", "selection", "analysis", "report"]
"""As data flow; but whoever extracts has to know the store that the rows go to."""
CRATE_STAGES = ["linalg", "matrix", "survey", "selection", "analysis"]
RESULTS = ["spice_rs.selection.result", "spice_rs.selection.exported", "spice_rs.analysis.comparison"]
"""Result objects, of which convenience methods import what shows them or writes them; listed in CONTRIBUTING."""

RETIRED = {"Way", "ways", "Told", "Given", "Reading", "backdrop", "remade", "DUPLICATES"}
"""Words that told nothing, or that named twice what has a name; `docs/design.md` has those that are used."""
RETIRED_IN_SEARCH = {
    *("left_out", "LeftOut", "leave_out", "duplicate", "duplicates", "is_near", "Near"),  # near_duplicate
    *("owned", "FORCED"),  # initial, Forced
    *("cold_merit", "UNKNOWN"),
}
SEARCH = [
    "spice-core/src/selection",
    "spice-core/src/analysis",
    "spice-core/src/monitor.rs",
    "spice-py/src/past.rs",
]
"""Where rows are picked and what is told of it; a store has duplicates, and leaves out."""


def _rust(*places):
    for place in places:
        path = ROOT / "rust" / place
        yield from sorted(path.rglob("*.rs")) if path.is_dir() else [path]


def test_words_that_were_given_up_do_not_come_back():
    files = [(path, python_words(path)) for path in sorted(PACKAGE.rglob("*.py"))]
    files += [(path, rust_words(path)) for path in _rust("spice-core/src", "spice-py/src")]
    found = {path.name: words & RETIRED for path, words in files if words & RETIRED}
    assert found == {}
    assert not [path for path, _ in files if path.stem in RETIRED]
    of_search = [(path, rust_words(path)) for path in _rust(*SEARCH)]
    assert {
        path.name: words & RETIRED_IN_SEARCH for path, words in of_search if words & RETIRED_IN_SEARCH
    } == {}
    picking = [
        path for stage in ("selection", "analysis") for path in sorted((PACKAGE / stage).rglob("*.py"))
    ]
    assert not [path for path in picking if "left_out" in python_words(path)]
    assert len(picking) > 30
    assert len(of_search) > 40


def test_what_a_row_is_known_by_is_never_a_bare_number():
    bare = re.compile(
        r"\b(?:positions?|names?|slots?|initial|include|exclude|candidates): *(?:&(?:mut )?)?(?:Vec<|\[)?(?:usize|i64)\b"
    )
    files = list(_rust("spice-core/src/selection", "spice-core/src/analysis", "spice-core/src/survey.rs"))
    found = {path.name: bare.findall(rust_code(path)) for path in files}
    counts = {"search.rs": 1, "gram.rs": 1}  # how many candidates there are
    assert {name: len(each) for name, each in found.items() if each} == counts
    for text in ("fn f(slot: usize)", "names: &[usize]", "initial: Vec<usize>"):
        assert bare.search(text)


def test_a_budget_is_a_cost_and_k_is_a_number_of_rows():
    files = list(_rust("spice-core/src/selection", "spice-core/src/analysis", "spice-py/src"))
    counted = re.compile(r"\bbudget: *(?:Option<)?usize\b")
    assert not [path for path in files if counted.search(rust_code(path))]


def test_a_standing_is_packed_in_one_file_alone():
    full = CRATE / "selection" / "full"
    packed = [path.name for path in full.glob("*.rs") if re.search(r"\bStanding\(", rust_code(path))]
    assert packed == ["standing.rs"]


def test_no_python_module_imports_one_that_imports_it():
    assert circle(python_graph(PACKAGE, RESULTS)) == []


def test_no_python_module_imports_from_a_later_stage():
    assert later(python_graph(PACKAGE, RESULTS), STAGES) == []


def test_no_rust_module_names_one_that_names_it():
    assert circle(rust_graph(CRATE)) == []


def test_no_rust_module_names_one_of_a_later_stage():
    graph = {
        module.replace("::", "."): {target.replace("::", ".") for target in targets}
        for module, targets in rust_graph(CRATE).items()
    }
    assert later(graph, CRATE_STAGES) == []
    below = [module for module in graph if module.split(".")[1:2] == ["store"]]
    assert not [
        (module, target)
        for module in below
        for target in graph[module]
        if target.split(".")[1] in CRATE_STAGES[2:]
    ]


def test_exceptions_are_listed_where_people_read():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for module in RESULTS:
        assert f"`{module.removeprefix('spice_rs.').replace('.', '/')}.py`" in text


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/design.md"])
def test_files_that_pages_for_developers_name_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    names = set(re.findall(r"`([\w/-]+(?:\.(?:rs|py|md)|/))(?:: \w+)?`", text))
    assert len(names) > 20
    folders = ("rust", "python", "tests", "docs", "benches")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    places = [
        f"{path.as_posix()}{'/' * path.is_dir()}" for path in [*found, *(ROOT / each for each in folders)]
    ]
    assert not [name for name in names if not any(place.endswith(f"/{name}") for place in places)]
    functions = re.findall(r"`([\w/]+\.py): (\w+)`", text)
    for name, function in functions:
        sources = [path for path in found if path.as_posix().endswith(f"/{name}")]
        assert any(
            re.search(rf"^(?:def|class) {function}\b", each.read_text("utf-8"), re.M) for each in sources
        )


def test_every_folder_of_modules_is_on_the_map():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}
    assert not [folder.name for folder in folders if f"`{folder.name}/`" not in text]
    crate = {path.parent for path in CRATE.rglob("*.rs") if "tests" not in path.parts} - {CRATE}
    assert not [folder for folder in crate if f"`{folder.relative_to(ROOT).as_posix()}/`" not in text]


def test_a_constraint_of_a_table_is_an_argument_that_is_explained_and_given_again():
    arguments, docs = inspect.signature(spice_rs.select).parameters, argument_docs(spice_rs.select)
    for each in (*SCALARS, *PER_ROW):
        assert arguments[each.name].default is None
        assert docs[each.name]
        assert each.name in inspect.getdoc(spice_rs.select).partition("Args:")[0]
    again = set(SelectionInputs.__annotations__)
    assert {each.name for each in PER_ROW} <= again
    for function in (spice_rs.explain, spice_rs.analyze, spice_rs.write_report):
        assert again <= set(inspect.signature(function).parameters)
        assert again <= set(argument_docs(function))
    with pytest.raises(TypeError, match="unexpected keyword argument 'wieghts'"):
        spice_rs.analyze(spice_rs.select(np.eye(3), 2, conflict_penalty=0), np.eye(3), wieghts=[1, 1, 1])


def test_no_function_of_the_binding_takes_more_than_eight_parameters():
    found = {}
    for path in (ROOT / "rust" / "spice-py" / "src").glob("*.rs"):
        code = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
        for name, parameters in re.findall(r"\bfn (\w+)(?:<[^(]*>)?\(((?:[^()]|\([^()]*\))*)\)", code):
            plain = re.sub(r"<[^<>]*>", "", re.sub(r"<[^<>]*>", "", re.sub(r"\([^()]*\)", "", parameters)))
            found[f"{path.name}: {name}"] = len([each for each in plain.split(",") if each.strip()])
    assert found["selection.rs: select"] == 7
    assert found["analysis.rs: certify"] == 7
    assert {name: count for name, count in found.items() if count > 8} == {}


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("a/first.py", "from pack.b.second import thing\n"),
        ("a/first.py", "def f():\n    from pack.b import second\n"),
        ("a/first.py", "if True:\n    import pack.b.second\n"),
    ],
)
def test_an_edge_put_back_is_found_in_python(tmp_path, file, line):
    package = tmp_path / "pack"
    for name in ("__init__.py", "a/__init__.py", "b/__init__.py", "a/first.py", "b/second.py"):
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (package / "b/second.py").write_text("from pack.a.first import other\n")
    assert circle(python_graph(package)) == []
    assert later(python_graph(package), ["a", "b"]) == []
    (package / file).write_text(line)
    assert set(circle(python_graph(package))) == {"pack.a.first", "pack.b.second"}
    assert later(python_graph(package), ["a", "b"]) == ["pack.a.first -> pack.b.second"]
    inside = "def" in line
    assert (circle(python_graph(package, ["pack.a.first"])) == []) == inside


@pytest.mark.parametrize(
    "line",
    [
        "use crate::b::Thing;",
        "use super::{c::Other, b::{self, Thing}};",
        "pub(super) use super::b::Thing as Else;",
        "fn f() -> super::b::Thing { todo!() }",
        "const X: u8 = crate::b::X;",
    ],
)
def test_an_edge_put_back_is_found_in_rust(tmp_path, line):
    (tmp_path / "lib.rs").write_text("mod a;\nmod b;\nmod c;\npub use a::Other;\n")
    (tmp_path / "a.rs").write_text(
        "// use crate::b::Thing;\n#[cfg(test)]\nmod tests { use crate::b::Thing; }\n"
    )
    (tmp_path / "b.rs").write_text("use crate::a::Other;\n")
    (tmp_path / "c.rs").write_text("")
    assert circle(rust_graph(tmp_path)) == []
    (tmp_path / "a.rs").write_text(line)
    assert set(circle(rust_graph(tmp_path))) == {"crate::a", "crate::b"}


def test_no_test_patches_a_private_name():
    # But for `_core`, the compiled module, whose `select` is the one door of every run.
    private = re.compile(r'setattr\(\s*(?:"[\w.]*\._|[\w.]*\._|\w[\w.]*(?:\([^()]*\))?,\s*"_)(?!_|core\b)')
    assert private.search('monkeypatch.setattr("spice_rs.extraction.loss._CHUNK", 40)')
    assert private.search('monkeypatch.setattr(inputs._Reader, "made", count)')
    assert private.search('monkeypatch.setattr(hub, "_ask", None)')
    assert not private.search('monkeypatch.setattr(SummedLoss, "__call__", stops)')
    own = Path(__file__)
    found = {
        path.name
        for path in own.parent.glob("*.py")
        if path != own and private.search(path.read_text("utf-8"))
    }
    assert not found


ARITHMETIC = {("baselines.py", "NEAR")}
"""Where a baseline's own arithmetic changes its way: no rule of a selection."""


def test_an_analysis_restates_no_rule_and_no_tolerance():
    """What may be picked, what a row is worth and from when on numbers count as equal is the core's to say."""
    compared, tolerances = [], []
    files = sorted((PACKAGE / "analysis").glob("*.py"))
    for path in files:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                whole = ast.unparse(node)
                # `is None` asks whether there is a rule, and not what it says.
                if re.search(r"max_similarity|\blimit\b", whole) and not re.search(
                    r" is (not )?None$", whole
                ):
                    compared.append((path.name, whole))
            elif isinstance(node, ast.Assign) and (path.name, ast.unparse(node.targets[0])) in ARITHMETIC:
                node.value = ast.Constant(0)
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, float)
                and 0 < abs(node.value) < 1e-3
            ):
                tolerances.append((path.name, node.value))
    assert len(files) > 15
    assert compared == []
    assert tolerances == []
