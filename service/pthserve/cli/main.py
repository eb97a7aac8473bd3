"""The command line: one module per command, imported only when the command is called."""

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
    "inspect": "Show what a weights file or a packed model contains.",
    "predict": "Run images through a model or through a running service.",
    "score": "Run many images through a model, and write the answers to Parquet files.",
    "tune": "Find the fastest way to run a model on this machine.",
    "pack": "Write a packed model: a folder that is served without PyTorch.",
    "golden": "Record or check the expected results for golden images.",
    "init": "Write a `model.yaml` with everything that was inferred about a model.",
    "import": "Import a model archive of TorchServe.",
    "compare": "Compare the preprocessing and results of your training script with those of a model.",
    "bench": "Measure the latency and throughput of a service.",
    "size": "Calculate how many pods a model needs for a rate and a latency.",
    "fetch": "Download a model and verify it.",
    "push": "Push a model into an OCI registry.",
    "attest": "Write down what a release has shown at a rollout.",
    "sign": "Sign a model with a private key.",
    "verify": "Verify the signature of a model.",
}
"""Command name to summary; each is the function `command` in `cli/<name>.py`, or as MODULES says."""

MODULES = {"import": "import_archive"}
"""Modules of commands whose names are words of Python."""

NOT_IN_EVERY_INSTALLATION = {"torch", "torchvision", "nncf", "safetensors"}


class Lazy(click.RichCommand):
    """A command, known by name and summary, whose module is imported when it is called."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Import the command and make its context."""
        module = MODULES.get(str(self.name), self.name)
        command: click.RichCommand = importlib.import_module(f"pthserve.cli.{module}").command
        return command.make_context(info_name, args, parent, **extra)


@click.group(
    commands=[Lazy(name=name, help=summary) for name, summary in COMMANDS.items()],
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 success, 1 other errors, 2 wrong usage, 3 the model cannot be loaded, 4 a "
    "golden image "
    "failed, 5 `compare` found a difference, 6 images that `score` could not read.",
)
@click.version_option(pthserve.__version__, prog_name="pthserve")
def app() -> None:
    """Serve PyTorch vision models: drop in a `.pth`, get a service."""


def main() -> None:
    """Run the command line and exit."""
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
            f"pthserve: this needs {error.name}, which is not installed: run `pip install 'pthserve[build]'` "
            "or use a model that was packed on a machine that has it",
        )
