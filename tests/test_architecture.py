"""The rules that hold the design together; what is only a convention drifts."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import quantlora
from quantlora import hookspecs

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENTRY_POINTS = PROJECT["project"]["entry-points"]["quantlora"]
PLUGIN_FOLDERS = sorted(path.parent for path in ROOT.glob("plugins/*/quantlora_*"))
CORE = sorted([*ROOT.glob("quantlora/**/*.py"), ROOT / "quantlora" / "__init__.pyi"])
PLUGIN_CODE = sorted(ROOT.glob("plugins/*/quantlora_*/**/*.py"))

#: Longest file, in lines: one concept fits.
LIMIT = 250

#: The rooms of the core from the ground up: each imports only from those before it, types
#: included. The table in docs/design.md says what is done in them.
ROOMS = (
    "errors", "names", "suggestions", "units", "html_tables", "commands", "requirements", "checks",
    "hardware", "transformers_models", "files", "formats", "config", "experts", "layers",
    "initializers", "hookspecs", "builtin", "discovery", "adapters", "wrapping", "distributed",
    "merging", "training", "checkpoint", "combining", "exporting", "loading", "bridge",
    "wrapped_model", "peft", "inspection", "operations", "env", "testing", "cli",
)  # fmt: skip

#: Modules of quantlora that a plugin may import from besides `quantlora` itself: they do not
#: import torch, so an entry point may.
LIGHT = {
    "quantlora.checks",
    "quantlora.commands",
    "quantlora.errors",
    "quantlora.hookspecs",
    "quantlora.requirements",
    "quantlora.suggestions",
    "quantlora.testing",
}


#: Where a plugin keeps what each hook returns: a file, or a folder, of this name.
PLUGIN_FILES = {
    "quantlora_quantizers": "quantizer",
    "quantlora_layer_wrappers": "layer",
    "quantlora_initializers": "initializers",
    "quantlora_loaders": "loader",
    "quantlora_checks": "requires",
    "quantlora_commands": "command",
}


def public_names() -> set[str]:
    stub = ast.parse((ROOT / "quantlora" / "__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def imports_of(file: Path) -> Iterator[tuple[str, list[str]]]:
    """``(module, names)`` for each import, wherever it stands in the file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", [alias.name for alias in node.names]


def relative(files: list[Path]) -> list[str]:
    return [str(file.relative_to(ROOT)) for file in files]


@pytest.mark.parametrize("file", relative(CORE))
def test_no_file_of_the_core_contains_a_plugins_name(file):
    text = (ROOT / file).read_text()
    names = "|".join(ENTRY_POINTS)
    found = re.findall(rf"(?<![\w-])({names})(?![\w-])", text)
    assert not found, f"{file} speaks of plugins: {sorted(set(found))}"


@pytest.mark.parametrize("file", relative(PLUGIN_CODE))
def test_a_plugin_imports_only_public_names(file):
    public, own = public_names(), Path(file).parts[2]
    for module, names in imports_of(ROOT / file):
        if module == "quantlora":
            assert set(names) <= public, f"{file}: {set(names) - public} are not public"
        elif module.startswith("quantlora."):
            assert module in LIGHT, f"{file}: {module} is not for plugins; see docs/plugins.md"
        elif module.startswith("quantlora_"):
            assert module.split(".")[0] == own, f"{file} imports another plugin, {module}"


@pytest.mark.parametrize("file", relative(CORE))
def test_the_core_imports_no_plugin(file):
    assert not any(module.startswith("quantlora_") for module, _ in imports_of(ROOT / file))


@pytest.mark.parametrize("file", relative([*CORE, *PLUGIN_CODE]))
def test_a_file_is_one_concept_long(file):
    lines = len((ROOT / file).read_text().splitlines())
    assert lines <= LIMIT, f"{file} has {lines} lines, more than {LIMIT}: split it by concept"


def imported_modules(file: Path) -> set[str]:
    """Full names of what ``file`` imports of the core, wherever the import stands."""
    found = {f"{module}.{name}" for module, names in imports_of(file) for name in names}
    found |= {module for module, _ in imports_of(file)}
    return {module for module in found if module.startswith("quantlora.")}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_before_it(room):
    here = ROOT / "quantlora" / room
    files = sorted(here.rglob("*.py")) if here.is_dir() else [here.with_suffix(".py")]
    above = set(ROOMS[ROOMS.index(room) + 1 :])
    found = {(file.name, module) for file in files for module in imported_modules(file)}
    assert not {(file, module) for file, module in found if module.split(".")[1] in above}


@pytest.mark.parametrize("room", [room for room in ROOMS if (ROOT / "quantlora" / room).is_dir()])
def test_every_room_has_tests_of_its_own(room):
    assert list((ROOT / "tests" / room).glob("test_*.py")), f"tests/{room}/ has no test"


def test_every_file_of_the_core_is_in_a_room():
    parts = {file.relative_to(ROOT / "quantlora").parts[0].split(".")[0] for file in CORE}
    assert parts - {"__init__", "__main__"} == set(ROOMS)


def test_the_design_page_lists_the_rooms_in_order():
    page = (ROOT / "docs" / "design.md").read_text()
    table = page[page.index("## The rooms") :]
    listed = re.findall(r"\[`?(\w+)`?\]\(\.\./quantlora/(\w+)(?:\.py)?\)", table)
    assert tuple(folder for _, folder in listed) == ROOMS


def files_of(modules: Iterable[str]) -> set[Path]:
    paths = ((ROOT / module.replace(".", "/")).with_suffix(".py") for module in modules)
    return {path for path in paths if path.is_file()}


def test_no_file_imports_itself_by_a_detour():
    arrows = {file: files_of(imported_modules(file)) - {file} for file in CORE}
    while free := [file for file, to in arrows.items() if not to & arrows.keys()]:
        for file in free:
            del arrows[file]
    assert not [str(file.relative_to(ROOT)) for file in arrows]


#: Private words of the first version, and what the field calls the thing; in code and docs.
PRIVATE_WORDS = {
    "holder": "AdapterModule, owner or targets, by what holds what",
    "at_hand": "onloaded",
    "at hand": "onloaded, or available",
    "skeleton": "meta model",
    "books": "bookkeeping",
    "put aside": "disabled",
    "aside": "disabled",
    "mend": "fix",
    "Mend": "Fix",
    "SavedModule": "ModulesToSaveWrapper",
    "What is left": "Output files",
    "tried to lose": "attempts to lose data",
    "adapters that count": "active adapters",
    "adapter counts": "an adapter is active",
}
#: The same for names in code: of variables, arguments, attributes, functions and classes.
PRIVATE_NAMES = {
    "one": "what the variable holds: layer, tensor, adapter, ...",
    "place": "location, device, factory_kwargs, model_id_or_path or position",
    "places": "locations or positions",
    "stored": "checkpoint_tensors, to_storage, CheckpointFormat or read_back",
    "StoredFormat": "CheckpointFormat",
    "Tokens": "a tokenizer",
    "fitting": "match tensors",
    "fitted": "match tensors",
    "counts": "active, applied, or what is counted",
    "tables": "by name",
}


@pytest.mark.parametrize("word", PRIVATE_WORDS)
def test_code_and_docs_use_the_words_of_the_field(word):
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    files = [*CORE, *PLUGIN_CODE, *pages]
    found = [f for f in files if re.search(rf"(?<![\w-]){word}(?![\w-])", f.read_text())]
    assert not found, f"say {PRIVATE_WORDS[word]}: {relative(found)}"


def names_in(file: Path) -> Iterator[str]:
    """The names that ``file`` gives or uses."""
    for node in ast.walk(ast.parse(file.read_text())):
        for field in ("id", "arg", "attr", "name", "asname"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                yield name.strip("_")


@pytest.mark.parametrize("file", relative([*CORE, *PLUGIN_CODE]))
def test_a_name_says_what_the_thing_is(file):
    found = PRIVATE_NAMES.keys() & {*names_in(ROOT / file)}
    assert not found, f"{file}: " + "; ".join(
        f"{name}: say {PRIVATE_NAMES[name]}" for name in found
    )


def test_entry_points_packages_and_folders_agree():
    packages = {f"plugins/{p.name}/quantlora_{p.name}" for p in PLUGIN_FOLDERS}
    hatch = PROJECT["tool"]["hatch"]["build"]
    assert set(ENTRY_POINTS) == {folder.name for folder in PLUGIN_FOLDERS}
    assert set(hatch["targets"]["wheel"]["packages"]) == {"quantlora", *packages}
    assert set(hatch["dev-mode-dirs"]) == {".", *(f"plugins/{p.name}" for p in PLUGIN_FOLDERS)}
    mypy_path = PROJECT["tool"]["mypy"]["mypy_path"].split(":")
    assert set(mypy_path) == {f"plugins/{p.name}" for p in PLUGIN_FOLDERS}


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_is_the_file_plugin_of_its_own_package(name):
    assert ENTRY_POINTS[name] == f"quantlora_{name}.plugin"


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_what_a_plugin_offers_stands_in_the_file_of_that_name(name):
    folder = ROOT / "plugins" / name / f"quantlora_{name}"
    hooks = (folder / "plugin.py").read_text()
    wanted = {file for hook, file in PLUGIN_FILES.items() if f"def {hook}(" in hooks}
    assert wanted <= {path.stem for path in folder.iterdir()}
    assert wanted, f"{name} offers nothing"


@pytest.mark.parametrize("folder", relative(PLUGIN_FOLDERS))
def test_a_plugin_has_a_readme_and_tests(folder):
    assert (ROOT / folder / "README.md").is_file()
    assert list((ROOT / folder / "tests").glob("test_*.py"))


def test_hooks_lists_every_hookspec():
    marked = [
        name
        for name, value in vars(hookspecs).items()
        if inspect.isfunction(value) and hasattr(value, "quantlora_spec")
    ]
    assert tuple(marked) == hookspecs.HOOKS


@pytest.mark.parametrize("hook", hookspecs.HOOKS)
def test_every_hook_is_documented_with_an_example(hook):
    page = (ROOT / "docs" / "hooks.md").read_text()
    assert f"### `{hook}`" in page
    assert f"def {hook}()" in page
    assert f"def {hook}()" in inspect.getdoc(getattr(hookspecs, hook))


@pytest.mark.parametrize("hook", hookspecs.HOOKS)
def test_every_hook_has_a_test(hook):
    tests = (ROOT / "tests" / "discovery" / "test_hooks.py").read_text()
    assert f"def test_{hook.removeprefix('quantlora_')}_" in tests


def test_every_public_name_can_be_imported():
    for name in public_names():
        assert getattr(quantlora, name) is not None


def test_versions_agree():
    assert quantlora.__version__ == PROJECT["project"]["version"]
