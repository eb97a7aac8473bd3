"""`pthserve predict`: what is in these images, said by a model here or by a service."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from pthserve.commands.options import takes_settings
from pthserve.errors import PthserveError
from pthserve.settings import Settings


@click.command("predict")
@click.argument("source", metavar="MODEL|URL")
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Best classes to show.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
@click.option("--header", "-H", "headers", multiple=True, help="Sent to a service: `Name: value`.")
@takes_settings(
    "sha256",
    "allow_code",
    "device",
    "engine",
    "precision",
    "decode",
    "threads",
    "max_pixels",
    "plan",
    "cache_dir",
)
def command(
    source: str,
    images: tuple[Path, ...],
    top: int,
    as_json: bool,
    headers: tuple[str, ...],
    settings: Settings,
) -> None:
    """Classify images, here or at a service.

    MODEL is what `pthserve serve` takes; URL is the address of a service, such as http://127.0.0.1:8000.
    Nothing is measured beforehand: without a plan the model runs on the default engine.
    """
    remote = source.startswith(("http://", "https://"))
    answers = _ask(source, images, top, headers) if remote else _predict(source, images, top, settings)
    if as_json:
        click.echo(
            json.dumps(
                [{"image": str(image), **answer} for image, answer in zip(images, answers, strict=True)]
            )
        )
        return
    from pthserve.commands.display import predictions, show

    rows = [
        (str(image), [(best["label"], best["probability"]) for best in answer["top"]])
        for image, answer in zip(images, answers, strict=True)
    ]
    show(predictions(rows))


def _ask(url: str, images: Sequence[Path], top: int, headers: Sequence[str]) -> Iterator[dict[str, Any]]:
    import httpx

    address = httpx.URL(url)
    if address.path == "/":
        address = address.copy_with(path="/predict")
    sent = dict(header.split(":", 1) for header in headers if ":" in header)
    with httpx.Client(headers=sent, timeout=60) as client:
        for image in images:
            try:
                reply = client.post(address, params={"top": top}, files={"image": image.read_bytes()})
            except httpx.TransportError as error:
                raise PthserveError(f"{address} does not answer: {error or type(error).__name__}") from error
            if reply.status_code != httpx.codes.OK:
                raise PthserveError(f"{address} answers {reply.status_code} to {image}: {_said(reply.text)}")
            yield reply.json()


def _said(body: str) -> str:
    """The error's own words, where the answer is a pthserve's."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200]


def _predict(source: str, images: Sequence[Path], top: int, settings: Settings) -> Iterator[dict[str, Any]]:
    import numpy as np

    from pthserve.commands.local import loaded, probabilities

    model = loaded(settings.model_copy(update={"model": source}))
    for found in probabilities(model, images, settings):
        order = np.argsort(-found, kind="stable")[:top].tolist()
        yield {
            "class_index": order[0],
            "label": model.labels[order[0]],
            "probabilities": found.tolist(),
            "top": [
                {
                    "class_index": index,
                    "label": model.labels[index],
                    "probability": float(found[index]),
                }
                for index in order
            ],
        }
