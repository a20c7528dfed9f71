"""``quantlora inspect`` of an adapter's folder."""

from __future__ import annotations

import json as json_format

import typer


def told_of_adapter(folder: str, json: bool) -> bool:
    """Print what is known of the adapter in ``folder``; False where there is none."""
    from rich.console import Console

    from quantlora.env.clean_output import strays_to_stderr

    with strays_to_stderr():
        from quantlora.inspection.adapter_folder import inspect_adapter, is_adapter_folder
        from quantlora.inspection.show_adapter import show_adapter

        if not is_adapter_folder(folder):
            return False
        found = inspect_adapter(folder)
    if json:
        typer.echo(json_format.dumps(found.as_json(), indent=2))
    else:
        show_adapter(found, Console(highlight=False))
    return True
