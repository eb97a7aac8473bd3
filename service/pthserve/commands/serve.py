"""`pthserve serve`: a model over HTTP, until it is told to stop."""

import rich_click as click

from pthserve.commands.options import MODEL, takes_settings
from pthserve.errors import PthserveError
from pthserve.settings import Settings


@click.command("serve")
@MODEL
@takes_settings()
def command(settings: Settings) -> None:
    """Serve a model over HTTP.

    MODEL is a weights file (.pth, .pt, .safetensors), a folder with one and perhaps a `model.yaml`, a folder
    that `pthserve pack` made, or `demo`. Each option can be given in the
    environment too: `--max-batch` is PTHSERVE_MAX_BATCH.
    """
    from pthserve.commands.display import reading
    from pthserve.http.server import Server
    from pthserve.model import Model
    from pthserve.model.load import load

    def loaded() -> Model:
        with reading(settings.model) as progress:
            return load(settings.model, settings, progress)

    try:
        server = Server(settings, loaded)
    except OSError as error:
        raise PthserveError(
            f"{error.strerror}; choose another --port, --metrics-port or --grpc-port"
        ) from error
    server.run()
