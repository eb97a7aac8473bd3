"""Messages: the Open Inference Protocol's protobuf messages, to and from `inference_protocol`'s types."""

from collections.abc import Mapping

from pthserve.errors import MalformedRequest
from pthserve.inference_protocol.infer import (
    Request,
    Response,
    check_parameters,
    flag,
    timeout,
    wanted,
)
from pthserve.inference_protocol.tensors import Input
from pthserve.protos import inference_pb2 as pb

_FIELDS = {
    "FP32": "fp32_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "BYTES": "bytes_contents",
}


def request(message: pb.ModelInferRequest) -> Request:
    """Convert `message`; raises MalformedRequest.

    Outputs are raw if the inputs are, unless the parameter `binary_data_output` says otherwise.
    """
    given = parameters(message.parameters)
    check_parameters(given)
    binary = flag(given, "binary_data_output", default=bool(message.raw_input_contents))
    return Request(
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        inputs=_inputs(message),
        wanted=tuple(
            wanted(output.name, parameters(output.parameters), binary=binary) for output in message.outputs
        ),
        binary=binary,
        timeout=timeout(given),
    )


def _inputs(message: pb.ModelInferRequest) -> tuple[Input, ...]:
    raw = message.raw_input_contents
    if raw and (len(raw) != len(message.inputs) or any(put.HasField("contents") for put in message.inputs)):
        raise MalformedRequest(
            "if raw_input_contents is used, it must hold every input, and `contents` must be empty"
        )
    inputs = []
    for index, put in enumerate(message.inputs):
        check_parameters(parameters(put.parameters))
        content = raw[index] if raw else getattr(put.contents, _FIELDS.get(put.datatype, "bytes_contents"))
        inputs.append(Input(put.datatype, tuple(put.shape), content))
    return tuple(inputs)


def parameters(
    given: Mapping[str, pb.InferParameter] | Mapping[str, pb.ModelRepositoryParameter],
) -> dict[str, object]:
    """Return `given` as plain values, without those that have no value."""
    choices = {name: parameter.WhichOneof("parameter_choice") for name, parameter in given.items()}
    return {name: getattr(given[name], choice) for name, choice in choices.items() if choice}


def response(answered: Response) -> pb.ModelInferResponse:
    """Convert `answered`; all of its outputs are raw if one of them is requested as binary."""
    message = pb.ModelInferResponse(model_name=answered.model, model_version=answered.version, id=answered.id)
    raw = any(output.binary for output in answered.outputs)
    for output in answered.outputs:
        tensor = message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        if raw:
            message.raw_output_contents.append(output.to_bytes())
        else:
            flat = output.values if isinstance(output.values, list) else output.values.ravel().tolist()
            getattr(tensor.contents, _FIELDS[output.datatype]).extend(flat)
    return message
