"""Sends a picture of a cat to the service and checks the answer. What `helm test` runs."""

import math
import os
import sys
from pathlib import Path

import httpx

here = Path(__file__).parent
keys = Path("/run/secrets/pthserve/keys")
headers = {"Authorization": f"Bearer {keys.read_text().split()[0]}"} if keys.exists() else {}
expected = os.environ.get("EXPECTED", "").split()

with httpx.Client(
    base_url=os.environ["URL"], headers=headers, timeout=30, transport=httpx.HTTPTransport(retries=5)
) as client:
    reply = client.post(
        "/predict", files={"image": ("cat.jpg", (here / "cat.jpg").read_bytes(), "image/jpeg")}
    )

if reply.status_code != 200:
    sys.exit(f"{os.environ['URL']}/predict answered {reply.status_code}: {reply.text}")
answer = reply.json()
probabilities = answer["probabilities"]
best = max(range(len(probabilities)), key=probabilities.__getitem__)
if answer["class_index"] != best or not math.isclose(sum(probabilities), 1, abs_tol=0.01):
    sys.exit(f"the answer contradicts itself: {reply.text[:500]}")
if expected and str(best) not in expected:
    sys.exit(f"a cat was taken for class {best} ({answer.get('label')}); expected one of {expected}")
print(f"class {best} ({answer.get('label')}), probability {probabilities[best]:.2f}")  # noqa: T201
