"""`pthserve predict`: classify images with a local model or through a service."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from pthserve.addresses import printable
from pthserve.cli.headers import HEADERS, Header
from pthserve.cli.options import model_options, takes_settings
from pthserve.errors import PthserveError
from pthserve.settings import Settings

if TYPE_CHECKING:
    from pthserve.tasks.base import Row


@click.command("predict")
@click.argument("source", metavar="MODEL|URL")
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--top",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="Number of classes to show per image, most probable first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@HEADERS
@takes_settings(
    *model_options(without=("name", "calibration", "max_batch", "tolerance", "tune_budget", "golden"))
)
def command(
    source: str,
    images: tuple[Path, ...],
    top: int,
    as_json: bool,
    headers: tuple[Header, ...],
    settings: Settings,
) -> None:
    """Run images through a model or through a running service.

    MODEL is the same as for `pthserve serve`. URL is the address of a service, such as http://127.0.0.1:8000.
    No tuning is done: without --plan, the model runs on the default engine.
    """
    remote = source.startswith(("http://", "https://"))
    if headers and not remote:
        raise click.UsageError("--header needs the URL of a service; it has no effect on a local model.")
    answers = (
        _predict_remotely(source, images, top, headers)
        if remote
        else _predict_locally(source, images, top, settings)
    )
    if as_json:
        click.echo(
            json.dumps(
                [{"image": str(image), **answer} for image, answer in zip(images, answers, strict=True)]
            )
        )
        return
    from pthserve.cli.display import predictions, show

    rows = [(str(image), _rows(answer)) for image, answer in zip(images, answers, strict=True)]
    show(predictions(rows))


def _rows(answer: dict[str, Any]) -> "list[Row]":
    """The lines that show an answer, whose `task` says what it is."""
    from pthserve.tasks.choice import TASKS

    task = answer.get("task", "classification")
    if task not in TASKS:
        raise PthserveError(f"the service answers for the task {task}, which this version does not support")
    return TASKS[task].rows(answer)


def _predict_remotely(
    url: str, images: Sequence[Path], top: int, headers: Sequence[Header]
) -> Iterator[dict[str, Any]]:
    import httpx

    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise PthserveError(f"{printable(url)} is not a valid service address") from error
    if address.path == "/":
        address = address.copy_with(path="/predict")
    shown = printable(str(address.copy_with(userinfo=b"")))
    with httpx.Client(headers=list(headers), timeout=60) as client:
        for image in images:
            try:
                reply = client.post(address, params={"top": top}, files={"image": image.read_bytes()})
            except httpx.TransportError as error:
                raise PthserveError(f"{shown} does not respond: {error or type(error).__name__}") from error
            if reply.status_code != httpx.codes.OK:
                raise PthserveError(
                    f"{shown} responds with {reply.status_code} to {image}: {_error_text(reply.text)}"
                )
            yield reply.json()


def _error_text(body: str) -> str:
    """The error message in the response, or its first characters if it is not from pthserve."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200]


def _predict_locally(
    source: str, images: Sequence[Path], top: int, settings: Settings
) -> Iterator[dict[str, Any]]:
    from pthserve.cli import demo
    from pthserve.cli.local import loaded

    model = loaded(demo.resolved(settings.model_copy(update={"model": source})))
    for image in images:
        fields = model(image).to_dict(top)
        yield {name: value.tolist() if hasattr(value, "tolist") else value for name, value in fields.items()}
