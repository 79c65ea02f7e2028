"""The command line, as `actstore-cli` and `python -m actstore`. One module a command; heavy imports are inside them."""

from actstore.cli import capture as capture
from actstore.cli import demo as demo
from actstore.cli import doctor as doctor
from actstore.cli import exchange as exchange
from actstore.cli import info as info
from actstore.cli import migrate as migrate
from actstore.cli import reconstruct as reconstruct
from actstore.cli import show as show
from actstore.cli import verify as verify
from actstore.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line of this process."""
    app()
