"""Loader: a model as a service loads it, packed once in a child process and then found in a cache.

In the process of the service itself are loaded: a model that runs on a GPU, or in PyTorch because the options
say so; one that OpenVINO cannot express, such as a detector; and an ONNX model, which needs no PyTorch.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pthserve.engines.cpu import library
from pthserve.errors import EngineError, PackError
from pthserve.files import onnx_files
from pthserve.loading import own_code, packed
from pthserve.loading.build import BuildFailed, Result, Watch, build, log_again
from pthserve.loading.cache import PACK, Cache, Entry, UnusableCache
from pthserve.loading.load import load, unpacked
from pthserve.loading.model import Model
from pthserve.loading.packed import Packed
from pthserve.options import ModelOptions, user_cache
from pthserve.planning import plan_files
from pthserve.planning.plan import Plan
from pthserve.sources.fetched import fetched
from pthserve.text import MESSAGE, quoted

if TYPE_CHECKING:  # a packed model needs no key
    from pthserve.loading.cache_key import Key

NICE = 10
"""By how much the build for a reload gives way to the service; see nice(1)."""
_GPUS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
"""What is there where PyTorch may find a GPU: NVIDIA's drivers, on Jetson and in WSL too, and AMD's."""

_log = logging.getLogger(__name__)


class Loader:
    """Loads the model that `source` names, whenever it is called: for a start, and for each reload.

    A model that replaces another is run as that one is, as far as its answers agree: what is measured while a
    service is busy says nothing. Its engine is sparing with memory: both are there for a moment.

    size: maximum bytes of the packed models in the cache; None keeps none. stage: what is being done just
    now, in words, or "".
    """

    def __init__(self, source: str, options: ModelOptions, size: int | None = None) -> None:
        self.stage = ""
        self._size = size
        self._source = source
        self._options = options
        self._verified = options.model_copy(update={"require_signature": None})  # what `fetched` returns is
        self._path = Path(source)
        self._watching: Watch | None = None
        self._before: Plan | None = None
        if not packed.is_packed(self._path):
            own_code.digest()  # part of the key, read before other threads import

    def __call__(self, watch: Watch | None = None) -> Model:
        """The model; raises ModelError. One thread at a time calls it.

        watch: called with what is being done.
        """
        self._watching = watch
        try:
            model = self._loaded()
        finally:
            self.stage = ""
        self._before = model.plan
        return model

    def _loaded(self) -> Model:
        options = self._options
        self._path = path = fetched(self._source, options, partial(self._watch, "downloading the model"))
        if packed.is_packed(path) or self._needs_torch():
            return self._here()
        try:
            found = _key(path, options)
        except OSError:
            return self._here()  # which says what is wrong with the file
        if onnx_files.may_be(found.card.weights):
            return self._here()
        for place in (_temporary,) if self._size is None else (_cache, _temporary):
            try:
                with place(options, self._size or 0) as cache:
                    return self._from(cache, found)
            except UnusableCache as error:
                _log.warning("the packed model is not kept for later starts: %s", error)
            except BuildFailed as error:
                _log.warning("the model is loaded with PyTorch in the process of the service: %s", error)
                break
        return self._here()

    def _here(self) -> Model:
        """The model, made in this process: read where it is packed, and built where it is not."""
        progress = partial(self._watch, "reading the weights")
        return load(str(self._path), self._verified, progress, sparing=self._before is not None)

    def _needs_torch(self) -> bool:
        """Whether the options, or a GPU that may be there, say that PyTorch runs the model."""
        options = self._options
        if options.engine == "torch" or options.device == "cuda":
            return True
        if options.plan is not None:
            plan = plan_files.read(options.plan)
            return (plan.engine, plan.device) != ("openvino", "cpu") or plan.precision == "int8"
        anything = options.engine == "auto" and options.device == "auto" and options.precision != "int8"
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        cpu_build = library("torch").endswith("+cpu")
        return anything and not hidden and not cpu_build and any(map(os.path.exists, _GPUS))

    def _from(self, cache: Cache, found: "Key") -> Model:
        """The model, as its pack in `cache`, which is built where it is not there."""
        with cache.locked(found.digest, shared=True):
            if (model := self._found(cache, found)) is not None:
                return model
        with cache.locked(found.digest) as lock:
            if (model := self._found(cache, found)) is not None:  # another start has built it meanwhile
                return model
            with self._built(cache, found) as entry:
                if entry.folder.name == found.digest:
                    lock.share()
                try:
                    model = self._served(entry, found)
                except PackError as error:
                    raise BuildFailed(str(error)) from error
        cache.trim(keep=found.digest)
        return model

    def _found(self, cache: Cache, found: "Key") -> Model | None:
        """The model, where its entry is there and whole."""
        entry = cache.find(found.digest)
        if entry is None:
            return None
        try:
            model = self._served(entry, found)
        except PackError as error:
            _log.debug("the entry is damaged: %s", error)
            return None
        for warning in entry.warnings:
            log_again(*warning)
        return model

    @contextmanager
    def _built(self, cache: Cache, found: "Key") -> Iterator[Entry]:
        """A new entry. Where a file changed meanwhile it is not kept, and gone at the end of the block."""
        began = time.perf_counter()
        source = quoted(self._source, MESSAGE)
        _log.info("packing %s, in a process of its own", source)
        try:
            part = cache.part(found.digest)
            try:
                (part / PACK).mkdir()
                options, nice = self._for_build(), 0 if self._before is None else NICE
                result = build(str(self._path), options, part / PACK, self._watch, code=found.code, nice=nice)
                if result.needs_torch:
                    shutil.rmtree(part / PACK)
                kept = result.keep and _key(self._path, self._options).digest == found.digest
                entry = cache.put(part, found.digest, _values(result, found)) if kept else None
                if result.needs_torch:
                    _log.info("%s is not packed, and PyTorch runs it: %s", source, result.needs_torch)
                else:
                    _log.info("packed %s in %.1f s", source, time.perf_counter() - began)
                yield entry or Entry(part, needs_torch=result.needs_torch)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        except OSError as error:
            raise UnusableCache(f"{cache.folder}: {error.strerror or error}") from error

    def _for_build(self) -> ModelOptions:
        """The options for the child: no measurement, and half of the CPUs where the service needs them."""
        cpus = self._options.cpus if self._before is None else max(1, self._options.cpus // 2)
        precision = "int8" if self._options.precision == "int8" else "auto"
        changed = {"name": None, "plan": None, "cache_dir": None, "tune_budget": 0.0}
        return self._verified.model_copy(update={**changed, "threads": cpus, "precision": precision})

    def _watch(self, stage: str, done: int, total: int | None) -> None:
        self.stage = f"{stage} ({done / total:.0%})" if total else stage
        if self._watching is not None:
            self._watching(stage, done, total or 0)

    def _served(self, entry: Entry, found: "Key") -> Model:
        """The model of an entry; raises PackError where it is damaged."""
        if entry.needs_torch:
            _log.debug("it needs PyTorch: %s", entry.needs_torch)
            return self._here()
        pack = packed.read(entry.pack)
        self._watch("preparing the engine", 0, 0)
        try:
            model = self._as_before(pack, entry) or self._measured(pack, entry)
        except EngineError:
            return self._here()  # as the plan or the options want it, or with the reason why not
        return replace(model, golden=found.card.golden, source=self._path, options=self._options)

    def _as_before(self, pack: Packed, entry: Entry) -> Model | None:
        """The model, run as the one before it; None where there was none, or it would not agree."""
        before, options = self._before, self._options
        if before is None or before.engine != "openvino" or entry.plan(options):
            return None
        copied = {name: getattr(before, name) for name in ("precision", "threads", "max_batch")}
        changed = {**copied, "tune_budget": 0.0, "plan": None, "cache_dir": None}
        try:
            return unpacked(pack, options.model_copy(update=changed), sparing=True)
        except EngineError:
            return unpacked(pack, options, sparing=True)

    def _measured(self, pack: Packed, entry: Entry) -> Model:
        """The model, run by the plan that was kept, or else by one that is measured now and kept."""
        known = entry.plan(self._options)
        sparing = self._before is not None
        model = unpacked(pack, self._options, measure=True, known=known, sparing=sparing)
        if model.plan.digest and known is None and self._options.plan is None:
            entry.keep_plan(model.plan, self._options)
        return model


@contextmanager
def _cache(options: ModelOptions, size: int) -> Iterator[Cache]:
    """The cache in which later starts look."""
    root = options.cache_dir or user_cache()
    if root is None:
        raise UnusableCache("this user has no home folder; set --cache-dir")
    yield Cache(root, size)


@contextmanager
def _temporary(_: ModelOptions, size: int) -> Iterator[Cache]:
    """A cache for this time alone."""
    try:
        folder = tempfile.mkdtemp(prefix="pthserve-")
    except OSError as error:
        raise UnusableCache(str(error)) from error
    try:
        yield Cache(Path(folder), size)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _key(path: Path, options: ModelOptions) -> "Key":
    from pthserve.loading.cache_key import key  # with what reads a card, which a packed model does not have

    return key(path, options)


def _values(result: Result, found: "Key") -> Mapping[str, Any]:
    """What an entry says of the build."""
    counted = {os.path.realpath(file) for file in found.files}
    return {
        "read": [(file, digest) for file, digest in result.read if file not in counted],
        "warnings": result.warnings,
        "needs_torch": result.needs_torch,
    }
