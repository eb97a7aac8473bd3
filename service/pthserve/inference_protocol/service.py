"""Service: the calls of the Open Inference Protocol, for REST and gRPC."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import pthserve
from pthserve.errors import MalformedRequest, NotFound, NotReady
from pthserve.images.cost import total
from pthserve.inference_protocol.infer import Request, Response, check, everything, outputs
from pthserve.inference_protocol.statistics import statistics
from pthserve.inference_protocol.tensors import Image, Input, images, input_forms
from pthserve.loading.model import Model
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings
from pthserve.tasks.base import Deferred, TensorForm, Work

EXTENSIONS = ("binary_tensor_data", "classification", "model_repository", "statistics")

MANY = 2**14
"""Outputs with so many scores are made in a thread: each score may become text."""

Load = Callable[[], Awaitable[object]]
"""Reloads the model, with the checks of any reload; raises ModelError and keeps the old one if they fail."""


class Service:
    """The calls of the protocol on the one model that `predictor` serves. It has no state of its own.

    Metadata, statistics and the index are plain values as in the protocol's JSON, without the version if the
    model has none.
    """

    def __init__(self, predictor: Predictor, settings: Settings, load: Load | None = None) -> None:
        self._predictor = predictor
        self._settings = settings
        self._load = load

    def live(self) -> str | None:
        """Return why the process should be restarted, or None."""
        return self._predictor.live()

    def unready(self) -> str | None:
        """Return why no inference should be sent now, or None."""
        return self._predictor.unready

    def model(self, name: str, version: str = "") -> Model:
        """Return the model with this name and version ("" is any version); raises NotFound or NotReady."""
        model = self._predictor.current
        if model is None:
            raise NotReady(f"the service is not ready: {self._predictor.unready}")
        if name != model.name:
            raise NotFound(f"no model has this name; the service has the model {model.name!r}")
        if version not in ("", model.version):
            current = f"has the version {model.version!r}" if model.version else "has no versions"
            raise NotFound(f"this version was not found; the model {model.name!r} {current}")
        return model

    def model_unready(self, name: str, version: str = "") -> str | None:
        """Return the same as `unready`, for the model `name`; raises NotFound."""
        if self._predictor.current is not None:
            self.model(name, version)
        return self.unready()

    def server_metadata(self) -> dict[str, object]:
        """Return name, version and extensions of the server."""
        return {"name": "pthserve", "version": pthserve.__version__, "extensions": list(EXTENSIONS)}

    def model_metadata(self, name: str, version: str = "") -> dict[str, object]:
        """Return the inputs and outputs of the model; a request must have one of the inputs."""
        model = self.model(name, version)
        return {
            "name": model.name,
            **({"versions": [model.version]} if model.version else {}),
            "platform": model.forward.name,
            "inputs": [_metadata(form) for form in input_forms(model.spec)],
            "outputs": [_metadata(form) for form in model.tensor_forms],
        }

    def check(self, name: str, version: str, deadline: float) -> None:
        """Raise the error that an inference would get now, before its body is read."""
        self.model(name, version)
        self._predictor.check(1, deadline)

    async def infer(self, request: Request, deadline: float | None = None) -> Response:
        """Answer `request`.

        Args:
            deadline: Seconds that the client allows for the call; the request's own timeout can shorten them.

        Raises:
            MalformedRequest, NotFound, TooLarge: The request does not fit the model.
            PthserveError: As the predictor.
        """
        model = self.model(request.model, request.version)
        if len(request.inputs) != 1:
            raise MalformedRequest(
                f"the request has {len(request.inputs)} inputs; it must have one: images, pixels or tensors"
            )
        forms = model.tensor_forms
        check(request.wanted, forms)
        batch = await self._images(request.inputs[0], model)
        granted = [seconds for seconds in (deadline, request.timeout) if seconds is not None]
        seconds = min(granted, default=self._settings.deadline)
        until = time.monotonic() + seconds
        answers = await self._predictor.predict_many(batch, deadline=seconds)
        model = answers[0].model
        notes = {
            "images": len(answers),
            **{
                stage: max(getattr(answer, stage) for answer in answers)
                for stage in ("decode", "queue", "infer", "batch")
            },
            "digest": model.digest,
        }
        # The model that answered may be a new one, but it has the same task.
        asked = request.wanted or everything(forms, binary=request.binary)
        made = partial(outputs, model.task, [one.answer for one in answers], model.labels, asked)
        scores = len(answers) * model.outputs
        whole = [one.answer.writing for one in answers if isinstance(one.answer, Deferred)]
        if whole:
            left = until - time.monotonic()
            (tensors,) = await self._predictor.computed([Work(total(whole), made)], left)
        else:
            tensors = made() if scores < MANY else await asyncio.to_thread(made)
        return Response(model.name, model.version, request.id, tensors, notes)

    async def _images(self, tensor: Input, model: Model) -> list[Image]:
        limits = {"max_images": self._settings.max_inflight, "max_pixels": self._settings.max_pixels}
        if isinstance(tensor.content, bytes | memoryview):
            return images(tensor, model.spec, **limits)
        # One element after the other would block the event loop for too long.
        return await asyncio.to_thread(images, tensor, model.spec, **limits)

    def statistics(self, name: str = "", version: str = "") -> dict[str, object]:
        """Return counts and durations of the model `name`, or of all models, which is the same."""
        model = self.model(name, version) if name else self._predictor.current
        if model is None:
            return {"model_stats": []}
        return {"model_stats": [{"name": model.name, **_version(model), **statistics()}]}

    def index(self, *, ready: bool = False) -> list[dict[str, object]]:
        """Return the model and its state; with `ready`, only if it is ready."""
        model, reason = self._predictor.current, self._predictor.unready
        if model is None or (ready and reason):
            return []
        state = "UNAVAILABLE" if reason else "READY"
        return [{"name": model.name, **_version(model), "state": state, "reason": reason or ""}]

    async def load(self, name: str, parameters: Mapping[str, object]) -> None:
        """Reload the model; raises ModelError if the new one is refused."""
        self.model(name)
        if parameters:
            raise MalformedRequest(
                "a load request cannot have parameters: the service knows where its model is"
            )
        if self._load is None:
            raise MalformedRequest("this service cannot reload its model; restart it")
        await self._load()

    def unload(self, name: str) -> None:
        """Raise NotFound or MalformedRequest: a service has one model, which stays."""
        self.model(name)
        raise MalformedRequest(
            "a service has only one model, which cannot be unloaded; stop the service, or scale its "
            "deployment to 0"
        )


def _metadata(form: TensorForm) -> dict[str, object]:
    return {"name": form.name, "datatype": form.datatype, "shape": list(form.shape)}


def _version(model: Model) -> dict[str, str]:
    return {"version": model.version} if model.version else {}
