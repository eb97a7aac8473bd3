"""Load: clients that keep their connections, ask without a break, and count every request that is lost."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pthserve.bench.client import Connection, ConnectionFailed, Target

from ..shared import until
from .background import Background

IMAGE = Path(__file__).parents[2] / "weights/imagenet/golden/coffee.jpg"
PATIENCE = 30.0
"""Seconds that a client waits for an answer: longer than the service's deadline."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request.

    began, seconds: when it was sent, in time.monotonic()'s seconds, and how long it took.
    status: 0 where no answer came. digest, version: of the weights that answered, and in their card.
    fault: why it is lost, or empty. "refused" is where there was nobody to send it to, "cut off" where
    its connection ended once it was sent.
    fresh: whether its connection was opened for it.
    """

    began: float
    seconds: float
    status: int
    fault: str
    digest: str
    version: str
    fresh: bool


@dataclass
class Load(Background):
    """`clients` that ask for IMAGE's class at `url`, each `pause` seconds after its last answer.

    As it stands: many, at a rate that two cores can bear beside all else. Each request has one of `images` by
    chance, since a gateway that sends every twentieth one elsewhere would send the same few there; and the
    header Host `host` where that is another than the address has.

    Nothing is ever asked again: what is refused, cut off or not answered stands in `answers` as a fault. A
    connection that the service has closed, and whose end the client has seen, is opened anew for the next
    request, as every HTTP client does. With `renewed`, a client opens another after so many answers, and so
    finds pods that are new.
    """

    url: str
    clients: int = 32
    pause: float = 0.2
    timeout: float = PATIENCE
    renewed: int | None = None
    images: Sequence[Path] = (IMAGE,)
    host: str = ""
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ends_within = self.timeout + 15

    @property
    def faults(self) -> Counter[str]:
        """Requests that were not answered with 200, by why."""
        return Counter(answer.fault for answer in self.answers if answer.fault)

    @property
    def digests(self) -> Counter[str]:
        """Good answers, by the digest of the weights that gave them."""
        return Counter(answer.digest for answer in self.answers if not answer.fault)

    def until_more(self, answers: int, seconds: float = 120) -> None:
        """Wait until so many more requests have been answered than now."""
        wanted = len(self.answers) + answers
        until(lambda: len(self.answers) >= wanted, seconds=seconds, what=f"{wanted} answers")

    def __str__(self) -> str:
        sent, opened = len(self.answers), sum(answer.fresh for answer in self.answers)
        if not sent:
            return "nothing sent"
        span = max(a.began + a.seconds for a in self.answers) - min(a.began for a in self.answers)
        p50, p95, most = np.quantile([answer.seconds for answer in self.answers], (0.5, 0.95, 1)) * 1000
        return (
            f"{sent} requests of {self.clients} clients over {opened} connections in {span:.0f} s "
            f"({sent / span:.0f}/s): {sum(self.faults.values())} failed {dict(self.faults)}; "
            f"latency p50 {p50:.0f} ms, p95 {p95:.0f} ms, most {most:.0f} ms"
        )

    async def _run(self) -> None:
        target = Target.parse(self.url)
        headers = [(b"Host", self.host.encode())] if self.host else []
        requests = [target.request(image, headers) for image in self.images]
        await asyncio.gather(*(self._client(target, requests, n) for n in range(self.clients)))

    async def _client(self, target: Target, requests: list[bytes], number: int) -> None:
        await asyncio.sleep(self.pause * number / self.clients)  # not all in step
        connection: Connection | None = None
        chance = random.Random(number)
        answered = 0
        while not self._stopped.is_set():
            began, status, fault, digest, version = time.monotonic(), 0, "", "", ""
            doing = "refused"
            fresh = connection is None or not connection.usable
            try:
                async with asyncio.timeout(self.timeout):
                    if connection is None or not connection.usable:
                        connection = await Connection.open(target)
                    doing = "cut off"
                    status = await connection.ask(chance.choice(requests))
                body = b"".join(connection.body)
                answered += 1
                if self.renewed and answered % self.renewed == 0:
                    connection.close()
                if status == 200:
                    model = json.loads(body)["model"]
                    digest, version = model["digest"], model["version"]
                else:
                    fault = f"{status} {body.decode(errors='replace')[:200]}"
            except ConnectionFailed as error:
                fault, connection = f"{doing}: {error}", None
            except TimeoutError:
                fault, connection = f"no answer in {self.timeout:g} s", None
            seconds = time.monotonic() - began
            self.answers.append(Answer(began, seconds, status, fault, digest, version, fresh))
            await asyncio.sleep(max(self.pause, 0.1 if fault else 0))
        if connection is not None:
            connection.close()
