"""`pthserve attest`: write down what a release has shown at a rollout."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from pthserve.addresses import printable
from pthserve.cli.headers import HEADERS, Header
from pthserve.errors import PthserveError, WeightsError
from pthserve.intervals import wilson
from pthserve.text import MESSAGE, quoted

if TYPE_CHECKING:
    from pthserve.sources.attestation import Attestation, Share

SECONDS = 30.0
"""Maximum time in seconds to wait for a pod."""
_MODEL = ("name", "version", "digest", "engine", "precision", "golden")
"""Fields of /info that must be the same for all pods."""


@click.command("attest")
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write, such as `cats.attestation.json` beside the model `cats`, where `pthserve inspect` "
    "finds it.",
)
@click.option(
    "--key",
    "-k",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM file with a private key, as for `pthserve sign`: the signature is written beside the file.",
)
@click.option(
    "--push",
    "address",
    metavar="oci://REGISTRY/NAME@DIGEST",
    help="Artefact of the model in a registry, to which the attestation is added as a referrer.",
)
@HEADERS
def command(
    urls: tuple[str, ...], out: Path, key: Path | None, address: str | None, headers: tuple[Header, ...]
) -> None:
    """Write down what a release has shown at a rollout.

    URL is the address of a pod of the new release, and there may be several: their comparisons with the other
    release are added up. The file has the digests of both models, the agreement and the live accuracy with
    their 95 % intervals, the result of the golden images, versions and time.
    """
    from pthserve.sources.reference import parse

    reference = parse(address) if address else None
    if address and (reference is None or reference.scheme != "oci"):
        raise WeightsError(f"{quoted(address)}: an attestation is pushed to oci://registry/name@sha256:...")
    made = _attestation([_fetch(url, headers) for url in urls])
    try:
        out.write_bytes(made.to_json())
    except OSError as error:
        raise PthserveError(f"{out}: cannot be written: {error.strerror}") from error
    click.echo(quoted(f"{out}: written", MESSAGE))
    if key is not None:
        from pthserve.sources.signatures import sign

        click.echo(quoted(f"{sign(out, key)}: written", MESSAGE))
    if reference is not None:
        from pthserve.sources.attestation import push

        digest = push(out, reference)
        click.echo(quoted(f"oci://{reference.host}/{reference.path}@{digest}", MESSAGE))
    for line in made.words().splitlines():
        click.echo(line)


def _fetch(url: str, headers: Sequence[Header]) -> dict[str, Any]:
    """Return /info of a pod, with the version of pthserve as `pthserve`, and reports as `feedback`."""
    import httpx

    shown = printable(url)
    try:
        with httpx.Client(base_url=url, headers=list(headers), timeout=SECONDS) as client:
            info, server, metrics = (client.get(path) for path in ("/info", "/v2", "/metrics"))
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise PthserveError(f"{shown} is not a valid service address") from None
    except httpx.TransportError as error:
        raise PthserveError(f"{shown} does not respond: {error or type(error).__name__}") from error
    for reply in (info, server):
        if reply.status_code != httpx.codes.OK:
            raise PthserveError(f"{shown} responds with {reply.status_code} to {reply.request.url.path}")
    try:
        described: dict[str, Any] = {**info.json(), "pthserve": server.json()["version"]}
        digest = str(described["digest"])
    except (ValueError, KeyError, TypeError):
        raise PthserveError(f"{shown} is not an address of pthserve") from None
    # Without them, as with metrics_port, nothing is known of reports.
    reported = _reports(metrics.text, digest) if metrics.status_code == httpx.codes.OK else {}
    return {**described, "feedback": reported}


def _reports(text: str, digest: str) -> dict[str, int]:
    """Return how many answers of the model were reported as correct or incorrect."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        sample.labels["result"]: int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "pthserve_feedback_total" and sample.labels["digest"] == digest
    }


def _attestation(pods: Sequence[dict[str, Any]]) -> "Attestation":
    from pthserve.sources.attestation import Agreement, Attestation

    first = pods[0]
    for name in (*_MODEL, "pthserve"):
        if any(pod.get(name) != first.get(name) for pod in pods):
            raise PthserveError(f"the pods are not of one release: they differ in `{name}`")
    images: Counter[str] = Counter()
    agreed: Counter[str] = Counter()
    differences: dict[str, float] = {}
    failures: Counter[str] = Counter()
    reports: Counter[str] = Counter()
    for pod in pods:
        reports.update(pod["feedback"])
        rollout = pod.get("rollout") or {"comparisons": [], "failures": {}}
        failures.update(rollout["failures"])
        for one in rollout["comparisons"]:
            if one["digest"] == first["digest"]:
                images[one["other"]] += one["images"]
                agreed[one["other"]] += one["agreed"]
                total = differences.get(one["other"], 0.0)
                differences[one["other"]] = total + one["images"] * one["difference"]
    golden = first["golden"] or {"result": "there are none", "images": 0}
    return Attestation(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        name=first["name"],
        model_version=first["version"],
        digest=first["digest"],
        engine=first["engine"],
        precision=first["precision"],
        pthserve=first["pthserve"],
        pods=len(pods),
        golden=golden["result"],
        golden_images=golden["images"],
        agreement=tuple(
            Agreement(
                **_share(agreed[other], images[other]), other=other, difference=differences[other] / count
            )
            for other, count in images.items()
        ),
        failures=dict(failures),
        accuracy=_accuracy(reports),
    )


def _accuracy(reports: Counter[str]) -> "Share | None":
    from pthserve.sources.attestation import Share

    return Share(**_share(reports["correct"], reports.total())) if reports.total() else None


def _share(part: int, whole: int) -> dict[str, Any]:
    """Return the fields of a `Share`, of at least one image."""
    found = wilson(part, whole)
    assert found is not None
    return {"images": whole, **found._asdict()}
