"""`pthserve serve`: serve a model over HTTP until the process is stopped."""

from typing import TYPE_CHECKING

import rich_click as click

from pthserve.cli.options import MODEL, takes_settings
from pthserve.errors import PthserveError
from pthserve.exits import leave
from pthserve.settings import Settings

if TYPE_CHECKING:
    from pthserve.loading.model import Model


@click.command("serve")
@MODEL
@takes_settings()
def command(settings: Settings) -> None:
    """Serve a model over HTTP.

    MODEL is a weights file (.pth, .pt or .safetensors), an exported model (.pt2 or .onnx), a folder that
    contains one and optionally a `model.yaml`, a folder of Hugging Face's `save_pretrained`, a folder
    written by `pthserve pack`, the address of one of these, or `demo`. Each option can also be set as an
    environment variable: `--max-batch` is PTHSERVE_MAX_BATCH.
    """
    from pthserve.cli.display import stages
    from pthserve.loading.loader import Loader
    from pthserve.serving import memory

    memory.configure()
    loader = Loader(settings.model, settings, None if settings.no_cache else settings.cache_size)

    def load() -> "Model":
        with stages(settings.model) as watch:
            return loader(watch)

    from pthserve.server import Server

    try:
        server = Server(settings, load, lambda: loader.stage)
    except OSError as error:
        raise PthserveError(
            f"{error.strerror}; choose another --port, --metrics-port or --grpc-port"
        ) from error
    server.run()
    leave(0)
