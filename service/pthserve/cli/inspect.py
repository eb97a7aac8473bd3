"""`pthserve inspect`: show the content of a weights file or packed model, and what was inferred about it."""

import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from pthserve.certainty import Inferred
from pthserve.cli.options import MODEL, takes_settings
from pthserve.errors import AmbiguousArchitecture
from pthserve.settings import Settings
from pthserve.text import MESSAGE, quoted

if TYPE_CHECKING:
    from pthserve.files.card import Card
    from pthserve.files.weights import Weights
    from pthserve.sources.attestation import Attestation


_METADATA = 20
"""Keys of a checkpoint's metadata that are shown."""


@click.command("inspect")
@MODEL
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@takes_settings("sha256", "architecture", "task", "cache_dir", "max_download", "require_signature")
def command(settings: Settings, as_json: bool) -> None:
    """Show what a weights file or a packed model contains.

    Shows the architecture and how it was recognised, the number of classes and parameters, the image
    preprocessing, and every assumption. For a packed model, it shows the plan and verifies that no file was
    changed. MODEL is the same as for `pthserve serve`. Code that its card names is reported and
    not run.
    """
    from pthserve.cli.local import fetched
    from pthserve.loading import packed

    named = settings.model
    settings = fetched(settings)
    path = Path(settings.model)
    found, in_words = (
        (_packed(path), _packed_in_words) if packed.is_packed(path) else (_inspect(settings), _in_words)
    )
    attested = _attestations(named, path)
    found["attestations"] = [one.model_dump() for one in attested]
    if as_json:
        click.echo(json.dumps(found))
        return
    from rich.table import Table

    from pthserve.cli.display import show

    table = Table.grid("", "", padding=(0, 2))
    for name, value in in_words(found).items():
        table.add_row(name, "\n".join(quoted(line, MESSAGE) for line in value.split("\n")))
    for attestation in attested:
        same = attestation.digest == found["sha256"]
        of = "" if same else f"of another model, {attestation.digest[:12]}: not of this one\n"
        table.add_row("attestation", of + attestation.words())
    show(table)


def _attestations(named: str, path: Path) -> "list[Attestation]":
    """Return what the model has shown at rollouts: from its registry, or from the file beside it."""
    from pthserve.sources import attestation
    from pthserve.sources.reference import parse

    reference = parse(named)
    if reference is not None:
        return attestation.pull(reference) if reference.scheme == "oci" else []
    beside = attestation.read(path)
    return [beside] if beside is not None else []


def _inspect(settings: Settings) -> dict[str, Any]:
    from pthserve.cli.display import reading
    from pthserve.files import card, weights
    from pthserve.loading.load import build, with_architecture
    from pthserve.zoos import own

    # The model is not trusted yet: code that its card names never runs, even if the environment allows it.
    described = with_architecture(card.read(Path(settings.model)), settings.architecture)
    with reading(settings.model) as progress:
        if described.architecture and own.is_code(described.architecture):
            sha256 = settings.sha256 or described.sha256
            read = weights.read(described.weights, sha256, progress, described.container)
            return _told(described, read) | {"architecture": described.architecture}
        try:
            built = build(settings.model, settings, progress)
        except AmbiguousArchitecture as error:
            sha256 = settings.sha256 or described.sha256
            read = weights.read(described.weights, sha256, None, described.container)
            return _told(described, read) | {"candidates": [list(names) for names in error.choices]}

    from pthserve.tasks.choice import task_fields
    from pthserve.zoos.architecture import (
        flops,
    )  # with torch, which a file that is refused need not wait for

    architecture, spec = built.architecture, built.spec
    return _told(built.card, built.weights) | {
        "architecture": architecture.name,
        "inferred": [inferred.to_dict() for inferred in built.inferred],
        "ignored": list(architecture.ignored),
        "prefix": architecture.prefix,
        "parameters": architecture.parameters,
        "flops": architecture.module and flops(architecture.module, (1, *spec.tensor_shape)),
        "ends": list(architecture.ends),
        "num_classes": architecture.num_classes,
        "task": task_fields(built.task),
        "labels": None if built.labels_assumed else list(built.labels),
        "preprocessing": spec.to_dict(),
    }


def _told(card: "Card", weights: "Weights") -> dict[str, Any]:
    """Return the values that do not depend on the architecture; None for the others."""
    return {
        "name": card.name,
        "version": card.version,
        "weights": str(card.weights),
        "sha256": weights.digest,
        "bytes": weights.size,
        "format": weights.format,
        "container": weights.container,
        "metadata": dict(weights.metadata),
        "architecture": None,
        "candidates": [],
        "inferred": [],
        "ignored": [],
        "prefix": None,
        "parameters": None,
        "flops": None,
        "ends": [],
        "num_classes": card.labels and len(card.labels),
        "labels": card.labels and list(card.labels),
        "task": {"name": card.task.name} if card.task.name else None,
        "preprocessing": card.spec and card.spec.to_dict(),
        "golden": len(card.golden),
    }


def _packed(folder: Path) -> dict[str, Any]:
    from pthserve.loading import packed
    from pthserve.tasks.choice import task_fields

    model = packed.read(folder, graphs=False)
    return {
        "name": model.name,
        "version": model.version,
        "packed": str(folder),
        "sha256": model.digest,
        "bytes": model.size,
        "format": "packed",
        "architecture": model.architecture,
        "parameters": model.parameters,
        "num_classes": len(model.labels),
        "labels": list(model.labels),
        "task": task_fields(model.task),
        "preprocessing": model.spec.to_dict(),
        "golden": len(model.golden),
        "int8": model.int8 and asdict(model.int8),
        "plan": model.plan.to_dict(),
        "inferred": [one.to_dict() for one in model.inferred],
        "made_with": dict(model.made_with),
    }


def _packed_in_words(found: dict[str, Any]) -> dict[str, str]:
    from pthserve.engines.quantized_graph import Quantization
    from pthserve.images.spec import Spec
    from pthserve.planning.agreement import Evidence

    plan = found["plan"]
    return {
        "model": f"{quoted(found['name'])}, version {found['version']}",
        "packed": f"{found['packed']}, {found['bytes']:,} bytes, no byte of it changed",
        "made with": ", ".join(f"{name} {version}" for name, version in found["made_with"].items()),
        "SHA-256": f"{found['sha256']} (of the weights that it was made from)",
        "architecture": found["architecture"],
        "preprocessing": Spec.from_dict(found["preprocessing"]).words(),
        **_inferred(found["inferred"]),
        "parameters": f"{found['parameters']:,}",
        "task": found["task"]["name"],
        "classes": str(found["num_classes"]),
        "golden images": str(found["golden"]),
        "precisions": "fp32, int8" if found["int8"] else "fp32, and what the CPU makes of it",
        **({"int8": Quantization(**found["int8"]).words()} if found["int8"] else {}),
        "plan": plan["reason"],
        **{f"{one['engine']} {one['precision']}": Evidence(**one).words() for one in plan["evidence"]},
    }


def _in_words(found: dict[str, Any]) -> dict[str, str]:
    from pthserve.images.spec import Spec

    rows = {
        "model": f"{quoted(found['name'])}, version {found['version']}",
        "file": f"{quoted(found['weights'])}, {found['bytes']:,} bytes, {found['format']}"
        + (f", under `{quoted(found['container'])}`" if found["container"] else ""),
        "SHA-256": found["sha256"],
        **({"metadata": _metadata(found["metadata"])} if found["metadata"] else {}),
    }
    if found["candidates"]:
        return rows | _choices(found["candidates"])
    if found["parameters"] is None:
        return rows | {
            "architecture": f"names code: {quoted(found['architecture'])}, which inspect does not run",
            "labels": "none" if found["labels"] is None else str(found["num_classes"]),
            "preprocessing": Spec.from_dict(found["preprocessing"]).words()
            if found["preprocessing"]
            else "not stated",
            "golden images": str(found["golden"]),
        }
    ignored = found["ignored"]
    return {
        **rows,
        **_inferred(found["inferred"]),
        **({"inputs and outputs": "\n".join(found["ends"])} if found["ends"] else {}),
        "prefix": quoted(found["prefix"]) or "none",
        **(
            {"ignored": f"{', '.join(map(quoted, ignored[:3]))}{' and more' if len(ignored) > 3 else ''}"}
            if ignored
            else {}
        ),
        "parameters": f"{found['parameters']:,}",
        **(
            {"FLOPs": f"{found['flops'] / 1e9:.2f} billion an image (a multiply and an add are two)"}
            if found["flops"]
            else {}
        ),
        "classes" if found["task"]["name"] == "classification" else "outputs": str(found["num_classes"]),
        "golden images": str(found["golden"]),
    }


def _choices(candidates: list[list[str]]) -> dict[str, str]:
    """Return the rows for a file that fits several architectures that compute differently."""
    first = candidates[0][0]
    return {
        "architecture": "one of several that have these names and shapes, and compute differently; state it "
        f"with --architecture {first} or in model.yaml with `architecture: {first}`",
        "candidates": "\n".join(" or ".join(names) for names in candidates),
    }


def _metadata(values: dict[str, Any]) -> str:
    """Return the metadata with one line per key, shortened if it is long."""
    shown = [f"{quoted(key)}: {quoted(_short(value))}" for key, value in islice(values.items(), _METADATA)]
    more = len(values) - len(shown)
    return "\n".join(shown + ([f"and {more} more, which --json prints"] if more else []))


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _inferred(values: list[dict[str, Any]]) -> dict[str, str]:
    """Return a row for each subject: the inferred value with its origin."""
    rows: dict[str, str] = {}
    for value in values:
        inferred = Inferred(**value)
        text = str(inferred).partition(": ")[2]
        row = inferred.subject
        rows[row] = f"{rows[row]}\n{text}" if row in rows else text
    return rows
