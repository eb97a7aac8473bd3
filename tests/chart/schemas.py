"""Writes schemas/, what kubeconform checks the chart's resources against: python tests/chart/schemas.py

The kinds that the chart makes, at the oldest and newest Kubernetes that it supports, from the OpenAPI files
in the Go module k8s.io/kubernetes; and custom kinds from the CRDs in their projects' modules. Strict: a field
that is not there is refused. Skaffold's own schema lies beside them. Descriptions are left out. Needs Go.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent / "schemas"
OLDEST, NEWEST = "1.30.14", "1.37.2"
# OpenAPI file to the kinds taken from it.
KINDS = {
    "api__v1": [
        "ConfigMap",
        "Namespace",
        "PersistentVolume",
        "PersistentVolumeClaim",
        "Pod",
        "Secret",
        "Service",
        "ServiceAccount",
    ],
    "apis__apps__v1": ["Deployment"],
    "apis__autoscaling__v2": ["HorizontalPodAutoscaler"],
    "apis__batch__v1": ["Job"],
    "apis__networking.k8s.io__v1": ["Ingress", "NetworkPolicy"],
    "apis__policy__v1": ["PodDisruptionBudget"],
    "apis__resource.k8s.io__v1": ["ResourceClaimTemplate"],  # from 1.34
    "apis__rbac.authorization.k8s.io__v1": ["ClusterRole", "ClusterRoleBinding"],
}
OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
OPERATOR_CRD = "example/prometheus-operator-crd/monitoring.coreos.com_{}.yaml"
ROLLOUTS = "github.com/argoproj/argo-rollouts@v1.10.1"
TRAEFIK = "github.com/traefik/traefik/v3@v3.7.13"
TRAEFIK_CRDS = "docs/content/reference/dynamic-configuration/kubernetes-crd-definition-v1.yml"
CUSTOM = [
    (OPERATOR, OPERATOR_CRD.format("podmonitors")),
    (OPERATOR, OPERATOR_CRD.format("prometheuses")),
    (OPERATOR, OPERATOR_CRD.format("prometheusrules")),
    (OPERATOR, OPERATOR_CRD.format("servicemonitors")),
    ("sigs.k8s.io/gateway-api@v1.6.3", "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"),
    ("sigs.k8s.io/gateway-api@v1.6.3", "config/crd/standard/gateway.networking.k8s.io_grpcroutes.yaml"),
    (ROLLOUTS, "manifests/crds/rollout-crd.yaml"),
    (ROLLOUTS, "manifests/crds/analysis-template-crd.yaml"),
    ("github.com/fluxcd/flagger@v1.41.0", "artifacts/flagger/crd.yaml"),
    (
        "github.com/traefik/traefik/v3@v3.7.13",
        "docs/content/reference/dynamic-configuration/traefik.io_middlewares.yaml",
    ),
    ("k8s.io/autoscaler/vertical-pod-autoscaler@v1.6.0", "deploy/vpa-v1-crd-gen.yaml"),
    ("github.com/kedacore/keda/v2@v2.21.0", "config/crd/bases/keda.sh_scaledobjects.yaml"),
    ("knative.dev/serving@v0.51.0", "config/core/300-resources/service.yaml"),
    (TRAEFIK, TRAEFIK_CRDS, "middleware", "serverstransport", "traefikservice"),
]
COMPOSE = "github.com/compose-spec/compose-go/v2@v2.16.2"
SKAFFOLD = "github.com/GoogleContainerTools/skaffold/v2@v2.16.1"


def module(name: str) -> Path:
    """The folder of a Go module, fetched when it is not there."""
    with tempfile.TemporaryDirectory() as empty:
        found = subprocess.run(
            ["go", "mod", "download", "-json", name], cwd=empty, check=True, capture_output=True
        ).stdout
    return Path(json.loads(found)["Dir"])


def strict(node: Any) -> Any:
    """The schema without prose, with its objects closed and Kubernetes' own types spelled out."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {
        key: {name: strict(value) for name, value in node[key].items()}
        if key == "properties"
        else strict(node[key])
        for key in node
        if not key.startswith("x-") and key not in {"description", "default", "example", "format"}
    }
    if "properties" in found and not node.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    match found:  # a reference wrapped in order to carry a default
        case {"allOf": [only], **rest} if not rest:
            return only
    return found


def references(node: Any) -> set[str]:
    """Names of the definitions that a schema refers to."""
    if isinstance(node, list):
        return set().union(*map(references, node))
    if not isinstance(node, dict):
        return set()
    own = {node["$ref"].rsplit("/", 1)[1]} if "$ref" in node else set()
    return own.union(*map(references, node.values()))


def write(path: Path, schema: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")


def builtin(version: str) -> None:
    """The kinds of Kubernetes itself: a file a kind, and one with what they share."""
    folder = module(f"k8s.io/kubernetes@v{version}") / "api" / "openapi-spec" / "v3"
    shared: dict[str, Any] = {}
    for file, kinds in KINDS.items():
        if not (folder / f"{file}_openapi.json").exists():
            continue
        schemas = json.loads((folder / f"{file}_openapi.json").read_text())["components"]["schemas"]
        for kind in kinds:
            (name,) = (
                name
                for name, schema in schemas.items()
                if any(gvk["kind"] == kind for gvk in schema.get("x-kubernetes-group-version-kind", []))
            )
            missing = {name}
            while missing:
                for wanted in missing:
                    shared[wanted] = strict(schemas[wanted])
                missing = set().union(*(references(shared[seen]) for seen in shared)) - shared.keys()
            group = file.split("__")[1:]
            suffix = "-".join([group[0].split(".")[0], *group[1:]]).lower()
            write(
                HERE / f"v{version}-standalone-strict" / f"{kind.lower()}-{suffix}.json",
                {"$ref": f"shared.json#/definitions/{name}"},
            )
    text = json.dumps(shared).replace("#/components/schemas/", "#/definitions/")
    write(HERE / f"v{version}-standalone-strict" / "shared.json", {"definitions": json.loads(text)})


def custom(name: str, path: str, *kinds: str) -> None:
    """The versions of the CRDs in one file, without an autoscaler's checkpoints; of `kinds` alone, if any."""
    for document in yaml.safe_load_all((module(name) / path).read_text()):
        crd = document["spec"]
        kind = crd["names"]["kind"].lower()
        if kind.endswith("checkpoint") or (kinds and kind not in kinds):
            continue
        for version in crd["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            write(HERE / "custom" / f"{kind}-{crd['group'].split('.')[0]}-{version['name']}.json", schema)


PROSE = {"description", "x-intellij-html-description", "default", "examples", "preferredOrder"}


def bare(node: Any) -> Any:
    """A schema without what explains it; the names of properties stay."""
    if isinstance(node, list):
        return [bare(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: {name: bare(inner) for name, inner in value.items()} if key == "properties" else bare(value)
        for key, value in node.items()
        if key == "properties" or not (key in PROSE and not isinstance(value, dict))
    }


def skaffold() -> None:
    """Skaffold's newest schema, which is strict as it is."""
    schema = json.loads((module(SKAFFOLD) / "docs-v2/content/en/schemas/v4beta13.json").read_text())
    write(HERE / "custom" / "skaffold-v4beta13.json", bare(schema))


def compose() -> None:
    """The schema of the Compose specification, which is strict as it is."""
    schema = json.loads((module(COMPOSE) / "schema/compose-spec.json").read_text())
    write(HERE / "custom" / "compose-spec.json", bare(schema))


if __name__ == "__main__":
    for version in (OLDEST, NEWEST):
        builtin(version)
    for crd in CUSTOM:
        custom(*crd)
    skaffold()
    compose()
