"""`pthserve predict`: classify images with a local model or through a service."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from pthserve.addresses import printable
from pthserve.cli.headers import HEADERS, Header
from pthserve.cli.numbers import Number
from pthserve.cli.options import model_options, takes_settings
from pthserve.errors import PthserveError, RequestError
from pthserve.settings import Settings

_OF_THE_IMAGE = (400, 413, 415, 422)
"""Statuses by which a service refuses one image; others follow whatever the image."""

if TYPE_CHECKING:
    from pthserve.images.spec import Spec
    from pthserve.tasks.base import Drawn, Row


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
@click.option(
    "--threshold",
    type=Number(0, 1),
    help="Minimum score of a listed object, for a model that detects objects; default: the model's.",
)
@click.option(
    "--max", "most", type=click.IntRange(1), help="Maximum number of objects to list, highest score first."
)
@click.option(
    "--draw",
    type=click.Path(dir_okay=False, path_type=Path),
    help="PNG file to write, with the result drawn over the image. Needs one image, and a model that "
    "detects objects or segments images.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@HEADERS
@takes_settings(
    *model_options(
        without=("name", "calibration", "weight_bits", "max_batch", "tolerance", "tune_budget", "golden")
    )
)
def command(
    source: str,
    images: tuple[Path, ...],
    top: int,
    threshold: float | None,
    most: int | None,
    draw: Path | None,
    as_json: bool,
    headers: tuple[Header, ...],
    settings: Settings,
) -> None:
    """Run images through a model or through a running service.

    MODEL is the same as for `pthserve serve`. URL is the address of a service, such as http://127.0.0.1:8000.
    An image that cannot be read is reported after the others, and the exit code is 1.

    No tuning is done: without --plan, the model runs on the default engine.
    """
    remote = source.startswith(("http://", "https://"))
    if headers and not remote:
        raise click.UsageError("--header needs the URL of a service; it has no effect on a local model.")
    if draw and len(images) != 1:
        raise click.UsageError("--draw needs one image.")
    objects = {"threshold": threshold, "max": most}
    query = {name: str(value) for name, value in objects.items() if value is not None}
    answers = (
        _predict_remotely(source, images, {"top": str(top), **query}, headers, draw)
        if remote
        else _predict_locally(source, images, top, query, settings, draw)
    )
    found = list(zip(images, answers, strict=True))
    if as_json:
        click.echo(
            json.dumps(
                [
                    {"image": str(image), **(answer if isinstance(answer, dict) else {"error": str(answer)})}
                    for image, answer in found
                ]
            )
        )
    else:
        _show(found)
    failures = [answer for _, answer in found if not isinstance(answer, dict)]
    for failure in failures[:-1]:
        click.echo(f"pthserve: {failure}", err=True)
    if failures:
        raise failures[-1]


def _show(found: Iterable[tuple[Path, dict[str, Any] | PthserveError]]) -> None:
    """Print a table of the images that were classified."""
    from pthserve.cli.display import predictions, show

    rows = [(str(image), _rows(answer)) for image, answer in found if isinstance(answer, dict)]
    if rows:
        show(predictions(rows))


def _rows(answer: dict[str, Any]) -> "list[Row]":
    """The lines that show an answer, whose `task` says what it is."""
    from pthserve.tasks.choice import TASKS

    task = answer.get("task", "classification")
    if task not in TASKS:
        raise PthserveError(f"the service answers for the task {task}, which this version does not support")
    return TASKS[task].rows(answer)


def _predict_remotely(
    url: str, images: Sequence[Path], query: Mapping[str, str], headers: Sequence[Header], draw: Path | None
) -> Iterator[dict[str, Any] | PthserveError]:
    """What the service answers to each image, or why it refuses one; raises PthserveError where it fails."""
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
                reply = client.post(address, params=query, files={"image": image.read_bytes()})
                picture = reply
                if draw and reply.status_code == httpx.codes.OK:
                    files = {"image": image.read_bytes()}
                    drawn = {**query, "picture": "overlay"}
                    picture = client.post(address, params=drawn, files=files, headers={"Accept": "image/png"})
            except httpx.TransportError as error:
                raise PthserveError(f"{shown} does not respond: {error or type(error).__name__}") from error
            if reply.status_code == picture.status_code == httpx.codes.OK:
                if draw:
                    draw.write_bytes(picture.content)
                yield reply.json()
                continue
            reply = picture
            failure = PthserveError(
                f"{shown} responds with {reply.status_code} to {image}: {_error_text(reply.text)}"
            )
            if reply.status_code not in _OF_THE_IMAGE:
                raise failure
            yield failure


def _error_text(body: str) -> str:
    """The error message in the response, or its first characters if it is not from pthserve."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200]


def _predict_locally(
    source: str,
    images: Sequence[Path],
    top: int,
    query: Mapping[str, str],
    settings: Settings,
    draw: Path | None,
) -> Iterator[dict[str, Any] | PthserveError]:
    """The answer for each image, or why it cannot be read."""
    from pthserve.cli import demo
    from pthserve.cli.display import show_notes
    from pthserve.cli.local import loaded
    from pthserve.tasks.base import Selects

    model = loaded(demo.resolved(settings.model_copy(update={"model": source})))
    show_notes(model)
    if draw and not isinstance(model.task, Selects):
        raise click.UsageError(
            f"--draw is for a model that detects objects or segments images; this one {model.does}."
        )
    known = {one.name for one in model.task.query} if isinstance(model.task, Selects) else set()
    if not query.keys() <= known:
        raise click.UsageError(
            f"--threshold and --max are for a model that detects objects; this one {model.does}."
        )
    for image in images:
        try:
            answer = model(image)
            if isinstance(model.task, Selects):
                answer = model.task.selection(query)(answer)
            fields = answer.to_dict(top)
            if draw:
                _draw(answer, image, model.spec, draw)
        except RequestError as error:
            yield error
        else:
            yield {name: one.tolist() if hasattr(one, "tolist") else one for name, one in fields.items()}


def _draw(answer: "Drawn", image: Path, spec: "Spec", file: Path) -> None:
    """Draw the answer over `image`, which was read, into `file`."""
    from PIL import Image, ImageOps

    with Image.open(image) as picture:
        upright = ImageOps.exif_transpose(picture) if spec.exif else picture
        answer.draw(upright.convert("RGB")).save(file, "PNG")
