"""PyTorch: the module itself, on CPU or CUDA."""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pthserve.engines.base import Explanation, Images, Logits
from pthserve.engines.cpu import cpu_flags
from pthserve.engines.grad_cam import GradCam
from pthserve.errors import EngineError
from pthserve.images.spec import Spec

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

GRAPH_SIZES = (1, 2, 4, 8, 16, 32)
"""Batch sizes with a CUDA graph of their own: a batch is padded to the next one, and cut above the last."""


def precisions(device: str) -> tuple[str, ...]:
    """The precisions that `device` (cpu or cuda) computes natively, fp32 first."""
    if device == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("fp32", "tf32", "fp16", "bf16") if bf16 else ("fp32", "fp16")
    return ("fp32", "bf16") if cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"} else ("fp32",)


class TorchEngine:
    """A module in eval mode; see `Engine`.

    module: from float32 (n, channels, height, width) to (n, classes). At fp32 on CPU it is used as it is, and
    its parameters are laid out again; else those of a copy are.
    threads: of the CPU's, on one batch.
    device: cpu or cuda.

    Raises:
        EngineError: there is no such device, or it does not compute `precision`.
    """

    name = "torch"
    lanes = 1

    def __init__(
        self, module: nn.Module, spec: Spec, *, precision: str = "fp32", threads: int = 1, device: str = "cpu"
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise EngineError("no CUDA device found; use --device cpu")
        if precision not in precisions(device):
            needs = ", which needs avx512_bf16 or amx_bf16" if (device, precision) == ("cpu", "bf16") else ""
            known = ", ".join(precisions(device))
            raise EngineError(f"PyTorch does not support {precision} on this {device}{needs}; use {known}")
        self.precision = precision
        self.threads = threads
        self._dtype = DTYPES[precision]
        own = module if (device, precision) == ("cpu", "fp32") else copy.deepcopy(module)
        self._device = device
        self._products = "tf32" if precision == "tf32" else "ieee"
        # What a detector computes follows from the image, so that nothing can be recorded.
        recordable = device == "cuda" and not getattr(module, "varies", False)
        try:
            own = own.eval().to(device, self._dtype)
            self._layout = _layout(own, device, self._dtype)
            _order(own, self._layout)
            self._module: nn.Module | None = own
            self._mean, self._std = (
                torch.tensor(values, device=device).view(-1, 1, 1) for values in (spec.mean, spec.std)
            )
            self._cuda = CudaGraphs(self._forward, spec, products=self._products) if recordable else None
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            raise EngineError(
                f"the model does not run on the GPU: {_beginning(error)}; see with nvidia-smi what else uses "
                "the GPU, or use --device cpu"
            ) from error
        self._explaining = threading.Lock()
        self._grad_cam: GradCam | None = None

    @torch.inference_mode()
    def __call__(self, batch: Images) -> Logits:
        """Logits of `batch`; see `Engine`."""
        # PyTorch warns of arrays that cannot be written to, and refuses negative strides.
        images = torch.from_numpy(np.require(batch, requirements=["C", "W"]))
        if self._cuda:
            return self._cuda(images)
        if torch.get_num_threads() != self.threads:  # a number of the calling thread, not of the engine
            torch.set_num_threads(self.threads)
        with self._at_precision():
            logits: NDArray[np.float32] = self._forward(images.to(self._device)).cpu().numpy()
        return logits

    def explain(self, image: NDArray[np.uint8], class_index: int) -> Explanation | None:
        """Grad-CAM's map of `image`; see `Explains`."""
        assert self._module is not None
        images = torch.from_numpy(np.require(image[None], requirements=["C", "W"])).to(self._mean.device)
        with self._explaining, self._at_precision():
            self._grad_cam = self._grad_cam or GradCam(self._module)
            found = self._grad_cam(self._normalised(images), class_index)
        return None if found is None else Explanation("Grad-CAM", found.cpu().numpy())

    def with_threads(self, threads: int) -> "TorchEngine":
        """Return an engine of the same module, whose passes use so many threads; see `Resizable`."""
        other = copy.copy(self)
        other.threads = threads
        return other

    def close(self) -> None:
        """Give memory back; the engine is not called again."""
        recorded, self._module, self._cuda, self._grad_cam = self._cuda, None, None, None
        if recorded:
            recorded.close()
            del recorded
            torch.cuda.empty_cache()

    def _forward(self, images: Tensor) -> Tensor:
        assert self._module is not None
        logits: Tensor = self._module(self._normalised(images)).float()
        return logits

    def _at_precision(self) -> AbstractContextManager[None]:
        """Have CUDA's libraries compute at the engine's precision what is not recorded."""
        return _products(self._products) if self._device == "cuda" else nullcontext()

    def _normalised(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            # The very operations of torchvision's ToTensor and Normalize; the view is channels-last already.
            images = images.permute(0, 3, 1, 2).to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        return images.to(self._dtype, memory_format=self._layout)


class CudaGraphs:
    """A forward pass on CUDA, recorded once for each of GRAPH_SIZES and replayed.

    Images go over the bus as they came, from pinned memory and on a stream of their own, so that the next
    piece of a large batch is copied while the present one is computed.

    The graphs share one memory pool: they run one after another, and the logits of one are copied before the
    next one starts.

    products: how float32 is multiplied; see `_products`.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], spec: Spec, *, products: str) -> None:
        self._forward = forward
        self._products = products
        self._pool = torch.cuda.graph_pool_handle()
        self._shapes = {torch.uint8: spec.image_shape, torch.float32: spec.tensor_shape}
        self._compute, self._copy = self._streams = _streams()
        self._recorded: dict[tuple[torch.dtype, int], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        for size in GRAPH_SIZES:
            self._record(torch.uint8, size)

    def __call__(self, images: Tensor) -> Logits:
        """Logits of `images`, a tensor in the CPU's memory."""
        answers = []
        for piece in torch.split(images, GRAPH_SIZES[-1]):
            size = next(size for size in GRAPH_SIZES if size >= len(piece))
            graph, given, logits = self._recorded.get((piece.dtype, size)) or self._record(piece.dtype, size)
            with torch.cuda.stream(self._copy):
                arrived = piece.pin_memory().to("cuda", non_blocking=True)
            with torch.cuda.stream(self._compute):
                self._compute.wait_stream(self._copy)
                arrived.record_stream(self._compute)
                given[: len(piece)].copy_(arrived)
                graph.replay()
                answers.append(logits[: len(piece)].to("cpu", non_blocking=True))
        self._compute.synchronize()
        joined: NDArray[np.float32] = torch.cat(answers).numpy()
        return joined

    def close(self) -> None:
        """Give the streams back; no graph is replayed again."""
        self._recorded.clear()
        _idle_streams.append(self._streams)

    def _record(self, dtype: torch.dtype, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        given = torch.zeros(size, *self._shapes[dtype], dtype=dtype, device="cuda")
        self._compute.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), _products(self._products):
            with torch.cuda.stream(self._compute):
                for _ in range(3):  # libraries choose their kernels and workspaces before the recording
                    self._forward(given)
            # thread_local: another thread may load a model meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._compute, capture_error_mode="thread_local"
            ):
                logits = self._forward(given)
        self._recorded[dtype, size] = graph, given, logits
        return graph, given, logits


_idle_streams: list[tuple[torch.cuda.Stream, torch.cuda.Stream]] = []
"""Pairs of streams that no engine uses. cuBLAS keeps a workspace of about 32 MiB for each stream that it ever
saw, so an engine uses the streams of one that was closed."""


def _streams() -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Return a stream for computing and one for copying, which no other engine uses."""
    try:
        return _idle_streams.pop()
    except IndexError:
        return torch.cuda.Stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]


_setting = threading.RLock()
"""Held while the precision of products is another than PyTorch's own: it is one for all threads."""


@contextmanager
def _products(precision: str) -> Iterator[None]:
    """Have CUDA's libraries compute products of float32 at `precision` (ieee or tf32) in this block.

    tf32 has 10 bits of mantissa; PyTorch's convolutions use it by default.
    """
    settings = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    with _setting:
        before = [setting.fp32_precision for setting in settings]
        try:
            for setting in settings:
                setting.fp32_precision = precision
            yield
        finally:
            for setting, value in zip(settings, before, strict=True):
                setting.fp32_precision = value


def _beginning(error: Exception) -> str:
    """What failed, and what was free: the first three sentences of a message of PyTorch."""
    return ". ".join(str(error).splitlines()[0].split(". ")[:3]).rstrip(".")


def _layout(module: nn.Module, device: str, dtype: torch.dtype) -> torch.memory_format:
    """Channels-last, but for modules with grouped convolutions that compute float32 on CUDA.

    In channels-last order, cuDNN takes about 30 ms for each of those and each new shape of images: 2 s for a
    MobileNet-V3-large, and 0.1 s in the other order, which is as fast or faster afterwards. With half as many
    bits, channels-last is a quarter to a third faster in large batches (H200, cuDNN 9).
    """
    grouped = any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in module.modules())
    slow = device == "cuda" and dtype == torch.float32 and grouped
    return torch.contiguous_format if slow else torch.channels_last


def _order(module: nn.Module, layout: torch.memory_format) -> None:
    """Order the tensors of convolutions; `Module.to` would fail on tensors with five dimensions."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.dim() == 4:  # replaced: the data of what an earlier pass computed cannot be changed
                setattr(part, name, buffer.contiguous(memory_format=layout))
