"""The command line: one module a command, imported when the command is called and no sooner."""

import importlib
import logging
import traceback
from typing import Any

import rich_click as click

import pthserve
from pthserve.errors import PthserveError
from pthserve.exits import code, leave

COMMANDS = {
    "serve": "Serve a model over HTTP.",
    "inspect": "Say what is in a weights file, or in a packed model.",
    "predict": "Classify images, here or at a service.",
    "tune": "Measure what this machine can run a model with.",
    "pack": "Make a folder of a model, which is served without torch.",
    "golden": "Write the answers that a model must give into its card, or check them.",
    "bench": "Measure a service: latency, throughput, goodput.",
    "fetch": "Bring a weights file from an address, whole and checked.",
}
"""Name to what it does; `commands/<name>.py` holds it as `command`."""

NOT_IN_EVERY_INSTALLATION = {"torch", "torchvision", "nncf", "safetensors"}


class Lazy(click.RichCommand):
    """A command by name and summary, which is imported when it is called."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the command itself."""
        command: click.RichCommand = importlib.import_module(f"pthserve.commands.{self.name}").command
        return command.make_context(info_name, args, parent, **extra)


@click.group(
    commands=[Lazy(name=name, help=summary) for name, summary in COMMANDS.items()],
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 fine, 2 wrong usage, 3 the model cannot be loaded, 4 the golden images disagree, 1 "
    "anything else.",
)
@click.version_option(pthserve.__version__, prog_name="pthserve")
def app() -> None:
    """Drop in a `.pth`, get a service."""


def main() -> None:
    """Run the command line, and exit."""
    try:
        app(prog_name="pthserve")
    except PthserveError as error:
        if logging.getLogger("pthserve").isEnabledFor(logging.DEBUG):
            leave(code(error), traceback.format_exc().rstrip())
        leave(code(error), f"pthserve: {error}")
    except ModuleNotFoundError as error:
        if error.name not in NOT_IN_EVERY_INSTALLATION:
            raise
        leave(
            1,
            f"pthserve: this takes {error.name}, which is not installed: `pip install 'pthserve[build]'`, or "
            "use a model that `pthserve pack` made where it is",
        )
