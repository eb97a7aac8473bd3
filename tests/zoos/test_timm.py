"""timm's classifiers: recognised, built and fed as timm itself does; and never guessed between."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from pthserve.certainty import Origin
from pthserve.errors import AmbiguousArchitecture, ArchitectureError
from pthserve.images.preprocess import OWN_MAX_PIXELS, crop, normalise
from pthserve.images.spec import Spec
from pthserve.zoos import architecture, candidates, timm_index
from pthserve.zoos.base import Architecture, Source, shapes
from pthserve.zoos.timm import TIMM, completed, preset

from .timm_modules import CLASSES, PHOTOS, answers, data_config, lively, made

QUICK = ("test_convnext", "test_efficientnet", "test_resnet", "test_vit")
SMALL = (
    "convnext_atto",
    "efficientformer_l1",
    "levit_128s",
    "mixer_s32_224",
    "mobilenetv3_small_050",
    "mobilevit_xxs",
    "resnet10t",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "xcit_nano_12_p16_224",
)
AMBIGUOUS = "tf_efficientnet_b0"
TWIN = "efficientnet_b0"


def weightless(name: str, **arguments: Any) -> dict[str, Tensor]:
    """A state dict of the right names and shapes, of any size in next to no memory."""
    state_dict = TIMM.blank(name, **{"num_classes": CLASSES, **arguments}).state_dict()
    return {
        key: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for key, tensor in state_dict.items()
    }


def photos(spec: Spec, count: int) -> Tensor:
    """Real photos as the service gives them to the module."""
    pixels = [crop(path.read_bytes(), spec, max_pixels=OWN_MAX_PIXELS) for path in PHOTOS[:count]]
    return torch.from_numpy(normalise(np.stack(pixels), spec))


def logits_of(built: Architecture, images: Tensor) -> Any:
    assert built.module is not None
    return built.module(images)


def check_same(built: Architecture, module: nn.Module, count: int = 2) -> None:
    """Both give the same logits for real photos, each with its own preprocessing."""
    assert built.spec is not None
    expected = answers(module, count)
    with torch.inference_mode():
        logits = logits_of(built, photos(built.spec, count))
    assert expected.std() > 1e-3, "logits that are all alike would show nothing"
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def paced(names: tuple[str, ...]) -> list[Any]:
    """Parameters: all but the quickest are slow tests."""
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in names]


# --- recognition ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", paced(QUICK + SMALL))
def test_the_built_module_answers_as_timms_own_with_timms_own_preprocessing(name: str) -> None:
    module = made(name)
    built = architecture.build(module.state_dict(), None if unambiguous(name) else f"timm/{name}")
    assert (built.num_classes, built.prefix, built.ignored) == (CLASSES, "", ())
    check_same(built, module)


def unambiguous(name: str) -> bool:
    """Whether no other architecture has the same keys and shapes and computes differently."""
    entry = TIMM.index()[name]
    alike = {other.group for other in TIMM.index().values() if other.digest == entry.digest}
    return len(alike) == 1


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.net.backbone."])
@pytest.mark.parametrize("name", paced(("test_vit", "resnet26d", "swin_tiny_patch4_window7_224")))
def test_an_architecture_is_recognised_bare_and_wrapped_with_other_classes(name: str, prefix: str) -> None:
    built = architecture.build({prefix + key: tensor for key, tensor in weightless(name).items()})
    assert (built.name, built.num_classes, built.prefix) == (f"timm/{name}", CLASSES, prefix)


def test_the_smaller_of_two_networks_of_which_one_is_in_the_other_is_none() -> None:
    """A hybrid has a whole ResNetV2 in its patch embedding."""
    source = Source(weightless("vit_small_r26_s32_224"))
    names = {one.name for one in candidates.find_candidates(source)}
    assert names == {"vit_small_r26_s32_224", "vit_small_r26_s32_384"}


def test_a_first_convolution_on_blocks_of_pixels_does_not_count_their_channels() -> None:
    assert architecture.build(weightless("tresnet_m")).channels == 3


def test_images_of_one_channel_are_those_of_timms_own_argument() -> None:
    module = made("test_resnet", in_chans=1)
    built = architecture.build(module.state_dict(), "timm/test_resnet")
    assert built.channels == 1
    grey = torch.rand(2, 1, 160, 160)
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(built, grey), module(grey))


@pytest.mark.parametrize(
    ("name", "conv", "setting"),
    [
        ("test_resnet", nn.Conv2d(1, 16, 3, 1, 1), "first_layer: {stride: 1, padding: 1}"),
        (
            "mobilenetv3_small_050",
            nn.Conv2d(3, 16, 5, 2, 2, bias=False),
            "first_layer: {stride: 2, padding: 2}",
        ),
    ],
)
def test_a_replaced_first_layer_is_built_and_its_stride_is_an_assumption(
    name: str, conv: nn.Conv2d, setting: str
) -> None:
    module: Any = timm.create_model(name, num_classes=CLASSES)
    old = next(key for key, layer in module.named_modules() if isinstance(layer, nn.Conv2d))
    module.set_submodule(old, conv)
    lively(module)
    built = architecture.build(module.state_dict(), None if unambiguous(name) else f"timm/{name}")
    assert (built.name, built.channels) == (f"timm/{name}", conv.in_channels)
    (assumed,) = [one for one in built.inferred if one.subject == "first layer"]
    assert assumed.origin is Origin.ASSUMED
    settings = [option.setting for choice in built.choices for option in choice.options]
    assert setting in settings
    stated = {"stride": conv.stride[0], "padding": conv.padding[0]}
    built = architecture.build(
        module.state_dict(), None if unambiguous(name) else f"timm/{name}", first_layer=stated
    )
    images = torch.rand(2, conv.in_channels, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(built, images), module(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("test_vit", {"img_size": 240}, 240),
        ("beit_base_patch16_224", {"img_size": 160}, 160),
        ("levit_128s", {"img_size": 256}, 256),
        ("swin_base_patch4_window7_224", {"img_size": 256, "window_size": 8}, 256),
        ("mvitv2_tiny", {"img_size": 256}, 256),
        ("volo_d1_224", {"img_size": 256}, 256),
    ],
)
def test_another_image_size_is_told_by_the_shapes(name: str, arguments: dict[str, int], size: int) -> None:
    state_dict = weightless(name, **arguments)
    built = architecture.build(state_dict, None if unambiguous(name) else f"timm/{name}")
    assert (built.name, built.input_size) == (f"timm/{name}", size)
    assert built.spec is not None
    assert built.spec.crop == (size, size)
    assert shapes(built.module.state_dict()) == shapes(state_dict)


def test_a_classifier_with_a_hidden_layer_is_rebuilt_where_it_stood() -> None:
    module = made("test_convnext")
    head: Any = module.head
    width = head.fc.in_features
    head.fc = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, CLASSES))
    built = architecture.build(lively(module).state_dict())
    check_same(built, module)


def test_a_head_that_pools_is_not_replaced_by_layers_that_do_not() -> None:
    state_dict = weightless("test_convnext")
    state_dict["head.weight"] = torch.zeros(CLASSES, state_dict["head.fc.weight"].shape[1])
    for key in [key for key in state_dict if key.startswith("head.") and key != "head.weight"]:
        del state_dict[key]
    with pytest.raises(ArchitectureError, match="its head cannot be rebuilt"):
        architecture.build(state_dict)


def test_tensors_that_old_versions_saved_and_new_ones_compute_do_not_matter() -> None:
    state_dict = weightless("swin_tiny_patch4_window7_224")
    state_dict["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    state_dict["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    assert architecture.build(state_dict).name == "timm/swin_tiny_patch4_window7_224"


@pytest.mark.slow
def test_what_is_computed_when_a_module_is_built_is_there() -> None:
    """The tables of rotary embeddings, relative positions and windows are no weights."""
    for name in (
        "test_vit",
        "swin_tiny_patch4_window7_224",
        "eva02_tiny_patch14_224",
        "vit_tiny_r_s16_p8_224",
    ):
        theirs = dict(timm.create_model(name, pretrained=False, num_classes=CLASSES).named_buffers())
        for key, buffer in TIMM.blank(name, num_classes=CLASSES).named_buffers():
            torch.testing.assert_close(buffer, theirs[key], equal_nan=True)


@pytest.mark.parametrize(
    "argument", [{"pretrained": True}, {"checkpoint_path": "/etc/passwd"}, {"pretrained_cfg": {"file": "x"}}]
)
def test_a_card_cannot_make_timm_fetch_or_read_another_file(argument: dict[str, Any]) -> None:
    with pytest.raises(ArchitectureError, match="only the weights file is read"):
        architecture.build(weightless("test_vit"), "timm/test_vit", argument)


@pytest.mark.parametrize("name", ["levit_384", "levit_384_s8", "levit_conv_384_s8"])
def test_all_layers_that_give_the_classes_may_have_another_number_of_them(name: str) -> None:
    """The answer is an average of two, of which timm's own preset names one alone for some."""
    built = architecture.build(weightless(name))
    assert (built.name, built.num_classes, built.ignored) == (f"timm/{name}", CLASSES, ())


ARGUMENTS = {"embed_dim": 96, "depth": 3, "num_heads": 2, "act_layer": "tanh", "num_classes": 1000}
"""Of timm's builder: another width and depth, which the shapes show, and an activation, which they do not."""


@pytest.mark.parametrize("beside", [True, False], ids=["config.json", "in the file"])
def test_the_arguments_that_a_configuration_states_are_those_of_timms_builder(
    beside: bool, tmp_path: Path
) -> None:
    stated = {"architecture": "vit_tiny_patch16_224", "model_args": ARGUMENTS}
    if beside:
        (tmp_path / "config.json").write_text(json.dumps(stated))
    module = made("vit_tiny_patch16_224", **{**ARGUMENTS, "num_classes": CLASSES})
    path = tmp_path / "model.safetensors"
    built = architecture.build(module.state_dict(), path=path, metadata={} if beside else stated)
    assert built.name == "timm/vit_tiny_patch16_224"
    check_same(built, module)
    first, second, *_ = built.inferred
    assert "model_args" in first.value
    assert second.setting == 'kwargs: {embed_dim: 96, depth: 3, num_heads: 2, act_layer: "tanh"}'
    plain = architecture.build(weightless("vit_tiny_patch16_224"), "timm/vit_tiny_patch16_224")
    assert plain.module is not None


@pytest.mark.parametrize(
    "arguments",
    [
        {"pretrained": True},
        {"checkpoint_path": "/etc/passwd"},
        {"embed_dim": 96},
        {"act_layer": {"a": 1}},
        {"depth": 10**9},
        {"no such": 1},
        {f"a{number}": number for number in range(1000)},
    ],
    ids=["fetch", "read", "other shapes", "not plain", "endless", "no name", "too many"],
)
def test_arguments_that_cannot_be_followed_are_said_and_not_followed(arguments: dict[str, Any]) -> None:
    stated = {"architecture": "test_vit", "model_args": arguments}
    built = architecture.build(weightless("test_vit"), metadata=stated)
    assert built.name == "timm/test_vit"
    assert built.inferred[0].origin is Origin.ASSUMED
    assert "model_args in the file cannot be followed" in built.inferred[0].value


# --- never a guess ----------------------------------------------------------------------------------


def test_architectures_that_compute_differently_are_not_guessed_between() -> None:
    with pytest.raises(AmbiguousArchitecture) as caught:
        architecture.build(weightless(AMBIGUOUS))
    choices = [set(names) for names in caught.value.choices]
    assert any(f"timm/{TWIN}" in names for names in choices)
    assert any(f"timm/{AMBIGUOUS}" in names for names in choices)
    assert not any({f"timm/{TWIN}", f"timm/{AMBIGUOUS}"} <= names for names in choices)
    assert "--architecture timm/" in str(caught.value)
    assert "`architecture: timm/" in str(caught.value)


@pytest.mark.slow
def test_what_is_one_choice_computes_the_same_and_what_is_two_does_not() -> None:
    state_dict = made(AMBIGUOUS).state_dict()
    one, other = (architecture.build(state_dict, f"timm/{name}") for name in (AMBIGUOUS, TWIN))
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert (logits_of(one, images) - logits_of(other, images)).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "metadata",
    [
        {"arch": AMBIGUOUS},
        {"args": {"model": AMBIGUOUS}},
        {"model_name": f"hf_hub:timm/{AMBIGUOUS}.ns_jft_in1k"},
        {"hyper_parameters": {"model_name": AMBIGUOUS}},
        {"pretrained_cfg": {"architecture": AMBIGUOUS}},
    ],
)
def test_what_the_checkpoint_says_decides(metadata: Mapping[str, Any]) -> None:
    built = architecture.build(weightless(AMBIGUOUS), metadata=metadata)
    assert built.name == f"timm/{AMBIGUOUS}"
    assert built.inferred[0].origin == Origin.FILE


def test_what_the_checkpoint_says_of_another_architecture_decides_nothing() -> None:
    with pytest.raises(AmbiguousArchitecture):
        architecture.build(weightless(AMBIGUOUS), metadata={"arch": "resnet50", "model": 3})


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (f"{AMBIGUOUS}.pth", AMBIGUOUS),
        ("my-tf_efficientnet_b0_ns-c0e6a31c.pth", AMBIGUOUS),
        ("efficientnet_b0.ra_in1k.pth", TWIN),
    ],
)
def test_the_name_of_the_file_decides_and_that_is_said(file: str, name: str, tmp_path: Path) -> None:
    built = architecture.build(weightless(AMBIGUOUS), path=tmp_path / file)
    assert built.name == f"timm/{name}"
    assert f"the name of {file}" in built.inferred[0].value


def test_the_name_of_the_network_within_a_larger_module_decides() -> None:
    for name in (AMBIGUOUS, TWIN):
        state_dict = {f"net.{name}.{key}": tensor for key, tensor in weightless(name).items()}
        assert architecture.build(state_dict).name == f"timm/{name}"


def test_a_file_whose_name_has_two_architectures_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(AmbiguousArchitecture):
        architecture.build(weightless(AMBIGUOUS), path=tmp_path / f"{AMBIGUOUS}-or-{TWIN}.pth")


def test_a_resnet_is_torchvisions_and_it_is_said_that_a_variant_would_fit() -> None:
    built = architecture.build(weightless("resnetblur18"))
    assert (built.name, built.inferred[0].origin) == ("resnet18", Origin.ASSUMED)
    assert "timm/resnetblur18" in built.inferred[0].value
    assert architecture.build(weightless("resnetblur18"), "timm/resnetblur18").name == "timm/resnetblur18"


def test_a_bare_name_is_torchvisions_where_that_fits_and_else_timms() -> None:
    assert architecture.build(weightless("resnet18"), "resnet18").name == "resnet18"
    assert architecture.build(weightless("resnet18"), "timm/resnet18").name == "timm/resnet18"
    assert architecture.build(weightless("convnext_tiny"), "convnext_tiny").name == "timm/convnext_tiny"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ArchitectureError, match=r"did you mean .*timm/vit_tiny_patch16_224"):
        architecture.build(weightless("test_vit"), "timm/vit_tiny_patch16_242")


# --- preprocessing ----------------------------------------------------------------------------------


def test_the_presets_are_those_of_timms_pretrained_weights() -> None:
    for full in timm.list_pretrained():
        if full.partition(".")[0] in TIMM.names():
            theirs = data_config(timm.get_pretrained_cfg(full).to_dict())
            assert theirs["crop_mode"] != "border"
            assert TIMM.preset(full) == json.loads(json.dumps(theirs)), full
    for name in TIMM.names():
        theirs = data_config(timm.get_pretrained_cfg(name).to_dict())
        assert TIMM.preset(name) == json.loads(json.dumps(theirs)), name


@pytest.mark.slow
def test_every_preset_gives_the_pixels_of_timms_transform() -> None:
    full = [f"{name}.{tag}" for name in TIMM.names() for tag in TIMM.tags(name)]
    for config in map(json.loads, {json.dumps(TIMM.preset(name)) for name in full}):
        spec = preset(**config)
        transform = create_transform(**config, is_training=False)
        for path in PHOTOS[:3]:
            pixels = crop(path.read_bytes(), spec, max_pixels=OWN_MAX_PIXELS)
            expected = transform(Image.open(path).convert("RGB")).numpy()
            np.testing.assert_array_equal(normalise(pixels[None], spec)[0], expected, str(config))


def test_the_preset_of_pretrained_weights_is_found_by_their_tag() -> None:
    tagged = architecture.build(weightless("resnet50"), "timm/resnet50.tv_in1k").spec
    default = architecture.build(weightless("resnet50"), "timm/resnet50").spec
    assert tagged is not None
    assert default is not None
    assert (tagged.interpolation, tagged.resize, tagged.assumed) == ("bilinear", 256, True)
    assert (default.interpolation, default.resize) != (tagged.interpolation, tagged.resize)


def test_a_tag_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(ArchitectureError, match=r"no weights 'a9_in1k' of resnet50; it has .*a1_in1k"):
        architecture.build(weightless("resnet50"), "timm/resnet50.a9_in1k")


CFG = {
    "input_size": [3, 192, 192],
    "crop_pct": 0.9,
    "crop_mode": "squash",
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}


@pytest.mark.parametrize("beside", [True, False])
def test_the_preprocessing_that_the_checkpoint_states_is_taken(beside: bool, tmp_path: Path) -> None:
    stated = {"architecture": "resnet18", "pretrained_cfg": CFG}
    if beside:
        (tmp_path / "config.json").write_text(json.dumps(stated))
    built = architecture.build(
        weightless("resnet18"), path=tmp_path / "model.safetensors", metadata={} if beside else stated
    )
    assert built.name == "timm/resnet18"
    assert built.spec == Spec((213, 213), (192, 192), "bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize(
    ("stated", "labels"),
    [
        ({"label_names": list("abcdefg")}, tuple("abcdefg")),
        ({"label_names": ["too", "few"]}, None),
        ({"id2label": {str(number): f"LABEL_{number}" for number in range(CLASSES)}}, None),
    ],
)
def test_the_labels_of_a_configuration_beside_the_weights_are_taken(
    stated: dict[str, Any], labels: tuple[str, ...] | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", **stated}))
    assert architecture.build(weightless("test_vit"), path=tmp_path / "model.safetensors").labels == labels


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_mode": "border"},
        {"interpolation": "psychic"},
        {"mean": [0.5]},
        {"std": [0, 0, 0]},
        {"crop_pct": "all"},
        {"input_size": [3, 10**9, 10**9]},
    ],
)
def test_preprocessing_that_cannot_be_followed_is_said_and_not_followed(wrong: dict[str, Any]) -> None:
    built = architecture.build(weightless("resnet18"), metadata={"pretrained_cfg": CFG | wrong})
    assert built.spec == TIMM.spec("resnet18")
    (said,) = [one for one in built.inferred if one.subject == "preprocessing"]
    assert said.uncertain
    assert "cannot be followed" in said.value


def test_a_config_that_says_little_is_completed_as_timm_does() -> None:
    for cfg in ({}, {"mean": [0.1, 0.2, 0.3]}, {"crop_pct": None, "interpolation": "bilinear"}):
        expected = data_config(cfg or {"architecture": "x"})
        ours = completed(cfg)
        assert {
            key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()
        } == ours


# --- the index --------------------------------------------------------------------------------------


def test_the_index_is_small_and_read_without_timm() -> None:
    from pthserve.zoos.timm import INDEX

    assert INDEX.stat().st_size < 2**20


@pytest.mark.slow
def test_the_index_is_that_of_the_installed_timm() -> None:
    """Else: python -m pthserve.zoos.timm_index."""
    chance = random.Random(seed := random.randrange(10**6))
    for name in chance.sample(list(TIMM.names()), 20):
        described = timm_index.described(name)
        assert described is not None
        entry, law = described
        known = TIMM.index()[name]
        assert (entry.digest, entry.last, entry.sizes, law) == (
            known.digest,
            known.last,
            known.sizes,
            TIMM.law(name),
        ), f"seed {seed}"
