"""Text hex dumps of configuration space in the form of `lspci -x`, `-xxx` and `-xxxx`, several functions in a file.

    0000:01:00.0 function
    00: f4 1a 41 10 07 05 10 00 01 00 00 02 00 00 00 00
    10: …

A line that starts with a function's address begins a new one; lines that are neither an address nor a row (such as
lspci's own decoding) are passed over.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import Factory, define

from virtio_py.errors import MessageError
from virtio_py.pci.header import CONFIG_SPACE_MAX

_ADDRESS: Final = re.compile(r"(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7](?=\s|$)", re.IGNORECASE)
_ROW: Final = re.compile(r"([0-9a-f]{2,3}):((?:\s+[0-9a-f]{2}){1,16})\s*", re.IGNORECASE)


@define
class Dumped:
    """One function of a dump: its address as written ("0000:01:00.0"), "" where there was none; and its bytes."""

    address: str
    config: bytearray = Factory(bytearray)


_ROW_BYTES: Final = 16


def format_dump(function: Dumped) -> str:
    """The text, which ends in an empty line: dumps of several functions may follow each other."""
    places = range(0, len(function.config), _ROW_BYTES)
    rows = (f"{at:02x}: {function.config[at : at + _ROW_BYTES].hex(' ')}\n" for at in places)
    return f"{function.address} function\n{''.join(rows)}\n"


def looks_like_text(data: bytes) -> bool:
    """Whether these bytes can be a text dump; raw configuration space has zeros or high bytes."""
    return data.isascii() and all(byte >= 0x20 or byte in b"\t\n\v\f\r" for byte in data)


def parse_dump(text: str) -> list[Dumped]:
    """The functions of a dump; raises MessageError when there is no row of bytes, or one out of order."""
    functions: list[Dumped] = []
    for number, line in enumerate(text.splitlines(), 1):
        if row := _ROW.fullmatch(line):
            _append(functions, int(row[1], 16), bytes.fromhex(row[2]), number)
        elif address := _ADDRESS.match(line):
            functions.append(Dumped(address[0]))
    dumped = [f for f in functions if f.config]
    if not dumped:
        raise MessageError("this is no hex dump in the form of lspci -xxxx: it has no row of bytes")
    return dumped


def _append(functions: list[Dumped], offset: int, data: bytes, number: int) -> None:
    if not functions or (offset == 0 and functions[-1].config):
        functions.append(Dumped(""))
    config = functions[-1].config
    if offset != len(config):
        raise MessageError(f"line {number}: the row {offset:02x} stands where {len(config):02x} is expected")
    if offset + len(data) > CONFIG_SPACE_MAX:
        raise MessageError(f"line {number}: more than {CONFIG_SPACE_MAX} bytes for one function")
    config += data
