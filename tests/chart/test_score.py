"""k8s/examples/score.yaml: the Indexed Job of batch scoring agrees with its command, and with its queue."""

from pathlib import Path
from typing import Any

import yaml
from kubernetes.utils import parse_quantity

from pthserve import exits
from pthserve.errors import GoldenError, ModelError

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "k8s" / "examples" / "score.yaml").read_text()
JOB: dict[str, Any] = yaml.safe_load(TEXT)
SPEC = JOB["spec"]
POD = SPEC["template"]["spec"]
(CONTAINER,) = POD["containers"]


def test_there_are_as_many_indexes_as_shards() -> None:
    args = CONTAINER["args"]
    assert SPEC["completionMode"] == "Indexed"
    assert int(args[args.index("--shards") + 1]) == SPEC["completions"]


def test_an_index_is_tried_again_by_itself_unless_another_try_would_end_the_same() -> None:
    rules = SPEC["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailIndex", "FailJob"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    by_code = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules[1:]}
    usage = 2
    codes = dict(exits.EXIT_CODES)
    assert by_code == {
        "FailIndex": [exits.IMAGES_FAILED],
        "FailJob": [usage, codes[ModelError], codes[GoldenError]],
    }
    assert {rule["onExitCodes"]["containerName"] for rule in rules[1:]} == {CONTAINER["name"]}
    # What a podFailurePolicy and backoffLimitPerIndex ask for.
    assert POD["restartPolicy"] == "Never"
    assert SPEC["podReplacementPolicy"] == "Failed"
    assert SPEC["backoffLimitPerIndex"] > 0


def test_its_pods_fit_the_restricted_standard() -> None:
    own, context = POD["securityContext"], CONTAINER["securityContext"]
    assert own["runAsNonRoot"]
    assert min(own["runAsUser"], own["runAsGroup"]) > 10000
    assert own["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_every_mount_has_its_volume_and_every_volume_a_mount() -> None:
    assert {one["name"] for one in POD["volumes"]} == {one["name"] for one in CONTAINER["volumeMounts"]}


def test_its_image_has_what_scoring_needs() -> None:
    assert CONTAINER["image"].endswith("-batch")
    lock = (ROOT / "requirements-batch.lock").read_text()
    assert "\npyarrow==" in lock
    assert "\nobstore==" in lock


def test_with_its_label_the_queue_of_kueue_has_room_for_all_its_pods() -> None:
    """Kueue admits no Job with a request for a resource that the quota does not cover."""
    label = "kueue.x-k8s.io/queue-name"
    queued = yaml.safe_load(TEXT.replace(f"# {label}", label))
    assert label not in JOB["metadata"]["labels"]
    documents = yaml.safe_load_all((ROOT / "k8s" / "examples" / "score-kueue.yaml").read_text())
    flavor, cluster_queue, local_queue = documents
    assert queued["metadata"]["labels"][label] == local_queue["metadata"]["name"]
    assert local_queue["spec"]["clusterQueue"] == cluster_queue["metadata"]["name"]
    (group,) = cluster_queue["spec"]["resourceGroups"]
    (quotas,) = group["flavors"]
    assert quotas["name"] == flavor["metadata"]["name"]
    room = {one["name"]: parse_quantity(one["nominalQuota"]) for one in quotas["resources"]}
    assert set(room) == set(group["coveredResources"])
    for name, request in CONTAINER["resources"]["requests"].items():
        assert SPEC["parallelism"] * parse_quantity(request) <= room[name]
