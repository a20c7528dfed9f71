"""What MkDocs must be told: pages from files outside ``docs/``, and pictures without a network.

The pages are read in editors and on code hosts too, so they link to each other and to code by the
paths of the repository. A linked file that is no page of ``docs/`` becomes one here: the README is
the first page, code is shown as code.
"""

from __future__ import annotations

import importlib.util
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]

#: Pages made from files of the repository's top folder.
TOP = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
#: Files that a page shows and that have none of their own.
PICTURES = (".png", ".svg")
#: The notebook, and the page that is made of it.
NOTEBOOK, TUTORIAL = "docs/tutorial.ipynb", "tutorial.md"
#: How a file of code is shown.
LANGUAGES = {".py": "python", ".pyi": "python", ".toml": "toml", ".txt": "text", ".yml": "yaml"}

LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]*)(#[^)\s]*)?\)")
MERMAID = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)
COMMENT = re.compile(r"^<!--.*?-->\n?", re.DOTALL | re.MULTILINE)


def page_of(path: str) -> str:
    """The page of the site, as MkDocs names its source, for a path of the repository."""
    if path in TOP:
        return TOP[path]
    if path == NOTEBOOK:
        return TUTORIAL
    if path.startswith("docs/") and path.count("/") == 1 and path.endswith(".md"):
        return path.removeprefix("docs/")
    return f"source/{path}/index.md" if (ROOT / path).is_dir() else f"source/{path}.md"


def path_of(page: str) -> str:
    """The path in the repository of a page of the site."""
    for path, name in TOP.items():
        if name == page:
            return path
    if not page.startswith("source/"):
        return f"docs/{page}"
    return page.removeprefix("source/").removesuffix("/index.md").removesuffix(".md")


def links_of(text: str, path: str) -> dict[str, str]:
    """Paths of the repository by link target, of the text at ``path``; none that is missing.

    Pictures are no pages: MkDocs copies them, and they are linked to as they are.
    """
    here = posixpath.dirname(path)
    targets = {match[1] for match in LINK.finditer(text)}
    found = {target: posixpath.normpath(posixpath.join(here, target)) for target in targets}
    pages = {target: full for target, full in found.items() if not full.endswith(PICTURES)}
    return {target: full for target, full in pages.items() if (ROOT / full).exists()}


def text_of(path: str) -> str:
    """The Markdown that shows a file or a folder of the repository."""
    file = ROOT / path
    if path == f"docs/{TUTORIAL}":
        return str(_notebook().as_markdown())
    if file.is_dir():
        names = sorted(one.name for one in file.iterdir() if one.suffix in {".py", ".md", ".toml"})
        return f"# {path}\n\n" + "\n".join(f"- [{name}]({file.name}/{name})" for name in names)
    if file.suffix == ".md":
        return file.read_text()
    language = LANGUAGES.get(file.suffix, "text")
    return f"# {file.name}\n\n`{path}`\n\n````{language}\n{file.read_text()}````\n"


def on_files(files: Files, config: Any) -> Files:
    """Add the notebook's page, and one for each file that is linked to, also from such a page."""
    tutorial = File.generated(config, TUTORIAL, content=text_of(f"docs/{TUTORIAL}"))
    files.append(tutorial)
    todo = [*TOP, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(todo)
    while todo:
        path = todo.pop()
        text = text_of(path)
        new = {*links_of(text, path).values()} - seen if not is_code(path) else set()
        todo += sorted(new)
        seen |= new
        if files.get_file_from_path(page_of(path)) is None:
            level = InclusionLevel.INCLUDED if path in TOP else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, page_of(path), content=text, inclusion=level))
    return files


def _notebook() -> Any:
    """The module beside this one: hooks are loaded by their path, not as a package."""
    spec = importlib.util.spec_from_file_location(
        "notebook", Path(__file__).with_name("notebook.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_code(path: str) -> bool:
    """Whether a path is shown as code, in which nothing is a link."""
    return (ROOT / path).is_file() and not path.endswith(".md")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to pages of the site, pictures in place of their sources, no notes for the tests."""
    path = path_of(page.file.src_uri)
    if is_code(path):
        return markdown
    links = links_of(markdown, path)
    here = posixpath.dirname(page.file.src_uri)

    def linked(match: re.Match[str]) -> str:
        full = links.get(match[1])
        if full is None:
            return match[0]
        target = posixpath.relpath(page_of(full), here or ".")
        return f"]({target}{match[2] or ''})"

    return with_pictures(COMMENT.sub("", LINK.sub(linked, markdown)), Path(path).stem)


def with_pictures(markdown: str, page: str) -> str:
    """Each mermaid source replaced by its drawing, ``docs/pictures/<page>-<number>.svg``."""
    numbers = iter(range(1, 100))
    drawing = lambda _: (ROOT / f"docs/pictures/{page}-{next(numbers)}.svg").read_text()  # noqa: E731
    return MERMAID.sub(lambda match: f'<div class="drawing">{drawing(match)}</div>\n', markdown)
