"""`pthserve fetch`: download a model and verify it."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import rich_click as click

from pthserve.addresses import shown
from pthserve.cli.headers import HEADERS, Header, has, header_value
from pthserve.cli.options import takes_settings
from pthserve.errors import WeightsError
from pthserve.files import regular_files
from pthserve.options import ModelOptions
from pthserve.settings import Settings
from pthserve.sources.fetched import fetched
from pthserve.sources.reference import parse
from pthserve.sources.transfer import Progress


def fetch(
    source: str,
    output: Path,
    options: ModelOptions,
    *,
    headers: Sequence[Header] = (),
    progress: Progress | None = None,
) -> None:
    """Download the model that `source` names to `output`, which is created only when it is whole and
    verified.

    What has arrived of it is in a folder beside `output`, from which an interrupted download is resumed, in
    this run or in the next. If `output` already is a file with the expected SHA-256, nothing is downloaded.

    Args:
        source: An address; see `sources.reference`.
        output: The file to write, or the folder where the source is one.
        options: Its `sha256`, `max_download` and `require_signature` are used.
        headers: Sent with each request, but not to another host after a redirect.
        progress: Called with the number of bytes received and the total, or None if it is unknown.

    Raises:
        WeightsError: The download failed, the model is a different one, or it cannot be written.
        SignatureError: A signature is required, and there is none that is accepted.
    """
    if parse(source) is None:
        raise WeightsError(
            f"{source} cannot be downloaded: it is a path, not an address such as https://host/a.pth"
        )
    incoming = output.with_name(f".{output.name}.fetch")
    try:
        signed = options.require_signature is not None
        expected = options.sha256 if output.is_file() and not signed else None
        if expected and regular_files.sha256(output) == expected:
            return
        try:
            found = fetched(source, options.model_copy(update={"cache_dir": incoming}), progress, headers)
            if options.sha256 and found.is_dir():
                _check_folder(source, found, options.sha256)
            _put(found, output)
            shutil.rmtree(incoming)
        finally:
            if not any(incoming.rglob("*.part")) and not any(incoming.rglob("incoming.json")):
                shutil.rmtree(incoming, ignore_errors=True)  # there is nothing to resume
    except OSError as error:
        raise WeightsError(f"cannot write {output}: {error.strerror}") from error


def _check_folder(source: str, folder: Path, sha256: str) -> None:
    """Refuse a folder whose weights are other ones."""
    from pthserve.loading import packed

    if packed.is_packed(folder):
        digests = {packed.read(folder, graphs=False).digest}
    else:
        digests = {regular_files.sha256(file) for file in folder.rglob("*") if file.is_file()}
    if sha256 not in digests:
        raise WeightsError(
            f"{shown(source)} is not the expected model: no weights with SHA-256 {sha256} are in it"
        )


def _put(found: Path, output: Path) -> None:
    """Give what was fetched its name, and its signature one beside it; a model that is there is replaced."""
    output.parent.mkdir(parents=True, exist_ok=True)
    signature = found.with_name(f"{found.name}.sig")
    if found.is_file() and signature.exists():
        signature.replace(output.with_name(f"{output.name}.sig"))
    if output.is_dir() and found.is_dir():
        old = output.with_name(f".{output.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        output.rename(old)
        found.rename(output)
        shutil.rmtree(old)
    else:
        found.replace(output)


@click.command("fetch")
@click.argument("source")
@click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), help="File or folder to write."
)
@click.option(
    "--authorization",
    envvar="PTHSERVE_FETCH_AUTHORIZATION",
    type=header_value,
    metavar="VALUE",
    help="Value of the Authorization header for https. Other users of the machine can see a command line, "
    "so set "
    "the environment variable PTHSERVE_FETCH_AUTHORIZATION instead.",
)
@HEADERS
@takes_settings("sha256", "max_download", "require_signature")
def command(
    source: str,
    output: Path,
    authorization: bytes | None,
    headers: tuple[Header, ...],
    settings: Settings,
) -> None:
    """Download a model and verify it.

    SOURCE is an address that begins with https://, s3://, gs://, az://, hf:// or oci://. Give the SHA-256 of
    a file with --sha256. An interrupted download is resumed, in the same run or in the next.
    """
    from pthserve.cli.display import reading

    if authorization and not has(headers, b"Authorization"):
        headers = (*headers, (b"Authorization", authorization))
    with reading(output.name) as progress:
        fetch(source, output, settings, headers=headers, progress=progress)
