"""The Open Inference Protocol over REST: what each route answers, and what it says where it cannot."""

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jsonschema
import numpy as np
import orjson
import pytest
from numpy.typing import NDArray
from tests.asgi import Client
from tests.linear import LABELS, SPEC, Linear, linear, noise, png

from pthserve.errors import WeightsError
from pthserve.http.app import create_app
from pthserve.http.bodies import HEADER_LENGTH
from pthserve.images.preprocess import crop_pixels, normalise
from pthserve.inference_protocol.bounds import MAX_OUTPUTS, MAX_PARAMETERS, MAX_TEXT
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings

INFER = "/v2/models/pets/infer"
PIXELS = [noise(seed) for seed in range(3)]
SETTINGS = Settings(model="pets", max_body=2**20, max_pixels=10_000, max_inflight=8)


class Reload:
    """What a load does; `error` makes it fail."""

    def __init__(self) -> None:
        self.count = 0
        self.error: Exception | None = None

    async def __call__(self) -> None:
        self.count += 1
        if self.error:
            raise self.error


@pytest.fixture(scope="module")
def engine() -> Linear:
    return Linear(SPEC, len(LABELS))


@pytest.fixture(scope="module")
def predictor(engine: Linear) -> Iterator[Predictor]:
    predictor = Predictor(SETTINGS)
    predictor.adopt(linear(engine))
    yield predictor
    predictor.close()


@pytest.fixture(scope="module")
def reload() -> Reload:
    return Reload()


@pytest.fixture(scope="module")
def client(predictor: Predictor, reload: Reload) -> Iterator[Client]:
    with Client(create_app(predictor, SETTINGS, reload)) as client:
        yield client


def tensors() -> NDArray[np.float32]:
    return normalise(np.stack([crop_pixels(pixels, SPEC) for pixels in PIXELS]), SPEC)


def images() -> dict[str, Any]:
    data = [base64.b64encode(png(pixels)).decode() for pixels in PIXELS]
    return {"name": "image", "datatype": "BYTES", "shape": [3], "data": data}


def image() -> dict[str, Any]:
    return {**images(), "shape": [1], "data": images()["data"][:1]}


def outputs(answer: httpx.Response) -> dict[str, Any]:
    """The outputs of an answer by name, whether they are JSON or binary."""
    assert answer.status_code == 200, answer.text
    length = answer.headers.get(HEADER_LENGTH)
    head = orjson.loads(answer.content[: None if length is None else int(length)])
    tail = b"" if length is None else answer.content[int(length) :]
    found = {}
    for output in head["outputs"]:
        if "data" in output:
            data = output["data"]
        else:
            size = output["parameters"]["binary_data_size"]
            blob, tail = tail[:size], tail[size:]
            if output["datatype"] == "BYTES":
                data = []
                while blob:
                    (size,) = struct.unpack_from("<I", blob)
                    data.append(blob[4 : 4 + size].decode())
                    blob = blob[4 + size :]
            else:
                data = np.frombuffer(blob, {"FP32": "<f4", "INT64": "<i8"}[output["datatype"]])
        kind = {"FP32": np.float32, "INT64": np.int64, "BYTES": object}[output["datatype"]]
        found[output["name"]] = np.array(data, kind).reshape(output["shape"])
    assert not tail
    return found


def infer(client: Client, put: dict[str, Any], blob: bytes = b"", **more: Any) -> httpx.Response:
    head = orjson.dumps({"inputs": [put], **more})
    headers = {HEADER_LENGTH: str(len(head))} if blob else {}
    return client.post(INFER, content=head + blob, headers=headers)


@pytest.fixture(scope="module")
def expected(client: Client) -> dict[str, Any]:
    """What /predict says of the same images."""
    answers = [client.post("/predict", files={"image": png(pixels)}).json() for pixels in PIXELS]
    return {
        "probabilities": np.array([answer["probabilities"] for answer in answers], np.float32),
        "label": [answer["label"] for answer in answers],
        "class_index": [answer["class_index"] for answer in answers],
    }


# --- what the server and the model are


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready"])
def test_the_server_answers(client: Client, path: str) -> None:
    expected = {
        "/v2": {
            "name": "pthserve",
            "version": "0.1.0",
            "extensions": ["binary_tensor_data", "classification", "model_repository", "statistics"],
        },
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
    }
    assert client.get(path).json() == expected[path]


@pytest.mark.parametrize("model", ["/v2/models/pets", "/v2/models/pets/versions/3"])
def test_the_model_says_what_it_takes_and_gives(client: Client, model: str) -> None:
    assert client.get(model).json() == {
        "name": "pets",
        "versions": ["3"],
        "platform": "linear",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
            {"name": "tensor", "datatype": "FP32", "shape": [-1, 3, 32, 32]},
        ],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 5]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, 5]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "class_index", "datatype": "INT64", "shape": [-1]},
        ],
    }
    assert client.get(f"{model}/ready").json() == {"name": "pets", "ready": True}
    assert client.post(f"{model}/infer", json={"inputs": [image()]}).json()["model_version"] == "3"


def test_a_model_without_a_version_says_none(client: Client, predictor: Predictor) -> None:
    served = predictor.current
    predictor.current = linear(Linear(SPEC, len(LABELS)), version="")
    try:
        assert "versions" not in client.get("/v2/models/pets").json()
        assert "model_version" not in infer(client, image()).json()
        assert "version" not in client.post("/v2/repository/index").json()[0]
        assert client.get("/v2/models/pets/versions/3").status_code == 404
    finally:
        predictor.current = served


def test_before_there_is_a_model_all_that_needs_one_says_so() -> None:
    predictor = Predictor(SETTINGS)
    try:
        with Client(create_app(predictor, SETTINGS)) as client:
            assert client.get("/v2/health/live").json() == {"live": True}
            assert client.post("/v2/repository/index").json() == []
            assert client.get("/v2/models/stats").json() == {"model_stats": []}
            for path in ("/v2/health/ready", "/v2/models/pets", "/v2/models/pets/ready"):
                answer = client.get(path)
                assert answer.status_code == 503
                assert "loading" in answer.json()["error"]
            assert infer(client, image()).status_code == 503
    finally:
        predictor.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/cats"),
        ("GET", "/v2/models/cats/ready"),
        ("GET", "/v2/models/cats/stats"),
        ("GET", "/v2/models/cats/versions/3"),
        ("POST", "/v2/models/cats/infer"),
        ("GET", "/v2/models/pets/versions/4"),
        ("GET", "/v2/models/pets/versions/4/ready"),
        ("GET", "/v2/models/pets/versions/4/stats"),
        ("POST", "/v2/models/pets/versions/4/infer"),
        ("POST", "/v2/repository/models/cats/load"),
        ("POST", "/v2/repository/models/cats/unload"),
        ("GET", "/v2/models/pets/config"),
        ("GET", "/v2/nothing"),
    ],
)
def test_what_is_not_there_is_not_found(client: Client, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 404
    assert answer.json().keys() == {"error"}


# --- inference: one model, every form


def with_binary(put: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
    return {**put, "parameters": {"binary_data_size": len(blob)}}, blob


def prefixed(elements: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


FORMS: dict[str, tuple[dict[str, Any], bytes]] = {
    "images": (images(), b""),
    "images, binary": with_binary(
        {"name": "image", "datatype": "BYTES", "shape": [3]}, prefixed([png(pixels) for pixels in PIXELS])
    ),
    "images in a column": ({**images(), "shape": [3, 1]}, b""),
    "pixels, flat": (
        {
            "name": "pixels",
            "datatype": "UINT8",
            "shape": [3, 48, 64, 3],
            "data": np.stack(PIXELS).ravel().tolist(),
        },
        b"",
    ),
    "pixels, nested": (
        {"name": "pixels", "datatype": "UINT8", "shape": [3, 48, 64, 3], "data": np.stack(PIXELS).tolist()},
        b"",
    ),
    "pixels, binary": with_binary(
        {"name": "pixels", "datatype": "UINT8", "shape": [3, 48, 64, 3]}, np.stack(PIXELS).tobytes()
    ),
    "tensors, flat": (
        {
            "name": "tensor",
            "datatype": "FP32",
            "shape": [3, 3, 32, 32],
            "data": tensors().ravel().tolist(),
        },
        b"",
    ),
    "tensors, nested": (
        {"name": "tensor", "datatype": "FP32", "shape": [3, 3, 32, 32], "data": tensors().tolist()},
        b"",
    ),
    "tensors, binary": with_binary(
        {"name": "tensor", "datatype": "FP32", "shape": [3, 3, 32, 32]}, tensors().tobytes()
    ),
    "another name": ({**images(), "name": "input__0"}, b""),
}


@pytest.mark.slow
@pytest.mark.parametrize("binary", [False, True], ids=["json out", "binary out"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_answer_of_predict(
    client: Client, expected: dict[str, Any], form: str, binary: bool
) -> None:
    put, blob = FORMS[form]
    answer = infer(client, put, blob, parameters={"binary_data_output": binary})
    assert (HEADER_LENGTH in answer.headers) is binary
    found = outputs(answer)
    np.testing.assert_array_equal(found["probabilities"], expected["probabilities"])
    exponents = np.exp(found["logits"] - found["logits"].max(axis=1, keepdims=True))
    np.testing.assert_array_equal(found["probabilities"], exponents / exponents.sum(axis=1, keepdims=True))
    assert found["label"].tolist() == expected["label"]
    assert found["class_index"].tolist() == expected["class_index"]


def test_a_body_that_is_the_image_is_answered(client: Client, expected: dict[str, Any]) -> None:
    for accept, header in (("*/*", False), ("application/octet-stream", True)):
        answer = client.post(INFER, content=png(PIXELS[1]), headers={HEADER_LENGTH: "0", "Accept": accept})
        assert (HEADER_LENGTH in answer.headers) is header
        np.testing.assert_array_equal(outputs(answer)["probabilities"][0], expected["probabilities"][1])


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_body_is_inflated(client: Client, expected: dict[str, Any], encoding: str) -> None:
    known: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
    compress = known[encoding]
    put, blob = FORMS["tensors, binary"]
    head = orjson.dumps({"inputs": [put]})
    headers = {HEADER_LENGTH: str(len(head)), "Content-Encoding": encoding}
    answer = client.post(INFER, content=compress(head + blob), headers=headers)
    np.testing.assert_array_equal(outputs(answer)["probabilities"], expected["probabilities"])


def test_the_id_comes_back(client: Client) -> None:
    assert infer(client, image(), id="forty-two").json()["id"] == "forty-two"
    assert "id" not in infer(client, image()).json()


def test_outputs_are_those_asked_for_in_their_order(client: Client) -> None:
    asked = [
        {"name": "class_index"},
        {"name": "logits", "parameters": {"binary_data": True}},
        {"name": "label"},
    ]
    answer = infer(client, image(), outputs=asked)
    head = orjson.loads(answer.content[: int(answer.headers[HEADER_LENGTH])])
    assert [output["name"] for output in head["outputs"]] == ["class_index", "logits", "label"]
    assert ["data" in output for output in head["outputs"]] == [True, False, True]
    assert outputs(answer)["logits"].shape == (1, 5)


@pytest.mark.parametrize("binary", [False, True])
def test_a_classification_names_the_best(client: Client, expected: dict[str, Any], binary: bool) -> None:
    asked = [{"name": "probabilities", "parameters": {"classification": 2, "binary_data": binary}}]
    found = outputs(infer(client, images(), outputs=asked))["probabilities"]
    assert found.shape == (3, 2)
    for row, probabilities in zip(found, expected["probabilities"], strict=True):
        best = np.argsort(-probabilities)[:2]
        assert row.tolist() == [f"{probabilities[index]:f}:{index}:{LABELS[index]}" for index in best]


def test_parameters_and_fields_that_nobody_knows_are_passed_over(client: Client) -> None:
    put = {**image(), "parameters": {"content_type": "np"}, "comment": "none"}
    answer = infer(client, put, parameters={"priority": 1}, model_name="pets", outputs=None, id=None)
    assert answer.status_code == 200


def test_the_clients_timeout_counts(client: Client, engine: Linear) -> None:
    engine.gate.clear()
    try:
        answer = infer(client, image(), parameters={"timeout": 50_000})
    finally:
        engine.gate.set()
    assert answer.status_code == 504
    assert "deadline" in answer.json()["error"]


# --- what cannot be answered


def head(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{**image(), **changes}]}


def with_data(data: bytes) -> bytes:
    return b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": %b}]}' % data


NESTED = b"[" * 30_000
MALFORMED: dict[str, Any] = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"id": "\xff"}',
    "half a character": b'{"id": "\\ud800", "inputs": []}',
    "no object": b"[]",
    "no number": with_data(b"[NaN]"),
    "deep": NESTED,
    "deep and whole": NESTED + b"]" * 30_000,
    "data of lists": with_data(b"[" + b"[]," * 200_000 + b"[]]"),
    "data of objects": with_data(b"[{}]"),
    "data twice": with_data(b'[1], "data": ["aGk="]'),
    "numbers for images": {"inputs": [{**image(), "data": [1]}]},
    "deep data": with_data(b"[" * 900 + b"]" * 900),
    "no inputs": {},
    "no input": {"inputs": []},
    "inputs of a word": {"inputs": "image"},
    "two inputs": {"inputs": [image(), image()]},
    "no name": {"inputs": [{"datatype": "BYTES", "shape": [1], "data": ["aGk="]}]},
    "no datatype": {"inputs": [{"name": "image", "shape": [1], "data": ["aGk="]}]},
    "no shape": {"inputs": [{"name": "image", "datatype": "BYTES", "data": ["aGk="]}]},
    "no data": {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}]},
    "data of a word": head(data="aGk="),
    "a datatype of ours to come": head(datatype="FP16"),
    "shape of a word": head(shape="1"),
    "shape of words": head(shape=["1"]),
    "shape of fractions": head(shape=[1.0]),
    "shape of a truth": head(shape=[True]),
    "shape beyond 64 bits": b'{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [99999999999999999999],'
    b' "data": []}]}',
    "shape of thousands": head(shape=[1] * 10_000),
    "shape that lies": head(shape=[2]),
    "negative shape": head(shape=[-1]),
    "id of a number": {**head(), "id": 7},
    "parameters of a list": {**head(), "parameters": []},
    "unknown output": {**head(), "outputs": [{"name": "fc"}]},
    "output twice": {**head(), "outputs": [{"name": "label"}, {"name": "label"}]},
    "output without a name": {**head(), "outputs": [{}]},
    "classification of labels": {
        **head(),
        "outputs": [{"name": "label", "parameters": {"classification": 1}}],
    },
    "classification in words": {
        **head(),
        "outputs": [{"name": "logits", "parameters": {"classification": "1"}}],
    },
    "negative timeout": {**head(), "parameters": {"timeout": -1}},
    "shared memory": head(parameters={"shared_memory_region": "x"}),
    "binary data that is not there": head(data=None, parameters={"binary_data_size": 4}),
    "binary data and data": head(parameters={"binary_data_size": 0}),
    "negative binary data": head(data=None, parameters={"binary_data_size": -1}),
    "binary data in words": head(data=None, parameters={"binary_data_size": "0"}),
    "binary data of a huge size": head(data=None, parameters={"binary_data_size": 2**63}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MALFORMED)
def test_what_cannot_be_read_is_malformed(client: Client, case: str) -> None:
    body = MALFORMED[case]
    answer = client.post(INFER, content=body if isinstance(body, bytes) else orjson.dumps(body))
    assert answer.status_code == 400, answer.text
    assert answer.json().keys() == {"error"}
    assert len(answer.json()["error"]) < 300


LONG = "x" * (MAX_TEXT + 1)
LONG_TEXTS: dict[str, dict[str, Any]] = {
    "id": {**head(), "id": LONG},
    "id of megabytes": {**head(), "id": "x" * 2**19},
    "id in escapes": {**head(), "id": "\u00e9" * 2**10},
    "input": head(name=LONG),
    "datatype": head(datatype=LONG),
    "shape": head(shape=[LONG]),
    "output": {**head(), "outputs": [{"name": LONG}]},
    "parameter": {**head(), "parameters": {LONG: 1}},
    "value": head(parameters={"x": LONG}),
    "unknown field": {**head(), LONG: 1},
    "unknown field's value": {**head(), "comment": LONG},
    "data of an output": {**head(), "outputs": [{"name": "label", "data": [LONG]}]},
    "data in data": head(data=[[[[[[[[[[LONG]]]]]]]]]]),
    "name in data": head(data=[{LONG: 1}]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LONG_TEXTS)
def test_a_text_that_is_too_long_is_refused_and_not_repeated(client: Client, case: str) -> None:
    answer = client.post(INFER, content=json.dumps(LONG_TEXTS[case]))
    assert answer.status_code == 400
    assert len(answer.content) < 300
    assert "xxx" not in answer.text


def test_an_id_of_the_longest_length_comes_back(client: Client) -> None:
    assert infer(client, image(), id="x" * MAX_TEXT).json()["id"] == "x" * MAX_TEXT


@pytest.mark.slow
@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("shape", [[1], [1, 1]])
def test_an_image_may_be_long_and_its_slashes_escaped(
    client: Client, expected: dict[str, Any], shape: list[int], escaped: bool
) -> None:
    file = base64.b64encode(png(PIXELS[1])).decode()
    assert len(file) > MAX_TEXT
    assert "/" in file
    body = json.dumps(
        {"inputs": [{**image(), "shape": shape, "data": [file] if len(shape) == 1 else [[file]]}]}
    )
    answer = client.post(INFER, content=body.replace("/", "\\/") if escaped else body)
    np.testing.assert_array_equal(outputs(answer)["probabilities"][0], expected["probabilities"][1])


@pytest.mark.parametrize("place", ["request", "input", "output"])
def test_more_parameters_than_a_request_needs_are_malformed(client: Client, place: str) -> None:
    many = {str(number): 0 for number in range(MAX_PARAMETERS + 1)}
    body = {
        "request": {**head(), "parameters": many},
        "input": head(parameters=many),
        "output": {**head(), "outputs": [{"name": "label", "parameters": many}]},
    }[place]
    answer = client.post(INFER, content=orjson.dumps(body))
    assert answer.status_code == 400
    assert "parameters" in answer.json()["error"]


def test_more_outputs_than_there_are_are_malformed(client: Client) -> None:
    answer = client.post(
        INFER, content=orjson.dumps({**head(), "outputs": [{"name": "label"}] * (MAX_OUTPUTS + 1)})
    )
    assert answer.status_code == 400
    assert "outputs" in answer.json()["error"]


@pytest.mark.parametrize(
    "path", ["/predict", "/explain", "/v2/repository/index", "/v2/repository/models/pets/load"]
)
def test_only_an_inference_may_be_compressed(client: Client, path: str) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "image/png"}
    answer = client.post(path, content=gzip.compress(b"{}"), headers=headers)
    assert answer.status_code == 400
    assert "Content-Encoding" in answer.json()["error"] or "compressed" in answer.json()["error"]


def test_a_repositorys_request_is_small(client: Client) -> None:
    answer = client.post("/v2/repository/index", content=b'{"x": "' + b"x" * 2**17 + b'"}')
    assert answer.status_code == 413
    assert client.post("/v2/repository/index", content=b'{"x": "' + b"x" * 2000 + b'"}').status_code == 400


@pytest.mark.parametrize("length", ["-1", "x", "1.5", "1_0", "٣", " ", "99999999999999999999999", "5000"])
def test_a_header_length_that_lies_is_malformed(client: Client, length: str) -> None:
    body = orjson.dumps(head())[:4000]
    answer = client.post(INFER, content=body, headers={HEADER_LENGTH.encode(): length.encode()})
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}


@pytest.mark.parametrize("wrong", ["short", "long", "split"])
def test_binary_data_that_does_not_add_up_is_malformed(client: Client, wrong: str) -> None:
    put, blob = FORMS["tensors, binary"]
    text = orjson.dumps({"inputs": [put]})
    length = len(text) - (1 if wrong == "split" else 0)
    blob = {"short": blob[:-1], "long": blob + b"!", "split": blob}[wrong]
    answer = client.post(INFER, content=text + blob, headers={HEADER_LENGTH: str(length)})
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}


def test_a_tensor_without_an_answer_is_malformed(client: Client) -> None:
    put, _ = FORMS["tensors, binary"]
    huge = np.full((3, 3, 32, 32), 3e38, np.float32)
    assert infer(client, put, huge.tobytes()).status_code == 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "put",
    [
        {"name": "image", "datatype": "BYTES", "shape": [9], "data": ["aGk="] * 9},
        {"name": "image", "datatype": "BYTES", "shape": [2**62], "data": []},
        {"name": "pixels", "datatype": "UINT8", "shape": [1, 10**6, 10**6, 3], "data": []},
        {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 10_001, 3], "data": []},
    ],
    ids=["images", "absurdly many images", "absurdly many pixels", "one pixel too many"],
)
def test_what_is_over_a_limit_is_too_large(client: Client, put: dict[str, Any]) -> None:
    answer = infer(client, put)
    assert answer.status_code == 413
    assert answer.json().keys() == {"error"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"inputs": [' + b"{}," * 100_000 + b"{}]}",
        b'{"inputs": [], "outputs": [' + b"[]," * 100_000 + b"[]]}",
        b'{"inputs": [{"name": "x", "datatype": "FP32", "data": [], "shape": [' + b"1," * 100_000 + b"1]}]}",
        b'{"parameters": {' + b",".join(b'"%d": 0' % index for index in range(50_000)) + b"}}",
    ],
    ids=["brackets", "inputs", "outputs", "shape", "parameters"],
)
@pytest.mark.parametrize("path", [INFER, "/v2/repository/index", "/v2/repository/models/pets/load"])
def test_json_of_more_than_a_request_needs_is_too_large(client: Client, body: bytes, path: str) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == 413
    assert answer.json().keys() == {"error"}


def test_a_bomb_is_too_large_and_is_not_inflated_whole(client: Client) -> None:
    bomb = zlib.compress(bytes(50 * 2**20), 9)
    assert len(bomb) < 2**16
    answer = client.post(INFER, content=bomb, headers={"Content-Encoding": "deflate"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("br", b"{}"),
        ("gzip", b"no gzip"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-1]),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"!"),
        ("deflate", b""),
    ],
    ids=["brotli", "no gzip", "cut short", "more behind it", "empty"],
)
def test_a_body_that_cannot_be_inflated_is_malformed(client: Client, encoding: str, body: bytes) -> None:
    assert client.post(INFER, content=body, headers={"Content-Encoding": encoding}).status_code == 400


def test_images_that_cannot_be_decoded_have_the_status_of_predict(client: Client) -> None:
    for data, status in ((b"no image at all", 415), (png(PIXELS[0])[:200], 422)):
        put = {**image(), "data": [base64.b64encode(data).decode()]}
        assert infer(client, put).status_code == status
        assert client.post("/predict", files={"image": data}).status_code == status


# --- statistics


def test_statistics_count_what_was_done(client: Client) -> None:
    def stats() -> dict[str, Any]:
        found: dict[str, Any] = client.get("/v2/models/pets/stats").json()["model_stats"][0]
        return found

    before = stats()
    assert infer(client, images()).status_code == 200
    assert infer(client, {**image(), "data": ["bm8gaW1hZ2U="]}).status_code == 415
    after = stats()
    assert (after["name"], after["version"]) == ("pets", "3")
    assert after["inference_count"] - before["inference_count"] == 3
    assert 1 <= after["execution_count"] - before["execution_count"] <= 3
    assert after["last_inference"] > 1.7e12
    for name, count in (
        ("success", 1),
        ("fail", 1),
        ("queue", 3),
        ("compute_infer", 3),
        ("compute_input", 4),
    ):
        grown = {
            key: after["inference_stats"][name][key] - before["inference_stats"][name][key]
            for key in ("count", "ns")
        }
        assert grown["count"] == count, name
        assert grown["ns"] > 0, name
    assert after["inference_stats"].keys() == {
        "success",
        "fail",
        "queue",
        "compute_input",
        "compute_infer",
        "compute_output",
        "cache_hit",
        "cache_miss",
    }
    sizes = [batch["batch_size"] for batch in after["batch_stats"]]
    assert sizes == sorted(set(sizes))
    passes = sum(batch["compute_infer"]["count"] for batch in after["batch_stats"])
    assert passes == after["execution_count"]
    assert client.get("/v2/models/stats").json() == client.get("/v2/models/pets/versions/3/stats").json()


def test_statistics_are_what_prometheus_is_told(client: Client) -> None:
    assert infer(client, image()).status_code == 200
    stats = client.get("/v2/models/pets/stats").json()["model_stats"][0]
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(lines["pthserve_prediction_confidence_count"]) == stats["inference_count"]
    for stage, name in (("decode", "compute_input"), ("queue", "queue"), ("infer", "compute_infer")):
        series = f'pthserve_stage_duration_seconds_%s{{stage="{stage}"}}'
        assert float(lines[series % "count"]) == stats["inference_stats"][name]["count"]
        assert float(lines[series % "sum"]) * 1e9 == pytest.approx(
            stats["inference_stats"][name]["ns"], abs=1
        )


# --- the repository


def test_the_index_lists_the_model(client: Client, predictor: Predictor) -> None:
    listed = {"name": "pets", "version": "3", "state": "READY", "reason": ""}
    for body in (b"", b"{}", b'{"ready": true}'):
        assert client.post("/v2/repository/index", content=body).json() == [listed]
    predictor.unready = "its golden images disagree"
    try:
        unready = {**listed, "state": "UNAVAILABLE", "reason": "its golden images disagree"}
        assert client.post("/v2/repository/index").json() == [unready]
        assert client.post("/v2/repository/index", json={"ready": True}).json() == []
        assert client.get("/v2/models/pets/ready").status_code == 503
    finally:
        predictor.unready = None
    assert client.post("/v2/repository/index", json={"ready": "perhaps"}).status_code == 400


def test_a_load_reads_the_file_again(client: Client, reload: Reload) -> None:
    before = reload.count
    for body in (b"", b"{}", b'{"parameters": {}}'):
        assert client.post("/v2/repository/models/pets/load", content=body).status_code == 200
    assert reload.count == before + 3


def test_a_load_that_fails_says_why(client: Client, reload: Reload) -> None:
    reload.error = WeightsError("the file is cut short")
    try:
        answer = client.post("/v2/repository/models/pets/load")
    finally:
        reload.error = None
    assert answer.status_code == 409
    assert answer.json() == {"error": "the file is cut short"}
    assert infer(client, image()).status_code == 200


def test_a_load_of_another_file_is_refused(client: Client, reload: Reload) -> None:
    before = reload.count
    answer = client.post("/v2/repository/models/pets/load", json={"parameters": {"config": "{}"}})
    assert answer.status_code == 400
    assert reload.count == before


def test_an_unload_is_refused(client: Client) -> None:
    answer = client.post("/v2/repository/models/pets/unload")
    assert answer.status_code == 400
    assert "one model" in answer.json()["error"]


# --- the schema


def closed(schema: Any) -> Any:
    """`schema`, of which no object may have more than the properties that it names."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    more = {"additionalProperties": False} if "properties" in schema else {}
    return {name: closed(part) for name, part in schema.items()} | more


@pytest.mark.parametrize(
    ("path", "method", "body"),
    [
        ("/v2", "get", None),
        ("/v2/health/live", "get", None),
        ("/v2/health/ready", "get", None),
        ("/v2/models/stats", "get", None),
        ("/v2/models/{model}", "get", None),
        ("/v2/models/{model}/ready", "get", None),
        ("/v2/models/{model}/stats", "get", None),
        ("/v2/models/{model}/infer", "post", {"id": "seven", "inputs": [images()]}),
        ("/v2/repository/index", "post", {}),
    ],
)
def test_each_answer_is_what_the_schema_says_and_no_more(
    client: Client, path: str, method: str, body: dict[str, Any] | None
) -> None:
    document = client.get("/openapi.json").json()
    described = document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
    response = client.request(method.upper(), path.replace("{model}", "pets"), json=body)
    assert response.status_code == 200
    jsonschema.validate(response.json(), {**closed(described), "components": closed(document["components"])})


def test_the_schema_describes_the_body_of_an_inference(client: Client) -> None:
    document = client.get("/openapi.json").json()
    content = document["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]
    body = {"inputs": [images()]}
    schema = {**content["application/json"]["schema"], "components": document["components"]}
    jsonschema.validate(body, schema)
    with pytest.raises(jsonschema.ValidationError, match="inputs"):
        jsonschema.validate({"outputs": []}, schema)
