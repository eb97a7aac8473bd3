"""What cannot work is refused, with a sentence that says what to do."""

import re
from typing import Any

import pytest

from .conftest import APIS, CHART, Helm
from .sets import SHA256

pytestmark = pytest.mark.slow

CLAIM = {"source": "pvc", "pvc": {"existingClaim": "models"}}
DOWNLOAD = {"source": "download", "sha256": SHA256, "download": {"url": "https://models.example/a.pth"}}
PACK = {"enabled": True, "create": True}
ROLLOUT: dict[str, Any] = {
    "rollout": {"enabled": True},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
    "monitoring": {"podMonitor": {"enabled": True}},
}
TO_ZERO: dict[str, Any] = {
    "autoscaling": {"minReplicas": 0},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
}

# A specification, the values that break it, and a part of what is said.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "a claim is named or made": ({"weights": {"source": "pvc"}}, "weights.pvc.existingClaim"),
    "a claim is not named and made": (
        {"weights": {"source": "pvc", "pvc": {"existingClaim": "models", "create": True}}},
        "not both",
    ),
    "many pods do not share a claim of one": (
        {"weights": {"source": "pvc", "pvc": {"create": True}}, "replicas": 2},
        "cannot be shared by 2 pods",
    ),
    "an autoscaler's pods do not share a claim of one": (
        {"weights": {"source": "pvc", "pvc": {"create": True}}, "autoscaling": {"enabled": True}},
        "cannot be shared by 5 pods",
    ),
    "a ConfigMap has a name": ({"weights": {"source": "configMap"}}, "weights.configMap.name"),
    "a download has an address": (
        {"weights": {**DOWNLOAD, "download": {"url": "models.example/a.pth"}}},
        "weights.download.url",
    ),
    "a download is pinned": ({"weights": {**DOWNLOAD, "sha256": ""}}, "weights.sha256"),
    "an address by http is pinned": (
        {"weights": {"source": "https://models.example/a.pth"}, "networkPolicy": {"enabled": False}},
        "weights.sha256",
    ),
    "an address is of a kind that is known": ({"weights": {"source": "ftp://models.example/a"}}, "source"),
    "the demo is not signed": ({"weights": {"publicKey": {"configMap": "signer"}}}, "weights.publicKey"),
    "slim verifies no mounted weights": (
        {"image": {"variant": "slim"}, "weights": {**CLAIM, "file": "cats", "publicKey": {"configMap": "k"}}},
        "weights.publicKey",
    ),
    "the key is said once": (
        {
            "weights": {**CLAIM, "publicKey": {"configMap": "k"}},
            "settings": {"requireSignature": "/key"},
        },
        "weights.publicKey alone",
    ),
    "an image volume has a reference": ({"weights": {"source": "image"}}, "weights.image.reference"),
    "the model is said once": ({"weights": CLAIM, "settings": {"model": "/x"}}, "Use weights.file"),
    "the digest is said once": (
        {"weights": {**CLAIM, "sha256": SHA256}, "settings": {"sha256": SHA256}},
        "weights.sha256 alone",
    ),
    "slim builds nothing": (
        {"image": {"variant": "slim"}, "weights": {**CLAIM, "file": "a.pth"}},
        "no torch to build a.pth",
    ),
    "slim builds no download": (
        {"image": {"variant": "slim"}, "weights": DOWNLOAD, "networkPolicy": {"enabled": False}},
        "no torch to build a.pth",
    ),
    "slim has no GPU": ({"image": {"variant": "slim"}, "gpu": {"enabled": True}}, "image.variant to full"),
    "a cache has one claim": ({"cache": {"create": True, "existingClaim": "caches"}}, "give one of them"),
    "many pods do not share a cache of one": (
        {"cache": {"create": True, "accessModes": ["ReadWriteOnce"]}, "replicas": 2},
        "cache: a claim that is ReadWriteOnce",
    ),
    "the demo is packed already": ({"pack": PACK}, "weights.source is demo"),
    "a pack has its claim": ({"weights": CLAIM, "pack": {"enabled": True}}, "pack.existingClaim"),
    "a pack has one claim": ({"weights": CLAIM, "pack": {**PACK, "existingClaim": "packs"}}, "not both"),
    "many pods do not share a pack of one": (
        {"weights": CLAIM, "pack": {**PACK, "accessModes": ["ReadWriteOnce"]}, "replicas": 2},
        "pack: a claim that is ReadWriteOnce",
    ),
    "a pack runs on the CPU": (
        {"weights": CLAIM, "pack": PACK, "gpu": {"enabled": True}},
        "leave it off with gpu.enabled",
    ),
    "the keys are said once": ({"apiKeys": {"secret": "a"}, "settings": {"apiKeys": "/b"}}, "give one"),
    "a pod may finish draining": (
        {"shutdown": {"preStopSeconds": 5, "graceSeconds": 20}},
        "shutdown.graceSeconds (20) must be more than shutdown.preStopSeconds + settings.drainSeconds"
        " + settings.deadline (20)",
    ),
    "a longer deadline needs more grace": ({"settings": {"deadline": 60}}, "settings.deadline (67)"),
    "the fewest pods are not more than the most": (
        {"autoscaling": {"enabled": True, "minReplicas": 6}},
        "autoscaling.minReplicas (6) is more than autoscaling.maxReplicas (5)",
    ),
    "CPU load is measured against a request": (
        {"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}},
        "resources.requests.cpu",
    ),
    "a download may connect": ({"weights": DOWNLOAD}, "networkPolicy.egress"),
    "traces may connect": ({"settings": {"otlpEndpoint": "http://collector:4318"}}, "networkPolicy.egress"),
    "a route has a gateway": ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
    "a gRPC route has a gateway": (
        {"grpcRoute": {"enabled": True}, "settings": {"grpcPort": 8001}},
        "grpcRoute.parentRefs",
    ),
    "a gRPC route has a port": (
        {"grpcRoute": {"enabled": True, "parentRefs": [{"name": "public"}]}},
        "settings.grpcPort",
    ),
    "one autoscaler decides about the CPU": (
        {
            "verticalPodAutoscaler": {"enabled": True, "controlledResources": ["cpu"]},
            "autoscaling": {"enabled": True},
        },
        "verticalPodAutoscaler would change the CPU request",
    ),
    "a rollout has a route": ({**ROLLOUT, "httpRoute": {}}, "httpRoute.parentRefs"),
    "a rollout alone sets weights": (
        {
            **ROLLOUT,
            "httpRoute": {**ROLLOUT["httpRoute"], "extraBackendRefs": [{"name": "other", "port": 80}]},
        },
        "leave out extraBackendRefs",
    ),
    "a rollout tells pods apart": ({**ROLLOUT, "monitoring": {}}, "monitoring.podMonitor.enabled"),
    "a rollout has old pods": ({**ROLLOUT, "strategy": {"type": "Recreate"}}, "leave strategy.type"),
    "live accuracy has labels": (
        {**ROLLOUT, "rollout": {"enabled": True, "gates": {"accuracy": 0.9}}},
        "settings.feedback",
    ),
    "the steps of a rollout rise": (
        {**ROLLOUT, "rollout": {"enabled": True, "steps": [5, 50, 25]}},
        "rollout.steps must rise: 25",
    ),
    "the gateway holds the first request": ({"autoscaling": {"minReplicas": 0}}, "set httpRoute.enabled"),
    "requests that come another way wake nothing": (
        {**TO_ZERO, "service": {"type": "LoadBalancer"}},
        "leave out ingress.enabled, and service.type at ClusterIP",
    ),
    "an ingress wakes nothing": (
        {**TO_ZERO, "ingress": {"enabled": True, "hosts": ["cats.example"]}},
        "leave out ingress.enabled, and service.type at ClusterIP",
    ),
    "a pod accepts no connection before it can answer": (
        {**TO_ZERO, "settings": {"listen": "early"}},
        "leave out settings.listen",
    ),
    "a rollout has pods": (
        {**ROLLOUT, **TO_ZERO},
        "rollout.enabled judges a release by its traffic, and without pods there is none",
    ),
    "calls over one connection go to one pod": (
        {
            **TO_ZERO,
            "settings": {"grpcPort": 8001},
            "grpcRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
        },
        "Set autoscaling.maxReplicas to 1",
    ),
    "an ingress has a host": ({"ingress": {"enabled": True}}, "ingress.hosts"),
    "a pod is scraped once": (
        {"monitoring": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}},
        "enable one",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_unless(case: str, helm: Helm) -> None:
    values, said = CASES[case]
    assert said in " ".join(helm.refusal(values).split())


# A specification, the values, the last Kubernetes that lacks what they need, and the first that has it.
NEWER: dict[str, tuple[dict[str, Any], str, str]] = {
    "volumes from images": (
        {"weights": {"source": "image", "image": {"reference": "registry.example/cats:3"}}},
        *("1.32.9", "1.33.0"),
    ),
    "gpu.resourceClaims": (
        {"gpu": {"enabled": True, "resourceClaims": [{"name": "gpu", "resourceClaimName": "gpu"}]}},
        *("1.33.9", "1.34.0"),
    ),
    "user namespaces": ({"hostUsers": False}, "1.32.9", "1.33.0"),
}


@pytest.mark.parametrize("case", NEWER)
def test_what_an_older_kubernetes_lacks_is_refused(case: str, helm: Helm) -> None:
    values, lacking, having = NEWER[case]
    minor = having.removesuffix(".0")
    refusal = " ".join(helm.refusal(values, lacking).split())
    assert re.search(rf"{case} needs? Kubernetes {minor} or newer, and this is v{lacking}", refusal)
    helm.render(values, having)


NEEDED = {
    "gateway.networking.k8s.io/v1/HTTPRoute": "the Gateway API",
    "argoproj.io/v1alpha1/Rollout": "Argo Rollouts",
    "monitoring.coreos.com/v1/PodMonitor": "the Prometheus operator",
    "keda.sh/v1alpha1/ScaledObject": "KEDA",
    "traefik.io/v1alpha1/Middleware": "Traefik, with its own kinds",
}
"""What brings the kinds that the chart asks for."""


@pytest.mark.parametrize(
    ("values", "needs", "missing"),
    [
        *((ROLLOUT, "rollout.enabled", api) for api in APIS[:3]),
        *((TO_ZERO, "autoscaling.minReplicas 0", api) for api in (APIS[0], *APIS[3:])),
    ],
)
def test_it_is_refused_where_the_cluster_lacks_what_it_needs(
    values: dict[str, Any], needs: str, missing: str, helm: Helm
) -> None:
    refusal = " ".join(helm.refusal(values, apis=tuple(api for api in APIS if api != missing)).split())
    assert f"{needs} needs {NEEDED[missing]}, and the cluster has no {missing}: install it" in refusal
    helm.render(values)


def test_kubernetes_before_1_30_is_refused(helm: Helm) -> None:
    assert "requires kubeVersion: >=1.30.0-0" in helm.refusal({}, "1.29.9")


def test_every_refusal_has_its_case(helm: Helm) -> None:
    written = re.findall(r"fail (?:\(printf )?\"(.+?)\"", (CHART / "templates" / "_refusals.tpl").read_text())
    elsewhere = [
        template.name
        for template in (CHART / "templates").rglob("*")
        if template.is_file() and template.name != "_refusals.tpl" and "fail " in template.read_text()
    ]
    assert not elsewhere
    said = [" ".join(helm.refusal(values).split()) for values, _ in CASES.values()]
    said += [helm.refusal(values, lacking) for values, lacking, _ in NEWER.values()]
    said.append(" ".join(helm.refusal(ROLLOUT, apis=()).split()))
    for message in written:
        pattern = re.sub(r"%[sd]", ".+", re.sub(r"([.()+*?])", r"\\\1", message))
        assert any(re.search(pattern, one) for one in said), message


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"replica": 2}, "replica"),
        ({"settings": {"maxBatches": 2}}, "maxBatches"),
        ({"settings": {"port": 0}}, "port"),
        ({"settings": {"logLevel": "loud"}}, "logLevel"),
        ({"weights": {"source": "s3"}}, "source"),
        ({"weights": {"sha256": "abc"}}, "sha256"),
        ({"weights": {"file": "/etc/passwd"}}, "file"),
        ({"autoscaling": {"target": {"saturation": 1.5}}}, "saturation"),
        ({"probes": {"liveness": {"httpGet": {}}}}, "httpGet"),
        ({"monitoring": {"rules": {"objective": 99.9}}}, "objective"),
        ({"rollout": {"steps": []}}, "steps"),
        ({"rollout": {"gates": {"agreement": 97}}}, "agreement"),
        ({"rollout": {"prometheus": "prometheus:9090"}}, "prometheus"),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, "maxUnavailable"),
    ],
)
def test_a_value_that_is_not_there_or_out_of_range_is_refused(
    values: dict[str, Any], key: str, helm: Helm
) -> None:
    assert key in helm.refusal(values)
