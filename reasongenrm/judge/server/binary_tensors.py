"""The binary tensor extension of the Open Inference Protocol: JSON, then the tensors' bytes, in one body.

A request or response with the header Inference-Header-Content-Length is that many bytes of JSON, followed by the data
of each tensor that has `binary_data_size` among its parameters, in the order of the tensors. An element of a BYTES
tensor is its length, 4 bytes little-endian, and its bytes; one of an FP64 tensor is 8 bytes little-endian.

Source: kserve/open-inference-protocol and triton-inference-server/server, docs/protocol/extension_binary_data.md
("binary_tensor_data"); kserve's client (kserve/protocol/infer_type.py) sends texts this way by default.
"""

import json
import struct
from collections.abc import Collection, Sequence
from typing import Any

from reasongenrm.judge.refusals import JudgeError

HEADER = "Inference-Header-Content-Length"
EXTENSION = "binary_tensor_data"
SIZE = "binary_data_size"
_LENGTH = struct.Struct("<I")


class BadTensorError(JudgeError):
    """A body whose binary tensors cannot be read."""

    status, code = 400, "invalid"


def read_binary(body: bytes, header: str) -> bytes:
    """A request with binary tensors as the same request in JSON alone.

    Args:
        header: the value of Inference-Header-Content-Length.

    Raises:
        BadTensorError: the header is no length within the body, or the tensors are not what the JSON says.
    """
    if not (header.isascii() and header.isdigit() and int(header) <= len(body)):
        raise BadTensorError(f"{HEADER} is {header!r}; expected the length of the JSON, at most {len(body)} bytes.")
    try:
        asked = json.loads(body[: int(header)])
    except (ValueError, RecursionError) as error:
        raise BadTensorError(f"the first {header} bytes are no JSON; {HEADER} must be the length of it.") from error
    place = int(header)
    tensors = asked.get("inputs") if isinstance(asked, dict) else None
    for tensor in tensors if isinstance(tensors, list) else ():
        parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
        if not isinstance(parameters, dict) or SIZE not in parameters:
            continue
        name, size = tensor.get("name"), parameters.pop(SIZE)
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(body) - place:
            raise BadTensorError(f"input '{name}' has {SIZE} {size!r}; {len(body) - place} bytes are left in the body.")
        if tensor.get("datatype") != "BYTES":
            raise BadTensorError(f"input '{name}' is {tensor.get('datatype')}; expected BYTES.")
        tensor["data"] = _texts(body[place : place + size], name)
        place += size
    if place != len(body):
        raise BadTensorError(f"{len(body) - place} bytes follow the last tensor; expected none.")
    return json.dumps(asked).encode()


def write_binary(answer: dict[str, Any], names: Collection[str]) -> tuple[bytes, int]:
    """A response with the data of some outputs in binary.

    Args:
        answer: in the protocol's JSON form; outputs are BYTES (of texts) or FP64.
        names: of the outputs whose data follow the JSON.

    Returns:
        The body and the length of its JSON, for the header.
    """
    outputs, tail = [], b""
    for output in answer["outputs"]:
        if output["name"] in names:
            data = _bytes_of(output["datatype"], output["data"])
            tail += data
            output = {**output, "parameters": {**(output.get("parameters") or {}), SIZE: len(data)}}
            del output["data"]
        outputs.append(output)
    head = json.dumps({**answer, "outputs": outputs}).encode()
    return head + tail, len(head)


def _texts(data: bytes, name: Any) -> list[str]:
    texts: list[str] = []
    place = 0
    while place < len(data):
        start = place + _LENGTH.size
        if start > len(data) or (end := start + _LENGTH.unpack_from(data, place)[0]) > len(data):
            raise BadTensorError(
                f"input '{name}' ends within element {len(texts)}; expected a length of 4 bytes, little-endian, and as "
                "many bytes, for each element."
            )
        try:
            texts.append(data[start:end].decode())
        except UnicodeDecodeError as error:
            raise BadTensorError(f"element {len(texts)} of input '{name}' is no UTF-8 ({error.reason}).") from error
        place = end
    return texts


def _bytes_of(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype == "FP64":
        return struct.pack(f"<{len(values)}d", *values)
    texts = [value.encode("utf-8", "replace") for value in values]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
