"""``python -m quantlora.env``."""

import typer

from quantlora.env.command import env

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
app.command()(env)

if __name__ == "__main__":
    app(prog_name="python -m quantlora.env")
