"""Pods that play a part beside the service."""

from typing import Any


def pod(name: str, image: str, *command: str, **security: object) -> dict[str, Any]:
    """A pod as the standard `restricted` wants it, but for what `security` says.

    Its label `app` is its name. It has the files of the ConfigMap `www`, if there is one, in /www.
    """
    restricted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": name,
        "image": image,
        "args": command,
        "securityContext": restricted | security,
        "volumeMounts": [{"name": "www", "mountPath": "/www"}],
    }
    return {
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "containers": [container],
            "volumes": [{"name": "www", "configMap": {"name": "www", "optional": True}}],
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
        },
    }
