"""A .pt2 file is served without its class, and nothing of it runs but operators of a list."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pthserve.certainty import Inferred
from pthserve.errors import ArchitectureError, ModelError, WeightsError
from pthserve.images.preprocess import crop, normalise
from pthserve.loading.load import build, load
from pthserve.loading.model import Model
from pthserve.loading.pack import pack
from pthserve.options import ModelOptions
from pthserve.planning.crops import samples
from pthserve.zoos import operators

OPTIONS = ModelOptions(threads=1, tune_budget=0.0, precision="fp32")
SIDE = 32


class Tiny(nn.Module):
    """A convolutional network; fixed: reshapes by the numbers that it sees, as exporters do."""

    def __init__(self, end: nn.Module | None = None, *, fixed: bool = False, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.fc, self.end, self.fixed = nn.Dropout(), nn.Linear(8, 5), end or nn.Identity(), fixed

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.conv(x))).mean((2, 3))
        x = self.end(self.fc(self.drop(x)))
        return x.reshape(int(x.shape[0]), 5).clone() if self.fixed else x


def exported(path: Path, module: nn.Module, *, free: bool = True, shape: Any = (2, 3, SIDE, SIDE)) -> Path:
    dynamic = ({0: torch.export.Dim("batch")},) if free else None
    program = torch.export.export(module, (torch.zeros(shape),), dynamic_shapes=dynamic)
    torch.export.save(program, path)
    return path


def served(path: Path, card: str = "", **options: Any) -> Model:
    if card:
        (path.parent / "model.yaml").write_text(card)
    return load(str(path), OPTIONS.model_copy(update=options))


def answers(model: Model, module: nn.Module) -> tuple[Any, Any]:
    images = normalise(np.stack([crop(data, model.spec, max_pixels=2**30) for data in samples()]), model.spec)
    with torch.no_grad():
        return np.stack([answer.logits for answer in model.batch(samples())]), module(
            torch.from_numpy(images)
        ).numpy()


def about(model: Model, subject: str) -> Inferred:
    return next(one for one in model.inferred if one.subject == subject)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize("free", [True, False])
def test_a_program_answers_as_its_module_does(tmp_path: Path, engine: str, free: bool) -> None:
    module = Tiny().eval()
    with served(exported(tmp_path / "model.pt2", module, free=free), engine=engine) as model:
        np.testing.assert_allclose(*answers(model, module), atol=1e-4)
        assert model.spec.crop == (SIDE, SIDE)
        assert about(model, "preprocessing").uncertain


class Cast(Tiny):
    """Parts of it compute under torch.autocast and without gradients, one within the other."""

    def __init__(self, *, bits: bool) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bits):
            x = torch.relu(self.norm(self.conv(x)))
            with torch.no_grad():
                x = x.mean((2, 3)) + 1
        with torch.autocast("cuda", enabled=False):
            return self.fc(x.float())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_blocks_under_autocast_and_without_gradients_compute_as_all_the_rest(
    tmp_path: Path, engine: str
) -> None:
    path = exported(tmp_path / "model.pt2", Cast(bits=True).eval())
    with served(path, engine=engine) as model:
        np.testing.assert_allclose(*answers(model, Cast(bits=False).eval()), atol=1e-4)
        assert "torch.autocast" in about(model, "precision").value


def test_blocks_that_are_not_what_their_calls_say_are_refused(tmp_path: Path) -> None:
    path = exported(tmp_path / "model.pt2", Cast(bits=True).eval())

    def broken(program: Any) -> None:
        block = program["graph_module"]["graph"]["nodes"][0]
        block["inputs"].pop()

    with pytest.raises(ArchitectureError, match="cannot be read"):
        build(str(in_program(path, broken)), OPTIONS)


@pytest.mark.slow
def test_a_pack_of_it_answers_the_same(tmp_path: Path) -> None:
    module = Tiny().eval()
    pack(str(exported(tmp_path / "model.pt2", module)), tmp_path / "packed", OPTIONS)
    with load(str(tmp_path / "packed"), OPTIONS) as model:
        np.testing.assert_allclose(*answers(model, module), atol=1e-4)


class Patches(nn.Module):
    """A transformer's first steps, in which an exporter writes the batch down as a number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.token = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(int(x.shape[0]), 1, 8), x], 1)
        query = nn.functional.scaled_dot_product_attention(x, x, x)
        return self.fc(nn.functional.gelu(nn.functional.layer_norm(query + x, (8,)))[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_that_the_program_was_made_for_is_computed_apart(
    tmp_path: Path, batch: int, engine: str
) -> None:
    module = Patches().eval()
    path = exported(tmp_path / "model.pt2", module, free=False, shape=(batch, 3, SIDE, SIDE))
    with served(path, engine=engine) as model:
        np.testing.assert_allclose(*answers(model, module), atol=1e-4)
        assert "one after the other" in about(model, "architecture").value


@pytest.mark.slow
def test_a_softmax_at_the_end_is_not_applied_twice(tmp_path: Path) -> None:
    module = Tiny(nn.Softmax(1)).eval()
    with served(exported(tmp_path / "model.pt2", module)) as model:
        module.end = nn.Identity()
        np.testing.assert_allclose(*answers(model, module), atol=1e-4)
        assert "softmax" in about(model, "activation").value


@pytest.mark.slow
def test_a_sigmoid_at_the_end_is_not_taken_for_one_class_of_several(tmp_path: Path) -> None:
    with served(exported(tmp_path / "model.pt2", Tiny(nn.Sigmoid()).eval())) as model:
        assert model.task.name == "multilabel"


class Answer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tiny = Tiny().eval()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        rows = self.tiny(x)
        return {"probabilities": rows.softmax(1), "logits": rows}


@pytest.mark.slow
def test_of_a_dictionary_logits_count(tmp_path: Path) -> None:
    module = Answer().eval()
    with served(exported(tmp_path / "model.pt2", module)) as model:
        np.testing.assert_allclose(*answers(model, module.tiny), atol=1e-4)


class Normalising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tiny = Tiny().eval()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.tiny((x - self.mean) / self.std)
        return answer


@pytest.mark.slow
def test_a_normalisation_inside_the_program_is_not_done_twice(tmp_path: Path) -> None:
    module = Normalising().eval()
    with served(exported(tmp_path / "model.pt2", module)) as model:
        assert (model.spec.mean, model.spec.std) == ((0.0,) * 3, (1.0,) * 3)
        np.testing.assert_allclose(*answers(model, module), atol=1e-4)


@pytest.mark.slow
def test_grey_images_are_taken(tmp_path: Path) -> None:
    module = Tiny(channels=1).eval()
    with served(exported(tmp_path / "model.pt2", module, shape=(2, 1, SIDE, SIDE))) as model:
        np.testing.assert_allclose(*answers(model, module), atol=1e-4)


def test_a_program_of_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"model\.eval\(\) before the export"):
        served(exported(tmp_path / "model.pt2", Tiny().train()))


# What a hostile file may try.


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mknod, (self.path,)


def changed(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The archive at `path` with `change` of each entry, by its name without the first folder."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, change(entry.partition("/")[2], old.read(entry)))
    path.write_bytes(out.getvalue())
    return path


def in_program(path: Path, change: Callable[[Any], None]) -> Path:
    def apply(name: str, data: bytes) -> bytes:
        if name != "models/model.json":
            return data
        program = json.loads(data)
        change(program)
        return json.dumps(program).encode()

    return changed(path, apply)


def in_weights(path: Path, change: Callable[[Any], None]) -> Path:
    def apply(name: str, data: bytes) -> bytes:
        if name != "data/weights/model_weights_config.json":
            return data
        listing = json.loads(data)
        change(listing["config"])
        return json.dumps(listing).encode()

    return changed(path, apply)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return exported(tmp_path / "model.pt2", Tiny().eval())


@pytest.mark.parametrize("entry", ["data/weights/weight_0", "data/sample_inputs/model.pt"])
def test_a_pickle_in_the_archive_is_not_loaded(path: Path, tmp_path: Path, entry: str) -> None:
    made = tmp_path / "made"
    hostile = io.BytesIO()
    torch.save(Touch(made), hostile)
    changed(path, lambda name, data: hostile.getvalue() if name == entry else data)
    in_weights(path, lambda config: next(iter(config.values())).update(use_pickle=True))
    with pytest.raises(WeightsError, match="as a pickle"):
        build(str(path), OPTIONS)
    assert not made.exists()
    hostile.seek(0)
    torch.load(hostile, weights_only=False)
    assert made.exists(), "the file is as hostile as it should be"


@pytest.mark.slow
def test_sample_inputs_are_not_looked_at(path: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    hostile = pickle.dumps(Touch(made))
    changed(path, lambda name, data: hostile if name.startswith("data/sample_inputs") else data)
    with served(path) as model:
        assert model.num_classes == 5
    assert not made.exists()


@pytest.mark.slow
def test_expressions_are_not_evaluated(path: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    hostile = f"__import__('os').mknod({str(made)!r})"

    def everywhere(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: hostile if key == "expr_str" else everywhere(inner) for key, inner in value.items()}
        return [everywhere(inner) for inner in value] if isinstance(value, list) else value

    in_program(path, lambda program: program.update(everywhere(program)))
    in_program(path, lambda program: program.update(guards_code=[hostile]))
    with served(path) as model:
        assert model.num_classes == 5
    assert not made.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.empty.memory_format",
        "torch.ops.aten.rand.default",
        "torch.ops.aten.__class__.default",
        "torch.ops.aten.relu.__class__",
        "torch.ops.load_library",
        "torch.ops.inductor.resize_storage_bytes_.default",
        "torch.ops.higher_order.cond",
        "_operator.pow",
        "builtins.eval",
        "os.system",
        "",
    ],
)
def test_what_is_not_an_operator_of_the_list_is_not_called(path: Path, target: str) -> None:
    in_program(path, lambda program: program["graph_module"]["graph"]["nodes"][0].update(target=target))
    with pytest.raises(ArchitectureError, match="not among the operators"):
        build(str(path), OPTIONS)


def test_no_operator_of_the_list_reads_files_or_draws_numbers() -> None:
    for name in operators.COMPOSED:
        packet = getattr(torch.ops.aten, name, None)
        assert packet is not None, f"there is no operator {name}"
        for overload in packet.overloads():
            found = operators.function(f"torch.ops.aten.{name}.{overload}")
            if found is None or name in operators.QUIET:
                continue
            assert torch.Tag.nondeterministic_seeded not in found.tags, found
            assert "filename" not in {argument.name for argument in found._schema.arguments}


def test_a_value_beyond_all_bounds_is_refused_before_it_is_computed(path: Path) -> None:
    def enlarge(program: Any) -> None:
        nodes = program["graph_module"]["graph"]["nodes"]
        flat = next(node for node in nodes if "mean" in node["target"])
        nodes.insert(
            nodes.index(flat),
            {
                "target": "torch.ops.aten.zeros.default",
                "inputs": [{"name": "size", "arg": {"as_ints": [2**20, 2**20]}, "kind": 1}],
                "outputs": [{"as_tensor": {"name": "huge"}}],
                "metadata": {},
            },
        )

    in_program(path, enlarge)
    with pytest.raises(ArchitectureError, match=r"computes a value of \d+ bytes"):
        build(str(path), OPTIONS)


def test_a_program_that_changes_its_weights_is_refused(path: Path) -> None:
    def change(program: Any) -> None:
        graph = program["graph_module"]["graph"]
        graph["nodes"].insert(
            0,
            {
                "target": "torch.ops.aten.add_.Scalar",
                "inputs": [
                    {"name": "self", "arg": {"as_tensor": {"name": "p_conv_weight"}}, "kind": 1},
                    {"name": "other", "arg": {"as_int": 1}, "kind": 1},
                ],
                "outputs": [{"as_tensor": {"name": "more"}}],
                "metadata": {},
            },
        )

    in_program(path, change)
    with pytest.raises(ArchitectureError, match="changes its own weights"):
        build(str(path), OPTIONS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sizes", [{"as_int": 2**39}] * 4),
        ("sizes", [{"as_int": -1}] * 4),
        ("sizes", [{"as_expr": {"expr_str": "1"}}] * 4),
        ("storage_offset", {"as_int": 10**9}),
        ("strides", [{"as_int": 10**9}] * 4),
        ("strides", []),
        ("dtype", 99),
        ("dtype", 10),
    ],
)
def test_a_tensor_beyond_its_bytes_is_refused(path: Path, field: str, value: Any) -> None:
    in_weights(path, lambda config: config["conv.weight"]["tensor_meta"].update({field: value}))
    with pytest.raises(ModelError):
        build(str(path), OPTIONS)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    module = Tiny().eval()
    with torch.no_grad():
        module.fc.bias[0] = torch.nan
    with pytest.raises(WeightsError, match="NaN or infinity"):
        build(str(exported(tmp_path / "model.pt2", module)), OPTIONS)


@pytest.mark.slow
def test_random_changes_of_the_program_do_no_harm(path: Path) -> None:
    """Values of the JSON are replaced; each program is built or refused with a sentence."""
    data = path.read_bytes()
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    random = np.random.default_rng(seed)

    def mutate(value: Any, chance: float) -> Any:
        if random.random() < chance:
            odd = [None, -1, 2**70, "x", [], {}, True, {"as_int": 7}, {"as_none": True}, 1.5, ["a"]]
            return odd[random.integers(len(odd))]
        if isinstance(value, dict):
            return {key: mutate(inner, chance) for key, inner in value.items()}
        return [mutate(inner, chance) for inner in value] if isinstance(value, list) else value

    for _ in range(60):
        path.write_bytes(data)
        in_program(
            path,
            lambda program: program.update({key: mutate(value, 0.002) for key, value in program.items()}),
        )
        try:
            build(str(path), OPTIONS)
        except ModelError as error:
            assert "\n" not in str(error)  # noqa: PT017, both outcomes are right


def test_an_older_archive_is_told_to_be_exported_again(path: Path) -> None:
    in_program(path, lambda program: program["schema_version"].update(major=7))
    with pytest.raises(WeightsError, match="export it again"):
        build(str(path), OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v3_small",
        "efficientnet_b0",
        "densenet121",
        "convnext_tiny",
        "swin_t",
        "vit_b_32",
    ],
)
def test_torchvisions_families_are_taken(tmp_path: Path, name: str) -> None:
    from torchvision import models

    torch.manual_seed(0)
    size = 224 if name.startswith("vit") else 64
    module = models.get_model(name, num_classes=5).eval()
    with served(exported(tmp_path / "model.pt2", module, shape=(2, 3, size, size))) as model:
        np.testing.assert_allclose(*answers(model, module), atol=1e-3)
