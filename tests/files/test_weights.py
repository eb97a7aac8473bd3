"""A file becomes a state dict, safely: what is read, what is refused, and that nothing in it ever runs."""

import argparse
import builtins
import collections
import hashlib
import io
import json
import os
import pickle
import random
import shlex
import struct
import subprocess
import sys
import tarfile
import threading
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pthserve.certainty import Origin
from pthserve.errors import WeightsError
from pthserve.files import weights

SEED = 7


def make_state_dict() -> dict[str, torch.Tensor]:
    torch.manual_seed(SEED)
    return dict(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)).state_dict())


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def save_zip(value: Any, path: Path) -> None:
    torch.save(value, path)


def save_legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_safetensors(value: Any, path: Path) -> None:
    save_file(value, path)


FORMATS = {"zip": save_zip, "legacy": save_legacy, "safetensors": save_safetensors}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_tensors_the_digest_and_the_size(tmp_path: Path, form: str) -> None:
    path = tmp_path / "model.pth"
    FORMATS[form](make_state_dict(), path)

    read = weights.read(path)

    assert same(read.state_dict, make_state_dict())
    assert read.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (read.size, read.container, read.format) == (path.stat().st_size, "", form)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_those_of_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({"a.weight": torch.ones(2, 2, dtype=dtype)}, tmp_path / "model.pth")
    assert weights.read(tmp_path / "model.pth").state_dict["a.weight"].dtype == dtype


def test_progress_ends_at_the_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a.weight": torch.zeros(3000, 1000)}, path)
    seen: list[tuple[int, int]] = []

    weights.read(path, progress=lambda done, total: seen.append((done, total)))

    size = path.stat().st_size
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)


@pytest.mark.slow
def test_importing_the_module_does_not_import_torch() -> None:
    code = "import sys, pthserve.files.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- checkpoints -----------------------------------------------------------------------------------


def make_checkpoint(**parts: Any) -> dict[str, Any]:
    """A training checkpoint: the parts, and beside them an optimizer that has moments for every parameter."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(module.parameters())
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {"epoch": 3, "optimizer": optimizer.state_dict(), "best": 0.9, "args": {"lr": 0.1}, **parts}


@pytest.mark.parametrize(
    "key",
    ["state_dict", "model_state_dict", "model", "net", "weights", "ema", "model_ema", "params", "anything"],
)
def test_a_state_dict_is_found_beside_an_optimizer(tmp_path: Path, key: str) -> None:
    torch.save(make_checkpoint(**{key: make_state_dict()}), tmp_path / "model.pth")
    read = weights.read(tmp_path / "model.pth")
    assert (read.container, same(read.state_dict, make_state_dict())) == (key, True)


def test_lightnings_layout_is_read(tmp_path: Path) -> None:
    checkpoint = {
        "epoch": 9,
        "global_step": 900,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in make_state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 10}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.1)}},
        "optimizer_states": [make_checkpoint()["optimizer"]],
        "lr_schedulers": [],
        "hyper_parameters": {"num_classes": 2},
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    read = weights.read(tmp_path / "last.ckpt")
    assert read.container == "state_dict"
    assert set(read.state_dict) == {f"model.{name}" for name in make_state_dict()}


def test_a_nested_state_dict_is_named_by_its_path(tmp_path: Path) -> None:
    torch.save({"checkpoint": {"model": make_state_dict()}}, tmp_path / "model.pth")
    assert weights.read(tmp_path / "model.pth").container == "checkpoint.model"


@pytest.mark.parametrize("key", ["ema", "model_ema", "state_dict_ema", "params_ema"])
def test_the_moving_average_is_preferred(tmp_path: Path, key: str) -> None:
    averaged = {"n_averaged": torch.tensor(5)} | {f"module.{k}": v for k, v in make_state_dict().items()}
    torch.save(make_checkpoint(model=make_state_dict(), **{key: averaged}), tmp_path / "model.pth")
    assert weights.read(tmp_path / "model.pth").container == key


def test_a_moving_average_without_the_buffers_is_not_preferred(tmp_path: Path) -> None:
    parameters = {name: tensor for name, tensor in make_state_dict().items() if "running" not in name}
    torch.save({"ema": parameters, "model": make_state_dict()}, tmp_path / "model.pth")
    assert weights.read(tmp_path / "model.pth").container == "model"


def test_two_state_dicts_of_unknown_names_are_refused_with_the_line_that_takes_one(tmp_path: Path) -> None:
    torch.save({"teacher": make_state_dict(), "student": make_state_dict()}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"teacher, student.*LOADED|teacher, student.*torch\.save"):
        weights.read(tmp_path / "model.pth")


def test_parameters_are_read_as_plain_tensors(tmp_path: Path) -> None:
    torch.save(dict(nn.Sequential(nn.Linear(2, 2)).named_parameters()), tmp_path / "model.pth")
    read = weights.read(tmp_path / "model.pth")
    assert {type(tensor) for tensor in read.state_dict.values()} == {torch.Tensor}
    assert not any(tensor.requires_grad for tensor in read.state_dict.values())


def test_a_checkpoint_that_refers_to_itself_many_times_is_searched_once(tmp_path: Path) -> None:
    inner: dict[str, Any] = {}
    for _ in range(5):
        inner = {f"key{i}": inner for i in range(1000)}
    torch.save(inner, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="contains no state dict"):
        weights.read(tmp_path / "model.pth")


def test_what_trainers_put_beside_the_weights_keeps_nobody_from_reading_them(tmp_path: Path) -> None:
    """As DeiT, timm and torchvision save their arguments, and many a score as a number of numpy's."""
    checkpoint = make_checkpoint(
        model=make_state_dict(),
        args=argparse.Namespace(model="mobilenet_v3_small", lr=1e-3, data_path=Path("/data")),
        best_acc=np.mean([0.9, 0.95]),
    )
    for save in (save_zip, save_legacy):
        save(checkpoint, tmp_path / "model.pth")
        read = weights.read(tmp_path / "model.pth")
        assert same(read.state_dict, make_state_dict())
        assert read.metadata["args"] == {"model": "mobilenet_v3_small", "lr": 1e-3, "data_path": "/data"}
        assert read.metadata["best_acc"] == pytest.approx(0.925)
        assert read.inferred == ()


def test_a_state_dict_under_an_unusual_key_is_found_beside_numbers_of_numpy(tmp_path: Path) -> None:
    torch.save(make_checkpoint(classifier_weights=make_state_dict(), best=np.float64(1)), tmp_path / "m.pth")
    assert weights.read(tmp_path / "m.pth").container == "classifier_weights"


def test_a_module_beside_a_state_dict_is_left_out(tmp_path: Path) -> None:
    torch.save({"classifier": nn.Linear(2, 2), "state_dict": make_state_dict()}, tmp_path / "model.pth")
    assert same(weights.read(tmp_path / "model.pth").state_dict, make_state_dict())


def test_which_of_several_state_dicts_was_taken_is_told_unless_the_card_says(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    averaged = {name: tensor * 2 for name, tensor in make_state_dict().items()}
    torch.save({"model": make_state_dict(), "model_ema": averaged}, path)

    (told,) = weights.read(path).inferred

    assert (told.subject, told.origin) == ("weights", Origin.ASSUMED)
    assert str(told).startswith("weights: model_ema, a moving average; there are also model (assumed)")
    assert told.setting == 'container: "model_ema"'
    plain = weights.read(path, container="model")
    assert (plain.container, plain.inferred) == ("model", ())
    assert same(plain.state_dict, make_state_dict())
    with pytest.raises(WeightsError, match="no state dict under ema; it has model, model_ema"):
        weights.read(path, container="ema")


def test_one_of_several_state_dicts_of_unknown_names_can_be_named(tmp_path: Path) -> None:
    torch.save({"teacher": make_state_dict(), "student": make_state_dict()}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="`container: teacher`"):
        weights.read(tmp_path / "model.pth")
    assert weights.read(tmp_path / "model.pth", container="student").container == "student"


def test_tensors_that_share_a_storage_and_views_of_it_are_read(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {"a.weight": base, "b.weight": base, "c.weight": base[1:3, ::2], "d.weight": base.t()}
    for save in (save_zip, save_legacy):
        save(state, tmp_path / "model.pth")
        assert same(weights.read(tmp_path / "model.pth").state_dict, state)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_newer_types_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"a.weight": torch.arange(6).reshape(2, 3).to(dtype), "b.weight": torch.ones(2, 2)}
    torch.save(state, tmp_path / "model.pth")
    read = weights.read(tmp_path / "model.pth").state_dict["a.weight"]
    assert read.dtype == dtype
    assert torch.equal(read.float(), state["a.weight"].float())


def test_many_views_of_one_storage_are_not_taken_for_as_many_values(tmp_path: Path) -> None:
    base = torch.ones(1000, 1000)
    torch.save({f"{n}.weight": base.view(1000, 1000) for n in range(20)}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="many times the values"):
        weights.read(tmp_path / "model.pth")


# --- shards


def make_shards(folder: Path, form: str) -> Path:
    """Two shards and their index, as transformers saves them."""
    state = make_state_dict()
    names = list(state)
    stem, ending = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    shards = {f"{stem}-0000{n + 1}-of-00002.{ending}": names[n::2] for n in range(2)}
    for file, part in shards.items():
        FORMATS[form]({name: state[name] for name in part}, folder / file)
    index = folder / f"{stem}.{ending}.index.json"
    weight_map = {name: file for file, part in shards.items() for name in part}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("form", ["safetensors", "zip"])
def test_shards_are_read_as_one_state_dict(tmp_path: Path, form: str) -> None:
    index = make_shards(tmp_path, form)
    files = sorted([index, *tmp_path.glob("*-of-*")])
    seen: list[tuple[int, int]] = []

    read = weights.read(index, progress=lambda done, total: seen.append((done, total)))

    assert same(read.state_dict, make_state_dict())
    sums = subprocess.run(["sha256sum", *[file.name for file in files]], cwd=tmp_path, capture_output=True)
    assert read.digest == hashlib.sha256(sums.stdout).hexdigest()
    assert read.size == sum(file.stat().st_size for file in files)
    assert seen[-1] == (read.size, read.size)
    assert weights.read(index, read.digest)
    with pytest.raises(WeightsError, match=f"its SHA-256 is {read.digest}"):
        weights.read(index, "0" * 64)


def test_a_shard_without_the_others_is_refused(tmp_path: Path) -> None:
    index = make_shards(tmp_path, "safetensors")
    shard = tmp_path / "model-00001-of-00002.safetensors"
    with pytest.raises(WeightsError, match="is shard 1 of 2 of a state dict; name the folder"):
        weights.read(shard)
    index.unlink()
    with pytest.raises(WeightsError, match=r"put all of them and model\.safetensors\.index\.json beside it"):
        weights.read(shard)


def test_an_index_whose_shards_are_not_there_is_refused(tmp_path: Path) -> None:
    index = make_shards(tmp_path, "safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        WeightsError, match=r"model-00002-of-00002\.safetensors of its shards are missing beside it"
    ):
        weights.read(index)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is not an index of shards"),
        ("{", "is not an index of shards"),
        ("[" * 100_000, "is not an index of shards"),
        ('{"weight_map": {}}', "lists 0 shards"),
        ('{"weight_map": {"a": "../secret"}}', r"\.\./secret cannot be a shard"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "/etc/passwd cannot be a shard"),
        ('{"weight_map": {"a": 3}}', "3 cannot be a shard"),
        ('{"weight_map": {"a": ["b"]}}', "is not an index of shards"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(WeightsError, match=message):
        weights.read(index)


# --- files that run code when they are unpickled ---------------------------------------------------


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class Built:
    """Pickles as an object of a class of its own, whose state is set."""

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["canary"]).touch()


def command(canary: Path) -> str:
    return f"touch {shlex.quote(str(canary))}"


def evil_system(canary: Path) -> Call:
    return Call(os.system, command(canary))


def evil_beside(canary: Path) -> dict[str, Any]:
    return {"state_dict": make_state_dict(), "optimizer": {"hook": evil_system(canary)}}


def evil_eval(canary: Path) -> Call:
    return Call(eval, f"__import__('pathlib').Path({str(canary)!r}).touch()")


def evil_getattr(canary: Path) -> Call:
    return Call(getattr, torch.Tensor, "__subclasses__")


def evil_import(canary: Path) -> Call:
    return Call(builtins.__import__, "os")


def evil_subprocess(canary: Path) -> Call:
    return Call(subprocess.call, ["touch", str(canary)])


def evil_hub(canary: Path) -> Call:
    (canary.parent / "hubconf.py").write_text(
        f"import pathlib\ndef model(): pathlib.Path({str(canary)!r}).touch()\n"
    )
    return Call(torch.hub._load_local, str(canary.parent), "model")


def evil_storage(canary: Path) -> Call:
    inner = io.BytesIO()
    torch.save(evil_system(canary), inner)
    return Call(torch.storage._load_from_bytes, inner.getvalue())


def evil_state(canary: Path) -> Built:
    built = Built()
    built.__dict__["canary"] = str(canary)
    return built


def evil_ordered_dict(canary: Path) -> Any:
    """A dict of an allowed type, one of whose values is the call."""
    return collections.OrderedDict({"a.weight": torch.ones(2, 2), "b.weight": evil_system(canary)})


def raw_pickle(protocol: int) -> Callable[[Any, Path], None]:
    def write(value: Any, path: Path) -> None:
        path.write_bytes(pickle.dumps(value, protocol))

    return write


def raw_inst(value: Any, path: Path) -> None:
    """Protocol 0's INST opcode: a class and its arguments, called without REDUCE."""
    path.write_bytes(b"(S'" + value.call[1][0].encode() + b"'\nios\nsystem\n.")


def zip_protocol_4(value: Any, path: Path) -> None:
    torch.save(value, path, pickle_protocol=4)


HOSTILE = {
    "os.system, zip": (evil_system, save_zip, r"an object of `posix\.system`, which was not made"),
    "os.system, legacy": (evil_system, save_legacy, r"an object of `posix\.system`, which was not made"),
    "os.system, protocol 4": (evil_system, zip_protocol_4, r"`posix\.system`, which was not made"),
    "builtins.eval": (evil_eval, save_zip, r"`builtins\.eval`, which was not made"),
    "builtins.eval, legacy": (evil_eval, save_legacy, r"`builtins\.eval`, which was not made"),
    "getattr of an allowed class": (evil_getattr, save_zip, r"`builtins\.getattr`, which was not made"),
    "__import__": (evil_import, save_zip, r"`builtins\.__import__`, which was not made"),
    "subprocess": (evil_subprocess, save_zip, r"`subprocess\.call`, which was not made"),
    "torch.hub": (evil_hub, save_zip, r"`torch\.hub\._load_local`, which was not made"),
    "a second pickle in a storage": (evil_storage, save_zip, r"`torch\.storage\._load_from_bytes`"),
    "__setstate__": (evil_state, save_zip, r"an object of `[\w.]*Built`, which was not made"),
    "pickle protocol 0": (evil_system, raw_pickle(0), r"`posix\.system`.*nothing was loaded.*python -c"),
    "pickle protocol 2": (evil_system, raw_pickle(2), r"`posix\.system`.*nothing was loaded.*python -c"),
    "pickle protocol 5": (evil_system, raw_pickle(5), r"`posix\.system`.*nothing was loaded.*python -c"),
    "the INST opcode": (evil_system, raw_inst, r"`os\.system`.*nothing was loaded.*python -c"),
}
HOSTILE_BESIDE = {
    "beside a good state dict, zip": (evil_beside, save_zip),
    "beside a good state dict, legacy": (evil_beside, save_legacy),
    "within an ordered dict": (evil_ordered_dict, save_zip),
}
"""What the state dict is read from nevertheless."""


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_pickle_that_would_run_code_is_refused_by_the_globals_name(
    tmp_path: Path, case: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, write, message = HOSTILE[case]
    canary, path = tmp_path / "canary", tmp_path / f"model{suffix}"
    write(make(canary), path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

    with pytest.raises(WeightsError, match=message) as caught:
        weights.read(path)

    assert not canary.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", HOSTILE_BESIDE)
def test_a_call_beside_the_tensors_is_named_and_not_made(tmp_path: Path, case: str) -> None:
    make, write = HOSTILE_BESIDE[case]
    canary, path = tmp_path / "canary", tmp_path / "model.pth"
    write(make(canary), path)

    read = weights.read(path)

    assert not canary.exists()
    assert "posix.system(" in json.dumps(read.metadata)
    assert all(type(tensor) is torch.Tensor for tensor in read.state_dict.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [c for c in (*HOSTILE, *HOSTILE_BESIDE) if "getattr" not in c and "import" not in c and "INST" not in c],
)
def test_the_bait_is_live(tmp_path: Path, case: str) -> None:
    """The same files do run their code where nothing holds them back; else the tests above show nothing."""
    make, write = (HOSTILE.get(case) or HOSTILE_BESIDE[case])[:2]
    canary, path = tmp_path / "canary", tmp_path / "model.pth"
    write(make(canary), path)
    if write in (save_zip, save_legacy, zip_protocol_4):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert canary.exists()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_whole_module_is_refused_with_the_lines_that_export_it_and_save_its_state_dict(
    tmp_path: Path, form: str
) -> None:
    FORMATS[form](nn.Sequential(nn.Linear(2, 2)), tmp_path / "model.pth")
    message = r"`torch\.nn\.modules\.container\.Sequential`.*torch\.export\.save\(.*\.state_dict\(\)"
    with pytest.raises(WeightsError, match=message):
        weights.read(tmp_path / "model.pth")


def make_module() -> nn.Module:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    module.load_state_dict(make_state_dict())
    return module


def make_trainers_checkpoint() -> dict[str, Any]:
    """As Ultralytics' trainer writes it: the module in half precision, and a moving average or none."""
    return {"epoch": -1, "model": make_module(), "ema": None, "optimizer": None, "train_args": {"task": "x"}}


def make_arrays() -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in make_state_dict().items()}


LINES: dict[str, tuple[Callable[[], Any], list[Callable[[Any, Path], None]]]] = {
    "a module": (make_module, [save_zip, save_legacy]),
    "a module under a key": (make_trainers_checkpoint, [save_zip, save_legacy]),
    "an average beside a module": (
        lambda: {"model": nn.Linear(2, 2), "ema": make_module()},
        [save_zip, save_legacy],
    ),
    "a module in an object": (lambda: argparse.Namespace(dls=None, model=make_module()), [save_zip]),
    "arrays": (make_arrays, [save_zip, raw_pickle(2), raw_pickle(4), raw_pickle(5)]),
    "arrays under a key": (lambda: {"model": make_arrays(), "author": "x"}, [raw_pickle(4)]),
    "tensors": (make_state_dict, [raw_pickle(4)]),
    "a pickled module": (make_module, [raw_pickle(4)]),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "write"), [(case, write) for case, (_, writers) in LINES.items() for write in writers]
)
def test_the_line_in_the_message_makes_a_file_that_is_read(
    tmp_path: Path, case: str, write: Callable[[Any, Path], None]
) -> None:
    write(LINES[case][0](), tmp_path / "it's a model.pth")
    with pytest.raises(WeightsError) as caught:
        weights.read(tmp_path / "it's a model.pth")

    line = (
        str(caught.value)
        .rpartition("where it was made: ")[2]
        .replace("python", shlex.quote(sys.executable), 1)
    )
    subprocess.run(line, shell=True, check=True, cwd=tmp_path)

    assert same(weights.read(tmp_path / "it's a model-weights.pth").state_dict, make_state_dict())


def test_an_export_of_fastai_is_refused_with_the_line_that_saves_weights_and_classes(tmp_path: Path) -> None:
    """`learn.export` pickles the whole Learner."""
    learner = type("Learner", (), {"__module__": "fastai.learner"})
    fake = types.ModuleType("fastai.learner")
    fake.Learner = learner  # type: ignore[attr-defined]
    fake.load_learner = lambda file: torch.load(file, weights_only=False)  # type: ignore[attr-defined]
    package = types.ModuleType("fastai")
    package.learner = fake  # type: ignore[attr-defined]
    made = learner()
    made.model, made.dls = nn.Sequential(nn.Linear(2, 3)), types.SimpleNamespace(vocab=["a", "b", "c"])
    path = tmp_path / "export.pkl"
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "fastai", package)
        patched.setitem(sys.modules, "fastai.learner", fake)
        torch.save(made, path)
        with pytest.raises(WeightsError, match=r"is a Learner of fastai.*learn\.model\.eval") as caught:
            weights.read(path)
        line = str(caught.value).partition("where it was made: ")[2].partition(". Or export")[0]
        patched.chdir(tmp_path)
        exec(shlex.split(line)[2])
    read = weights.read(tmp_path / "export-weights.pth")
    assert set(read.state_dict) == {"0.weight", "0.bias"}
    assert read.metadata["classes"] == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["LORA", "IA3"])
def test_an_adapter_beside_its_configuration_is_refused_with_the_model_that_it_changes(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "adapter_model.safetensors"
    save_file({"base_model.model.classifier.weight": torch.ones(2, 2)}, path)
    stated = {"peft_type": kind, "base_model_name_or_path": "google/vit-base-patch16-224"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(stated))
    with pytest.raises(WeightsError, match=rf"adapter of PEFT \({kind}\).*google/vit-base.*merge_and_unload"):
        weights.read(path)


def test_a_model_of_ultralytics_is_refused_with_their_own_export(tmp_path: Path) -> None:
    module = type("ClassificationModel", (nn.Module,), {"__module__": "ultralytics.nn.tasks"})
    fake = types.ModuleType("ultralytics.nn.tasks")
    fake.ClassificationModel = module  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patched:  # only to write the file
        patched.setitem(sys.modules, "ultralytics", types.ModuleType("ultralytics"))
        patched.setitem(sys.modules, "ultralytics.nn", types.ModuleType("ultralytics.nn"))
        patched.setitem(sys.modules, "ultralytics.nn.tasks", fake)
        torch.save({"epoch": -1, "model": module(), "train_args": {}}, tmp_path / "best.pt")
    with pytest.raises(WeightsError, match=r"whole model of Ultralytics.*yolo export model=best\.pt"):
        weights.read(tmp_path / "best.pt")


# --- files that lie about what they hold -----------------------------------------------------------


def rewrite(
    path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED, side: int = 4
) -> None:
    """Write a zip of torch.save again, entry by entry."""
    torch.save({"a.weight": torch.ones(side, side)}, path)
    with zipfile.ZipFile(path) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, data in entries.items():
            target.writestr(name, change(name, data))


def lie_compressed(path: Path) -> None:
    rewrite(
        path, lambda name, data: data + b"\0" * 5_000_000 * name.endswith("data.pkl"), zipfile.ZIP_DEFLATED
    )


def lie_length(path: Path) -> None:
    """The pickle says a billion values, the record holds 16: a reader that believes it leaves its memory."""

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        data = data.replace(b"K\x10tq", b"J" + struct.pack("<i", 10**9) + b"tq")
        return data.replace(b"K\x04K\x04\x86", b"K\x04J" + struct.pack("<i", 10**9 // 4) + b"\x86")

    rewrite(path, change)


def lie_strides(path: Path) -> None:
    torch.save({"a.weight": torch.ones(1, 1).expand(2**20, 2**20)}, path)


def lie_legacy_length(path: Path) -> None:
    save_legacy({"a.weight": torch.ones(4, 4)}, path)
    path.write_bytes(
        path.read_bytes().replace(b"K\x10Ntq", b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"Ntq")
    )


def lie_allocation(path: Path) -> None:
    torch.save({"a.weight": torch.ones(4, 4), "b": Call(torch.Tensor, 2**50)}, path)


def lie_overlap(path: Path) -> None:
    """Many names for the same stored bytes."""
    rewrite(path, lambda name, data: data, side=100)
    data = path.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    count, _, size, offset = struct.unpack("<HHII", data[end + 8 : end + 20])
    directory = data[offset : offset + size]
    times = 200
    tail = struct.pack("<HHII", count * times, count * times, size * times, offset)
    path.write_bytes(data[:offset] + directory * times + data[end : end + 8] + tail + b"\0\0")


def lie_safetensors_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**60) + b'{"a.weight":{}}')


def lie_safetensors_offsets(path: Path) -> None:
    header = b'{"a.weight":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)


LIES = {
    lie_compressed: "compressed or overlap",
    lie_overlap: "compressed or overlap",
    lie_length: "truncated or damaged",
    lie_strides: "declares more values than the file contains",
    lie_legacy_length: "truncated or damaged",
    lie_safetensors_header: "truncated or damaged",
    lie_safetensors_offsets: "truncated or damaged",
}


def test_an_allocation_is_not_made(tmp_path: Path) -> None:
    lie_allocation(tmp_path / "model.pth")
    read = weights.read(tmp_path / "model.pth")
    assert set(read.state_dict) == {"a.weight"}
    assert read.metadata == {"b": f"torch.Tensor({2**50})"}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_file_that_claims_more_than_it_holds_is_refused(
    tmp_path: Path, lie: Callable[[Path], None]
) -> None:
    lie(tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=LIES[lie]):
        weights.read(tmp_path / "model.pth")


# --- files that are something else, or broken ------------------------------------------------------


def write_torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"model/{name}", b"\x80\x02}.")


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.pth", b"anything")


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())


def write_quantised(path: Path) -> None:
    torch.save({"a.weight": torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)}, path)


def write_meta(path: Path) -> None:
    torch.save({"a.weight": torch.ones(2, 2, device="meta")}, path)


def write_sparse_file(path: Path) -> None:
    """A file that takes no place on the disk, and more in memory than there is."""
    with path.open("wb") as file:
        file.truncate(2**42)


def listed(count: int) -> Callable[[Path], None]:
    """Writes the header of a safetensors file of so many tensors, which have no values."""

    def write(path: Path) -> None:
        entry = b'"%d.weight":{"dtype":"F32","shape":[0,2],"data_offsets":[0,0]}'
        header = b"{" + b",".join(entry % number for number in range(count)) + b"}"
        path.write_bytes(struct.pack("<Q", len(header)) + header)

    return write


def write_large_pickle(path: Path) -> None:
    torch.save(LARGE, path)


def write_large_legacy_pickle(path: Path) -> None:
    torch.save(LARGE, path, _use_new_zipfile_serialization=False)


LARGE = {"a.weight": torch.ones(2, 2), "history": [0.5] * 1_000_000}


def write_four_bits(path: Path) -> None:
    torch.save({"a.weight": torch.zeros(2, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, path)


def named(name: str, count: int = 1) -> Callable[[Path], None]:
    """Writes tensors of no values, of which each has a name of its own that ends in `name`."""
    return lambda path: torch.save({f"{n}{name}": torch.zeros(0, 2) for n in range(count)}, path)


def of(value: Any) -> Callable[[Path], None]:
    """Writes bytes as they are, anything else by torch.save."""

    def write(path: Path) -> None:
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            torch.save(value, path)

    return write


NAN, INF = float("nan"), float("inf")
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "empty": (of(b""), "is empty"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "text": (of(b"hello world, these are no weights"), "neither a torch.save file nor safetensors"),
    "one byte": (of(b"P"), "neither a torch.save file nor safetensors"),
    "noise": (of(random.Random(SEED).randbytes(4096)), "neither a torch.save file nor safetensors"),
    "a web page": (of(b"\n<!DOCTYPE html><html><title>Sign in</title></html>"), "web page"),
    "a Git LFS pointer": (of(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    "gzip": (of(b"\x1f\x8b\x08" + b"\0" * 60), "unpack it"),
    "HDF5": (of(b"\x89HDF\r\n\x1a\n" + b"\0" * 60), "Keras"),
    "tar": (write_tar, "tar archive"),
    "TorchScript": (write_torchscript, r"TorchScript.*state_dict"),
    "a zip of something else": (write_zip, "PyTorch did not write"),
    "a plain pickle": (of(pickle.dumps({"a": 1}, 2)), "a pickle that torch.save did not write"),
    "a tensor": (of(torch.ones(2)), "content is a torch.Tensor"),
    "a list": (of([1, 2]), "content is a list"),
    "an optimizer alone": (of(make_checkpoint()), "contains no state dict; its keys are epoch, optimizer"),
    "an optimizer's file": (of(make_checkpoint()["optimizer"]), "the state of an optimizer, without weights"),
    "an empty state dict": (of({}), "contains no state dict; its keys are none"),
    "NaN": (of({"a.weight": torch.tensor([[1.0, NAN]])}), r"a\.weight contains NaN or infinity"),
    "infinity": (of({"a.weight": torch.tensor([[1.0, -INF]])}), r"a\.weight contains NaN or infinity"),
    "NaN, half": (of({"a.weight": torch.tensor([[1.0, NAN]]).half()}), r"a\.weight contains NaN or infinity"),
    "complex": (of({"a.weight": torch.ones(2, 2, dtype=torch.complex64)}), r"a\.weight is complex"),
    "sparse": (of({"a.weight": torch.eye(2).to_sparse()}), r"a\.weight is sparse"),
    "quantised": (write_quantised, r"a\.weight is quantised"),
    "of quantised layers": (
        of({"fc.weight": torch.ones(2, 2), "fc._packed_params._packed_params": None}),
        r"fc\._packed_params\._packed_params is quantised; serve the floating-point model",
    ),
    "a LoRA adapter": (
        of({"base_model.model.q.lora_A.weight": torch.ones(2, 2)}),
        "is a LoRA adapter.*merge_and_unload",
    ),
    "of 4 bits": (write_four_bits, r"a\.weight is of type float4_e2m1fn_x2"),
    "larger than memory": (write_sparse_file, "more than this machine's memory"),
    "a long safetensors header": (listed(300_000), "lists its tensors in .* bytes, and at most 8388608"),
    "a long pickle": (write_large_pickle, "lists its tensors in .* bytes, and at most 8388608"),
    "a long legacy pickle": (write_large_legacy_pickle, "lists its tensors in .* bytes, and at most 8388608"),
    "a deep name": (named("." * 50_000), "name has 50001 characters in 50001 parts: 0[.]+\\[... 49"),
    "deep names": (named(".a" * 3000, 300), "name has 6001 characters in 3001 parts"),
    "a long name": (named("." + "a" * 5_000_000), r"name has 5000002 characters in 2 parts: 0\.a{10,80}\["),
    "a name that is no text": (named(".\x1b]0;pwned\a" + "." * 40), r": 0\.\\x1b\]0;pwned\\x07\.+;"),
    "many tensors": (listed(10_001), "holds 10001 tensors; the limit is 10000"),
    "many parts": (
        named(".a" * 30, 2000),
        r"names have 62000 parts in all, such as 0[.a]+; the limit is 60000",
    ),
    "meta": (write_meta, r"a\.weight is on the meta device"),
}


def test_a_single_infinite_number_is_a_bound(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(2, 2), "a.input_max": torch.tensor(INF)}, tmp_path / "model.pth")
    assert weights.read(tmp_path / "model.pth").state_dict["a.input_max"] == INF


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning", "ignore:.*quantiz.*:DeprecationWarning")
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_gets_its_own_message(tmp_path: Path, case: str) -> None:
    write, message = BROKEN[case]
    path = tmp_path / "model.pth"
    write(path)
    with pytest.raises(WeightsError, match=message) as caught:
        weights.read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(make_state_dict(), path)
    path.chmod(0)
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)  # root may read anything
    try:
        with pytest.raises(WeightsError, match="cannot be read"):
            weights.read(path)
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, form: str, share: float) -> None:
    path = tmp_path / "model.pth"
    FORMATS[form](make_state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WeightsError, match="truncated or damaged"):
        weights.read(path)


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, form: str) -> None:
    dice = random.Random(SEED)
    path = tmp_path / "model.pth"
    FORMATS[form](make_state_dict(), path)
    good = path.read_bytes()
    refused = 0
    for _ in range(100):
        data = bytearray(good)
        for _ in range(dice.choice([1, 2, 8])):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data)
        try:
            weights.read(path)
        except WeightsError:
            refused += 1
    assert refused > 30, f"seed {SEED}"


# --- the digest, and a file that changes -----------------------------------------------------------


def test_the_pinned_digest_is_compared_before_anything_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(evil_system(tmp_path / "canary"), path)
    with pytest.raises(WeightsError, match=f"its SHA-256 is {hashlib.sha256(path.read_bytes()).hexdigest()}"):
        weights.read(path, sha256="0" * 64)


def test_a_pinned_digest_that_agrees_lets_the_file_through(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(make_state_dict(), path)
    assert weights.read(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest().upper())


def test_a_file_renamed_over_while_it_is_read_is_the_old_one_in_whole(tmp_path: Path) -> None:
    path, other = tmp_path / "model.pth", tmp_path / "other.pth"
    torch.save({"a.weight": torch.zeros(3000, 1000)}, path)
    torch.save({"a.weight": torch.ones(3000, 1000)}, other)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    read = weights.read(path, digest, lambda done, total: other.exists() and other.replace(path))  # type: ignore[arg-type]

    assert not read.state_dict["a.weight"].any()
    assert weights.read(path).state_dict["a.weight"].all()


def truncate(path: Path) -> None:
    os.truncate(path, 100)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"\1" * 500)


@pytest.mark.parametrize("change", [truncate, append, overwrite])
def test_a_file_written_to_while_it_is_read_is_refused(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a.weight": torch.zeros(3000, 1000)}, path)
    os.utime(path, (0, 0))  # the clock of modification times ticks slowly
    changes = iter([change])
    with pytest.raises(WeightsError, match="changed while it was being read"):
        weights.read(path, progress=lambda done, total: next(changes, lambda path: None)(path))


@pytest.mark.parametrize("form", FORMATS)
def test_tensors_outlive_the_file(tmp_path: Path, form: str) -> None:
    path = tmp_path / "model.pth"
    FORMATS[form](make_state_dict(), path)
    read = weights.read(path)
    os.truncate(path, 0)
    path.unlink()
    assert same(read.state_dict, make_state_dict())


def test_a_file_replaced_again_and_again_is_never_half_read(tmp_path: Path) -> None:
    path, stop = tmp_path / "model.pth", threading.Event()
    versions: list[bytes] = []
    for value in range(3):
        buffer = io.BytesIO()
        torch.save({"a.weight": torch.full((1000, 100), float(value))}, buffer)
        versions.append(buffer.getvalue())
    path.write_bytes(versions[0])

    def write() -> None:
        dice = random.Random(SEED)
        while not stop.is_set():
            if dice.random() < 0.5:
                (tmp_path / "new").write_bytes(dice.choice(versions))
                (tmp_path / "new").replace(path)
            else:
                path.write_bytes(dice.choice(versions))

    writer = threading.Thread(target=write)
    writer.start()
    whole = 0
    try:
        for _ in range(100):
            try:
                tensor = weights.read(path).state_dict["a.weight"]
            except WeightsError:
                continue
            assert len(tensor.unique()) == 1, f"seed {SEED}"  # type: ignore[no-untyped-call]
            whole += 1
    finally:
        stop.set()
        writer.join()
    assert whole, f"seed {SEED}"
