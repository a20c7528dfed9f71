"""``docs/errors.md`` and the code have the same errors."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantlora import errors
from quantlora.discovery.diagnosis import DIAGNOSES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "errors.md").read_text()
CODE = [*(ROOT / "quantlora").rglob("*.py"), *ROOT.glob("plugins/*/quantlora_*/**/*.py")]
CLASSES = {name: value for name, value in vars(errors).items() if isinstance(value, type)}

#: What stands for a value, in the page and here.
HOLE = "…"
#: Texts with less than this between two holes say nothing that could be looked up.
SHORT = 8
#: Of a long text, the page need have no more than so many fixed characters.
ENOUGH = 30


def plain(text: str) -> str:
    return " ".join(text.replace("`", "").split())


def template(node: ast.AST) -> str:
    """A string expression with a hole for each value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    return HOLE


def longest(text: str) -> str:
    """The longest piece without a hole."""
    return max((piece.strip() for piece in plain(text).split(HOLE)), key=len)


def raised() -> Iterator[tuple[str, str]]:
    """``(place, text)`` of each error of ours that the code makes with a text on the spot."""
    for file in CODE:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and node.args and _name(node.func) in CLASSES:
                text = template(node.args[0])
                if len(longest(text)) >= SHORT:
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", text


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def rows() -> list[str]:
    """The first cell of each row under a head that begins with ``text``."""
    found = []
    for table in re.findall(r"\| text \|.*?\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE + "\n"):
        found += [line.split(" | ")[0].strip("| ") for line in table.splitlines()]
    return found


def fixed(text: str) -> int:
    """How much of a text does not depend on the case."""
    return len(plain(text).replace(HOLE, ""))


def matches(row: str, text: str) -> bool:
    """Whether ``row``, whose holes stand for anything, is ``text`` or enough of its beginning."""
    pattern = ".*?".join(re.escape(piece.strip()) for piece in plain(row).split(HOLE))
    return fixed(row) >= min(fixed(text) // 4, ENOUGH) and bool(re.match(pattern, plain(text)))


RAISED = dict(raised())


@pytest.mark.parametrize("place", RAISED)
def test_every_text_is_on_the_page(place):
    hint = f"| `{plain(RAISED[place])}` | cause | remedy |"
    found = any(matches(row, RAISED[place]) for row in rows())
    assert found, f"add to docs/errors.md, with cause and remedy:\n{hint}"


@pytest.mark.parametrize("row", rows())
def test_every_text_of_the_page_is_in_the_code(row):
    piece = longest(row)
    assert len(piece) >= SHORT or piece in ("must be", "holds", "the kernel")
    assert piece in STRINGS, f"docs/errors.md has {row}, which no code says"


def _strings() -> str:
    nodes = (node for file in CODE for node in ast.walk(ast.parse(file.read_text())))
    texts = (template(n) for n in nodes if isinstance(n, (ast.Constant, ast.JoinedStr, ast.BinOp)))
    return "\n".join(plain(text) for text in texts)


STRINGS = _strings()


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_on_the_page_with_its_bases(name):
    (line,) = re.findall(rf"^\| `{name}` \| `(\w+)` \|", PAGE, re.M)
    bases = [base.__name__ for base in CLASSES[name].__mro__[1:]]
    assert line in bases


def test_the_page_has_no_class_that_is_gone():
    listed = re.findall(r"^\| `(\w+)` \| `\w+` \|", PAGE, re.M)
    assert set(listed) == set(CLASSES)


@pytest.mark.parametrize("diagnosis", DIAGNOSES, ids=lambda one: one.pattern)
def test_every_diagnosis_is_on_the_page_and_recognises_its_text(diagnosis):
    section = PAGE.split("## Errors of the libraries underneath")[1]
    found = [row for row in section.splitlines() if re.search(diagnosis.pattern, _filled(row))]
    assert found, f"no row of the page is matched by {diagnosis.pattern}"


def _filled(row: str) -> str:
    """The row's text as the library would say it."""
    text = row.split(" | ")[0].replace(f"GLIBC{HOLE}_{HOLE} not found", "GLIBC_2.34' not found")
    text = text.replace("cannot open", "libcudart.so.12: cannot open")
    return plain(text.replace(f"exllama{HOLE}", "exllama_kernels"))
