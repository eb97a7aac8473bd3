"""`pthserve push`: push a model to an OCI registry."""

from pathlib import Path

import rich_click as click

from pthserve.errors import WeightsError
from pthserve.text import MESSAGE, quoted


def push(model: Path, address: str) -> str:
    """Push a packed model, a folder or a weights file, and return the address with the digest that it has.

    Raises:
        WeightsError: `address` is not an artefact's, or the registry refuses it or cannot be reached.
        PackError: the packed model was changed.
    """
    from pthserve.loading import packed
    from pthserve.sources import artefact
    from pthserve.sources.reference import parse
    from pthserve.sources.signatures import files_of
    from pthserve.sources.transfer import MAX_FILES

    reference = parse(address)
    if reference is None or reference.scheme != "oci" or reference.digest:
        raise WeightsError(f"{quoted(address)}: a model is pushed to oci://registry/name:tag")
    annotations = {"org.opencontainers.image.title": model.resolve().name}
    if packed.is_packed(model):
        made = packed.read(model, graphs=False)
        annotations |= {
            "org.opencontainers.image.title": made.name,
            "org.opencontainers.image.version": made.version,
            "io.pthserve.weights.sha256": made.digest,
        }
    folder, names = model.parent, [model.name]
    if model.is_dir():
        folder, names = model, [name.as_posix() for name in files_of(model)]
    if not 0 < len(names) <= MAX_FILES:
        raise WeightsError(f"{model}: has {len(names)} files; a model has 1 to {MAX_FILES}")
    digest = artefact.push(artefact.image(folder, names, annotations), reference)
    return f"oci://{reference.host}/{reference.path}@{digest}"


@click.command("push")
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.argument("address", metavar="oci://REGISTRY/NAME:TAG")
def command(model: Path, address: str) -> None:
    """Push a model into an OCI registry.

    Prints the address that names exactly this model.

    MODEL is a packed model, a folder with weights and a card, or a weights file. The artefact is an image
    whose files are the model's: `pthserve serve oci://...` reads it, and a Kubernetes volume of type `image`
    mounts it. The same model gives the same digest. Credentials are those of `docker login`.
    """
    click.echo(quoted(push(model, address), MESSAGE))
