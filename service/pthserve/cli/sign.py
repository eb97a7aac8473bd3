"""`pthserve sign`: sign a model with a private key."""

from pathlib import Path

import rich_click as click

from pthserve.text import MESSAGE, quoted


@click.command("sign")
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--key",
    "-k",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM file with a private key on the curve P-256, P-384 or P-521. The password of an encrypted key "
    "is "
    "read from PTHSERVE_SIGNING_PASSWORD.",
)
def command(model: Path, key: Path) -> None:
    """Sign a model with a private key.

    The format is that of OpenSSF Model Signing. MODEL is a packed model, a folder with weights and a card, or
    a weights file. The signature of a folder is `model.sig` in it; that of a file is `FILE.sig` beside it,
    and covers this file alone.
    """
    from pthserve.sources.signatures import sign

    click.echo(quoted(f"{sign(model, key)}: written", MESSAGE))
