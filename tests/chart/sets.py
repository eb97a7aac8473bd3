"""Sets of values that between them turn on everything the chart has."""

from pathlib import Path
from typing import Any

import yaml

EXAMPLES = Path(__file__).parents[2] / "k8s" / "examples"
SHA256 = "0123456789abcdef" * 4
ANYWHERE = [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]

SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "slim": {"image": {"variant": "slim"}},
    "own image": {
        "image": {"repository": "registry.example/team/cats", "tag": "7", "pullSecrets": [{"name": "registry"}]},
        "settings": {"model": "/models/cats"},
    },
    "digest": {"image": {"digest": f"sha256:{SHA256}"}},
    "claim": {"weights": {"source": "pvc", "file": "resnet18.pth", "pvc": {"existingClaim": "models"}}},
    "new claim": {
        "weights": {
            "source": "pvc",
            "sha256": SHA256,
            "pvc": {"create": True, "storageClass": "fast", "accessModes": ["ReadWriteMany"], "size": "5Gi"},
        },
        "replicas": 3,
    },
    "configMap": {"weights": {"source": "configMap", "file": "tiny.pth", "configMap": {"name": "tiny"}}},
    "download": {
        "weights": {
            "source": "download",
            "sha256": SHA256,
            "download": {
                "url": "https://models.example/a/resnet50.pth?version=2#x",
                "secret": "models",
                "sizeLimit": "1Gi",
            },
        },
        "networkPolicy": {"egress": ANYWHERE},
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
    },
    "image volume": {
        "weights": {"source": "image", "file": "cats", "image": {"reference": "registry.example/weights/cats:3"}}
    },
    "pack": {
        "image": {"variant": "slim"},
        "weights": {"source": "pvc", "file": "resnet18.pth", "pvc": {"existingClaim": "models"}},
        "pack": {"enabled": True, "create": True},
        "replicas": 2,
    },
    "pack of a download": {
        "weights": {
            "source": "download",
            "sha256": SHA256,
            "download": {"url": "https://models.example/resnet50.pth"},
        },
        "pack": {"enabled": True, "existingClaim": "packs"},
        "networkPolicy": {"enabled": False},
    },
    "gpu": {"gpu": {"enabled": True, "runtimeClassName": "nvidia", "nodeSelector": {"accelerator": "h100"}}},
    "ports": {"settings": {"port": 8080, "grpcPort": 8001, "metricsPort": 9090}},
    "keys": {"apiKeys": {"secret": "cats-keys"}},
    "cpu": {"autoscaling": {"enabled": True}},
    "inflight": {"autoscaling": {"enabled": True, "metric": "inflight", "minReplicas": 2}},
    "saturation": {
        "autoscaling": {
            "enabled": True,
            "metric": "saturation",
            "target": {"saturation": 0.65},
            "extraMetrics": [
                {"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 80}}}
            ],
        }
    },
    "keda": {"autoscaling": {"enabled": True, "provider": "keda", "metric": "saturation"}},
    "keda on cpu": {
        "autoscaling": {
            "enabled": True,
            "provider": "keda",
            "extraMetrics": [{"type": "cron", "metadata": {"timezone": "UTC", "start": "0 8 * * *", "end": "0 18 * * *", "desiredReplicas": "4"}}],
        }
    },
    "service monitor": {
        "monitoring": {
            "serviceMonitor": {"enabled": True, "interval": "5s", "labels": {"release": "stack"}},
            "rules": {"enabled": True, "labels": {"release": "stack"}, "runbookUrl": "https://docs.example/operations"},
            "dashboards": {"enabled": True, "folder": "Models"},
        }
    },
    "pod monitor": {"monitoring": {"podMonitor": {"enabled": True, "interval": "5s"}}},
    "ingress": {
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "20m"},
            "hosts": ["cats.example"],
            "tls": [{"secretName": "cats-tls", "hosts": ["cats.example"]}],
        }
    },
    "route": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["cats.example"]}},
    "callers": {
        "networkPolicy": {
            "from": [{"podSelector": {"matchLabels": {"role": "caller"}}}],
            "metricsFrom": [{"namespaceSelector": {}}],
        },
        "settings": {"metricsPort": 9090},
    },
    "recreate": {"strategy": {"type": "Recreate"}},
    "extras": {
        "podLabels": {"team": "cats"},
        "podAnnotations": {"note": "x"},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "serviceAccount": {"annotations": {"cloud.example/role": "reader"}},
        "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"cloud.example/internal": "true"}},
    },
    "no account": {"serviceAccount": {"create": False}, "networkPolicy": {"enabled": False}},
} | {
    # gpu.yaml's header tells to pin the file on the command line.
    path.name: (yaml.safe_load(path.read_text()) | ({} if path.stem != "gpu" else {"weights": {
        **yaml.safe_load(path.read_text())["weights"], "sha256": SHA256}}))
    for path in sorted(EXAMPLES.glob("*.yaml"))
    if path.stem != "hostpath-claim"
}  # fmt: skip
