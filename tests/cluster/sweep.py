"""Sweep: upgrade a release to one candidate after the other under constant load, and note what became of it.

    python -m tests.cluster.sweep FOLDER

runs all of `candidates` in the cluster that $KUBECONFIG points at, which has what `k8s/local/cluster
rollouts` installs. FOLDER has the models, and results.jsonl with a line for each candidate; these are left
out when it is run again. With --table, it only prints what is there.
"""

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from kubernetes import client, config

from pthserve.errors import PthserveError

from ..shared import until
from . import variants
from .candidates import BASE, SABOTAGED, SUCCESSORS, Candidate
from .machine import run
from .progressive import QUICK, RETRY, Outcome, Place, Rollout, Traffic, serving, spoiling
from .release import ROOT, Release, Values, merged
from .variants import Weights

PHOTOS = 100
"""Images that clients send, in turn."""


@dataclass(frozen=True)
class Models:
    """`weights`, `packed` and `photos` in a folder. base: the weights in service."""

    folder: Path
    base: Weights
    photos: Sequence[Path]

    @classmethod
    def within(cls, folder: Path) -> "Models":
        """Those in a folder, in which the base and the photos are made unless they are there."""
        weights = folder / "weights" / BASE.name
        if not (weights / "model.yaml").exists():
            variants.write(weights, variants.train(seed=0), BASE.name)
        photos = folder / "photos"
        if not photos.exists():
            variants.photos(photos, PHOTOS)
        base = torch.load(weights / "inks.pth", weights_only=True)
        return cls(folder, base, sorted(photos.iterdir()))

    def pack(self, candidate: Candidate) -> None:
        """Make it and pack it, unless it is there.

        Raises:
            PthserveError: It is refused.
        """
        candidate.pack(self.base, self.folder)


@dataclass(frozen=True)
class Stage:
    """A release whose stable model is BASE at first, while `traffic` goes through the gateway.

    began: the time.monotonic() from which on its answers count.
    """

    rollout: Rollout
    traffic: Traffic
    models: Models
    common: Values
    began: float = 0.0

    def values(self, candidate: Candidate) -> Values:
        """Has the release serve a candidate that is packed; its fault is put into a ConfigMap."""
        values = merged(self.common, serving(self.models.folder / "packed", candidate.name))
        if not candidate.fault:
            return values
        text = {"sitecustomize.py": variants.spoilt(candidate.fault)}
        core = client.CoreV1Api(self.rollout.release.api)
        name = f"spoilt-{candidate.name}-{uuid.uuid4().hex[:4]}"
        core.create_namespaced_config_map(
            self.rollout.release.namespace, {"metadata": {"name": name}, "data": text}
        )
        return spoiling(values, name)

    def upgrade(self, candidate: Candidate) -> Outcome:
        """Upgrade to a candidate, which is packed unless it is, and wait for the decision."""
        self.models.pack(candidate)
        return self.rollout.upgrade(self.traffic, candidate.name, self.values(candidate))

    def back(self) -> None:
        """Serve BASE again, whatever the gates say."""
        until(lambda: self.rollout.settled, seconds=60, what="the end of the last canary's pods")
        self.rollout.release.upgrade(self.values(BASE), wait=False)
        until(lambda: self.rollout.status, seconds=30, what="a new ReplicaSet")
        if not self.rollout.promoted:
            self.rollout.patch({"promoteFull": True})
        self.rollout.until_promoted()


@contextmanager
def staged(
    models: Models, place: Place, namespace: str, api: client.ApiClient, helm: Any, **traffic: Any
) -> Iterator[Stage]:
    """A release in a namespace, once Prometheus sees it. Its traffic flows while the block runs."""
    common = merged(QUICK, place.values(namespace), traffic.pop("values", {}))
    rollout = Rollout(Release(namespace, api, helm))
    stage = Stage(rollout, Traffic(place.address(api), namespace, models.photos, **traffic), models, common)
    models.pack(BASE)
    rollout.release.upgrade(stage.values(BASE), wait=False)
    rollout.until_promoted()
    until(lambda: place.sees(namespace, api), seconds=300, what="the release in Prometheus")
    with Traffic(stage.traffic.gateway, namespace, models.photos, clients=2) as first:
        until(first.flows, seconds=60, what="answers through the gateway")
    with stage.traffic:
        stage.traffic.until_more(50)
        yield stage


@dataclass(frozen=True)
class Result:
    """What became of a candidate. answers: until the next upgrade, by version; lost: those without one."""

    name: str
    kind: str
    honest: bool
    promoted: bool
    seconds: float
    share: float
    reason: str
    answers: dict[str, int]
    lost: dict[str, int]


def judge(stage: Stage, candidate: Candidate) -> Result:
    """Upgrade to a candidate."""
    about = {"name": candidate.name, "kind": candidate.kind, "honest": candidate.honest}
    began = time.monotonic()
    try:
        outcome = stage.upgrade(candidate)
    except PthserveError as error:
        return Result(
            **about, promoted=False, seconds=0, share=0, reason=f"refused: {error}", answers={}, lost={}
        )
    except AssertionError as error:  # neither promoted nor rolled back
        answers = stage.traffic.versions(began)
        share = answers[candidate.name] / max(1, answers.total())
        outcome = Outcome(False, began, time.monotonic() - began, share, f"undecided: {error}"[:300])
        stage.rollout.patch({"abort": True})
        until(lambda: stage.rollout.rolled_back, seconds=60, what="a rollback")
    stage.traffic.until_more(50)
    return Result(
        **about,
        promoted=outcome.promoted,
        seconds=round(outcome.seconds, 1),
        share=round(outcome.share, 4),
        reason=outcome.reason,
        answers=dict(stage.traffic.versions(outcome.began)),
        lost=dict(stage.traffic.faults(outcome.began)),
    )


def order() -> Iterator[Candidate]:
    """Sabotaged candidates, each an upgrade of BASE, and honest ones in halves, so that a part shows both."""
    for half in (0, 1):
        for candidates in (SABOTAGED, SUCCESSORS):
            middle = (len(candidates) + 1) // 2
            yield from candidates[half * middle : (half + 1) * middle]


def sweep(stage: Stage, file: Path, candidates: Sequence[Candidate]) -> None:
    """Judge each candidate that has no line in `file` yet, and add its line."""
    known = {result.name for result in results(file)}
    stable = BASE.name
    for candidate in candidates:
        if candidate.name in known:
            continue
        if not candidate.honest and stable != BASE.name:
            stage.back()
            stable = BASE.name
        result = judge(stage, candidate)
        if result.promoted:
            stable = candidate.name
        with file.open("a") as lines:
            lines.write(json.dumps(asdict(result)) + "\n")
        print(f"{time.strftime('%H:%M:%S')} {result}", flush=True)


def results(file: Path) -> list[Result]:
    lines = file.read_text().splitlines() if file.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def table(found: Sequence[Result]) -> str:
    """A row for each kind, as in docs/rollouts.md."""
    rows = ["| kind | candidates | promoted | ended by | seconds | share of the answers | lost |"]
    rows.append("|---|---|---|---|---|---|---|")
    for kind in dict.fromkeys(result.kind for result in found):
        ones = [result for result in found if result.kind == kind]
        run_ones = [result for result in ones if not result.reason.startswith("refused")]
        gates = Counter(_gate(result.reason) for result in ones if not result.promoted)
        lost = sum(sum(result.lost.values()) for result in ones)
        spans = [
            f"{min(v):{f}} to {max(v):{f}}" if v else ""
            for v, f in (
                ([r.seconds for r in run_ones], ".0f"),
                ([r.share for r in run_ones if not r.promoted], ".1%"),
            )
        ]
        rows.append(
            f"| {kind} | {len(ones)} | {sum(r.promoted for r in ones)} | "
            f"{', '.join(f'{gate} {n}' for gate, n in gates.items())} | {spans[0]} | {spans[1]} | {lost} |"
        )
    sent = sum(sum(r.answers.values()) + sum(r.lost.values()) for r in found)
    rows.append(f"\n{sent} requests, {sum(sum(r.lost.values()) for r in found)} of them lost.")
    return "\n".join(rows)


def _gate(reason: str) -> str:
    if reason.startswith("refused"):
        return "refused"
    _, _, after = reason.partition('Metric "')
    return after.partition('"')[0] or reason[:60]


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--table", "only_table", is_flag=True, help="only print the results that are there")
@click.option("--names", default="", help="candidates, separated by commas, instead of all")
@click.option("--namespace", default="", help="one that exists, instead of a new one")
@click.option("--tag", default="", help="of an image that the cluster has, instead of building one")
@click.option("--gateway", default="gateways/public/traefik", help="namespace/Gateway/Service")
@click.option("--prometheus", default=Place.prometheus, help="its URL in the cluster")
@click.option("--clients", default=8, help="number of clients, half of them over gRPC")
def main(
    folder: Path,
    only_table: bool,
    names: str,
    namespace: str,
    tag: str,
    gateway: str,
    prometheus: str,
    clients: int,
) -> None:
    """Upgrade a release to all candidates, whose models are kept in FOLDER beside the results."""
    file = folder / "results.jsonl"
    if only_table:
        click.echo(table(results(file)))
        return
    wanted = [one for one in order() if not names or one.name in names.split(",")]
    with ExitStack() as after, config.new_client_from_config() as api:
        if not namespace:
            core = client.CoreV1Api(api)
            namespace = f"rollout-{uuid.uuid4().hex[:8]}"
            core.create_namespace({"metadata": {"name": namespace}})
            after.callback(core.delete_namespace, namespace)
        if not tag:
            tag = namespace  # others may load another image under the usual name meanwhile
            run(ROOT / "scripts/image", "slim", f"localhost/pthserve:{tag}", timeout=3600)
            after.callback(run, "buildah", "rmi", f"localhost/pthserve:{tag}")
            run(ROOT / "k8s/local/cluster", "load", f"localhost/pthserve:{tag}")
        values = merged(RETRY, {"image": {"tag": tag}})
        of, name, service = gateway.split("/")
        place = Place(of, name, service, prometheus)
        models = Models.within(folder)
        with staged(
            models, place, namespace, api, partial(run, "helm"), clients=clients, retried=True, values=values
        ) as stage:
            sweep(stage, file, wanted)
            click.echo(stage.traffic)
    click.echo(table(results(file)))


if __name__ == "__main__":
    main()
