"""`env_report`: the report as an object, in a notebook and in print."""

from __future__ import annotations

import quantlora
from quantlora.env.report import make_report
from quantlora.env.rows import summary


def test_the_page_has_the_verdict_first_and_every_backend() -> None:
    page = quantlora.env_report()._repr_html_()
    verdict = summary(make_report())
    assert verdict in page.partition("<table")[0]
    assert all(f">{b.verdict.backend}</td>" in page for b in make_report().backends)


def test_it_prints_as_for_an_issue() -> None:
    assert str(quantlora.env_report("bitsandbytes_4bit")).startswith("<details>")
