"""`pthserve score`: run many images through a model, and write the answers to Parquet files."""

import os
import re
import signal
from typing import TYPE_CHECKING, Any

import rich_click as click

from pthserve.cli.numbers import Number
from pthserve.cli.options import model_options, takes_settings
from pthserve.errors import PthserveError
from pthserve.exits import IMAGES_FAILED, leave
from pthserve.scoring.request import MAX_BYTES, PART_ROWS, WHOLE, Request, Shard
from pthserve.settings import Settings
from pthserve.text import MESSAGE, quoted

if TYPE_CHECKING:
    from pthserve.loading.model import Model
    from pthserve.scoring.run import Summary

INDEX = "JOB_COMPLETION_INDEX"
"""The variable with the number of a pod in an Indexed Job of Kubernetes, from 0."""
_STOPPED = "pthserve: stopped; run the same command again to continue"


@click.command("score")
@click.argument("model")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--output", "-o", required=True, help="Folder for the results, or an address such as s3://bucket/key."
)
@click.option(
    "--column",
    help="Column of a CSV file that names the images. Default: the first of path, image, url and others.",
)
@click.option(
    "--max-errors",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Number of images that may fail without an exit code of 6. All others are scored in any case.",
)
@click.option(
    "--shard",
    metavar="I/N",
    help="Score the share I, from 0, of N shares. In an Indexed Job, `--shards` is enough.",
)
@click.option("--shards", type=click.IntRange(1), help=f"Number of shares; {INDEX} says which to score.")
@click.option(
    "--part-rows",
    default=PART_ROWS,
    show_default=True,
    type=click.IntRange(1, 10**7),
    help="Number of rows per Parquet file, and the most that are scored again after a kill.",
)
@click.option(
    "--max-bytes",
    default=MAX_BYTES,
    show_default=True,
    type=click.IntRange(1, 2**30),
    help="Maximum size of an image file in bytes.",
)
@click.option(
    "--skip-unreachable",
    is_flag=True,
    help="Write a row with an error for an image whose web server does not respond. Default: end the run.",
)
@click.option("--restart", is_flag=True, help="Discard the results in the output, and begin again.")
@click.option(
    "--threshold",
    type=Number(0, 1),
    help="Minimum score of a listed object, for a model that detects objects; default: the model's.",
)
@click.option("--max", "most", type=click.IntRange(1), help="Maximum number of objects to list per image.")
@click.option(
    "--masks",
    type=click.Choice(["rle", "none"]),
    help="Masks of objects and classes: COCO's run lengths, or none; default: rle.",
)
@takes_settings(
    *model_options(without=("calibration", "weight_bits")), "decode_memory", "cache_size", "no_cache"
)
def command(sources: tuple[str, ...], max_errors: int, settings: Settings, **options: Any) -> None:
    """Run many images through a model, and write the answers to Parquet files.

    MODEL is the same as for `pthserve serve`. SOURCE is a folder, an image, a tar archive, a list (a text
    file with one path or URL per line, or a CSV file), or the address of one of these: https://, s3://,
    gs:// or az://. There is one row per image; one that cannot be read has an error in its row.

    If it is interrupted, the same command continues where it stopped.
    """
    signal.signal(signal.SIGTERM, lambda *_: leave(128 + signal.SIGTERM, _STOPPED))
    shard = _shard(options.pop("shard"), options.pop("shards"))
    if options["restart"] and shard.of > 1:
        raise click.UsageError(
            "--restart would discard what other shards write; remove the output, or name another one"
        )
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError:
        raise PthserveError(
            "pyarrow is not installed; install pthserve[score], or use the full image"
        ) from None
    from pthserve.cli.display import counting, stages
    from pthserve.loading.loader import Loader
    from pthserve.scoring.run import score
    from pthserve.serving import memory

    memory.configure()
    request = _request(sources, shard, settings, options)
    loader = Loader(settings.model, settings, None if settings.no_cache else settings.cache_size)
    try:
        with stages(settings.model) as watch:
            model = loader(watch)
        _check(model, settings)
        with counting(sources[0] if len(sources) == 1 else f"{len(sources)} sources") as progress:
            summary = score(model, request, progress)
    except KeyboardInterrupt:
        leave(128 + signal.SIGINT, _STOPPED)
    _report(summary, request)
    # The engine may still free memory in other threads.
    leave(IMAGES_FAILED if summary.errors > max_errors else 0)


def _shard(shard: str | None, shards: int | None) -> Shard:
    """The share to score, from the options and the environment."""
    index = os.environ.get(INDEX, "")
    if shard is not None:
        if shards is not None:
            raise click.UsageError("--shard and --shards exclude each other.")
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
        if match is None or not int(match[1]) < int(match[2]):
            raise click.UsageError("--shard must be I/N, with I from 0 to N - 1, such as 0/8.")
        return Shard(int(match[1]), int(match[2]))
    if shards is not None:
        if not index.isdecimal() or int(index) >= shards:
            raise click.UsageError(
                f"--shards {shards} needs {INDEX}, from 0 to {shards - 1}; it is {quoted(index) or 'not set'}"
                ". Outside of an Indexed Job, use --shard."
            )
        return Shard(int(index), shards)
    if index:
        raise click.UsageError(
            f"{INDEX} is set, so this is one pod of several: give their number, `completions`, as --shards."
        )
    return WHOLE


def _request(sources: tuple[str, ...], shard: Shard, settings: Settings, options: dict[str, Any]) -> Request:
    wanted = {
        "threshold": options.pop("threshold"),
        "max": options.pop("most"),
        "masks": options.pop("masks"),
    }
    query = {name: str(value) for name, value in wanted.items() if value is not None}
    return Request(sources, shard=shard, decode_memory=settings.decode_memory, query=query, **options)


def _check(model: "Model", settings: Settings) -> None:
    from pthserve.cli.display import show_notes
    from pthserve.loading.golden import apply_golden_policy

    show_notes(model)
    apply_golden_policy(model, settings)


def _report(summary: "Summary", request: Request) -> None:
    new = summary.rows - summary.earlier
    rate = f", {new / summary.seconds:,.0f} per second" if new and summary.seconds > 1 else ""
    click.echo(
        f"{summary.rows:,} images in {quoted(request.output)}: {new:,} scored now{rate}; "
        f"{summary.errors:,} errors"
    )
    if request.shard.of > 1:
        rest = "all shards are complete" if summary.complete else "other shards are not complete yet"
        click.echo(f"Shard {request.shard.number} of {request.shard.of} is complete; {rest}")
    if summary.skipped:
        click.echo(f"{summary.skipped:,} other files in the sources are not images", err=True)
    if summary.example:
        click.echo(f"An error: {quoted(': '.join(summary.example), MESSAGE)}", err=True)
