"""Writes ONNX models, without the `onnx` package: as much of the format as the encoder's graph needs.

An ONNX file is one protocol buffer (https://onnx.ai/onnx/repo-docs/IR.html; field numbers from onnx.proto3,
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3; the encoding from https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

IR_VERSION = 9
_ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}
_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7  # AttributeProto.AttributeType

Array = np.ndarray[Any, Any]
Attribute = float | int | str | list[int]


class Graph:
    """Nodes in the order in which they are added, which has to be one in which they can run."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._count = 0

    def input(self, name: str, kind: str, shape: Sequence[str | int]) -> str:
        self._inputs.append(_value(name, kind, shape))
        return name

    def output(self, name: str, kind: str, shape: Sequence[str | int]) -> None:
        self._outputs.append(_value(name, kind, shape))

    def constant(self, array: Array) -> str:
        name = self._new("constant")
        dims = b"".join(_number(1, size) for size in array.shape)
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        tensor = dims + _number(2, _ELEMENT_TYPES[array.dtype.name]) + _text(8, name) + _bytes(9, data)
        self._constants.append(tensor)
        return name

    def node(self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Attribute) -> Any:
        """The name of the result; a list of names where there are several. An input of "" is left out."""
        names = [self._new(operator) for _ in range(outputs)]
        fields = [*(_text(1, each) for each in inputs), *(_text(2, each) for each in names)]
        fields += [_text(3, names[0]), _text(4, operator)]
        fields += [_bytes(5, _attribute(name, value)) for name, value in attributes.items()]
        if domain:
            fields.append(_text(7, domain))
        self._nodes.append(b"".join(fields))
        return names[0] if outputs == 1 else names

    def rename(self, value: str, name: str) -> str:
        """`value` under a name of one's own, as an output needs it."""
        self._nodes.append(_text(1, value) + _text(2, name) + _text(4, "Identity"))
        return name

    def model(self, opsets: dict[str, int]) -> bytes:
        """The whole file. `opsets`: operator set by domain, "" for ONNX's own."""
        parts = [(1, self._nodes), (5, self._constants), (11, self._inputs), (12, self._outputs)]
        graph = b"".join(_bytes(field, each) for field, all_ in parts for each in all_) + _text(2, self._name)
        sets = b"".join(_bytes(8, _text(1, domain) + _number(2, version)) for domain, version in opsets.items())
        return _number(1, IR_VERSION) + sets + _text(2, "switchyard") + _bytes(7, graph)

    def _new(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"


def _value(name: str, kind: str, shape: Sequence[str | int]) -> bytes:
    dims = b"".join(_bytes(1, _text(2, size) if isinstance(size, str) else _number(1, size)) for size in shape)
    tensor = _number(1, _ELEMENT_TYPES[kind]) + _bytes(2, dims)
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _attribute(name: str, value: Attribute) -> bytes:
    head = _text(1, name)
    if isinstance(value, float):
        return head + _varint(2 << 3 | 5) + struct.pack("<f", value) + _number(20, _FLOAT)
    if isinstance(value, int):
        return head + _number(3, value) + _number(20, _INT)
    if isinstance(value, str):
        return head + _text(4, value) + _number(20, _STRING)
    return head + b"".join(_number(8, each) for each in value) + _number(20, _INTS)


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1  # a negative one is written as its two's complement
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())
