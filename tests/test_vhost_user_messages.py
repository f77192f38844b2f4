"""The messages of vhost-user: layouts against construct, sizes against the C structures, framing against a model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtio_py.errors import MessageError
from virtio_py.records import Record, RecordFamily, Register
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_messages import (
    BACKEND_MESSAGES,
    FRONTEND_MESSAGES,
    MAX_PAYLOAD,
    Assembler,
    BackendRequest,
    Flag,
    FrontendRequest,
    Message,
    Reply,
    decode_message,
    decode_payload,
)

RECORDS = [value for value in vars(m).values() if isinstance(value, Record)] + [
    m.VhostUserMemory(3),
    m.VhostUserConfig(7),
    m.VhostUserShMemConfig(2),
]


def plain(record: Record, parsed: Any) -> dict[str, Any]:
    """What construct parsed, in the terms of `Record.as_dict`."""
    return {name: _plain(parsed[name]) for name in record.fields}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if hasattr(value, "_asdict"):
        return value._asdict()
    return {k: _plain(v) for k, v in value.items() if k != "_io"} if isinstance(value, dict) else value


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.name)
@given(data=st.data())
def test_payloads_agree_with_construct(record: Record, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=record.size, max_size=record.size))
    values = record.decode(raw)
    assert record.as_dict(values) == plain(record, record.layout.parse(raw))
    assert record.encode_values(values) == raw
    assert record.size == record.layout.sizeof()


SIZES = {
    m.vhost_user_header: 12,
    m.u64: 8,
    m.vhost_vring_state: 8,
    m.vhost_vring_descriptor_indices: 8,
    m.vhost_vring_addr: 40,
    m.VhostUserMemoryRegion: 32,
    m.VhostUserMemRegMsg: 40,
    m.VhostUserMemory(8): 264,
    m.VhostUserLog: 16,
    m.vhost_iotlb_msg: 32,
    m.VhostUserConfig(256): 268,
    m.VhostUserVringArea: 24,
    m.VhostUserInflight: 24,  # QEMU sends, and wants, the padding of its C structure
    m.VhostUserShared: 16,
    m.VhostUserTransferDeviceState: 8,
    m.VhostUserMMap: 40,
}


@pytest.mark.parametrize(("record", "size"), SIZES.items(), ids=lambda v: getattr(v, "name", v))
def test_sizes_are_those_of_the_c_structures(record: Record, size: int) -> None:
    assert record.size == size


def test_the_tables_have_every_request_and_every_payload_fits() -> None:
    assert set(FRONTEND_MESSAGES) == set(FrontendRequest)
    assert set(BACKEND_MESSAGES) == set(BackendRequest)
    largest = max(r.size for r in SIZES)
    assert largest < MAX_PAYLOAD


def test_messages_that_are_answered_by_a_value_are_the_questions() -> None:
    answered = {r.name for r, shape in FRONTEND_MESSAGES.items() if shape.reply is Reply.VALUE}
    asked = {r.name for r in FrontendRequest if r.name.startswith("GET_") or r.name.startswith("C")}
    assert answered == (asked | {"POSTCOPY_ADVISE", "SET_DEVICE_STATE_FD"}) - {"CLOSE_CRYPTO_SESSION"}


def test_a_header_on_the_wire() -> None:
    wire = Message(FrontendRequest.GET_VRING_BASE, Flag.NEED_REPLY, b"abcdefgh").encode()
    assert wire == bytes.fromhex("0b000000 09000000 08000000") + b"abcdefgh"
    assert decode_message(wire) == (11, Flag.NEED_REPLY, b"abcdefgh")
    assert decode_message(wire).need_reply


messages = st.builds(
    Message,
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, Flag.NEED_REPLY, Flag.REPLY, Flag.REPLY | Flag.NEED_REPLY]),
    st.binary(max_size=300),
)


@given(messages)
def test_a_message_survives_the_wire(message: Message) -> None:
    assert decode_message(message.encode()) == message
    assert message.need_reply == bool(message.flags & Flag.NEED_REPLY)


@given(messages, st.data())
def test_every_other_length_is_refused(message: Message, data: st.DataObject) -> None:
    wire = message.encode()
    with pytest.raises(MessageError):
        decode_message(wire[: data.draw(st.integers(0, len(wire) - 1))])
    with pytest.raises(MessageError):
        decode_message(wire + b"x")


@pytest.mark.parametrize("version", [0, 2, 3])
def test_another_version_is_refused(version: int) -> None:
    with pytest.raises(MessageError, match="version"):
        decode_message(m.vhost_user_header.encode(request=1, flags=version))


@given(st.integers(MAX_PAYLOAD + 1, 2**32 - 1))
def test_a_payload_too_long_is_refused_by_its_header(size: int) -> None:
    with pytest.raises(MessageError, match="longer"):
        Assembler().feed(m.vhost_user_header.encode(request=1, flags=1, size=size))


@given(st.lists(messages, max_size=4), st.data())
def test_a_stream_is_cut_into_its_messages(sent: list[Message], data: st.DataObject) -> None:
    stream = b"".join(message.encode() for message in sent)
    assembler, at = Assembler(), 0
    received: list[Message] = []
    while at < len(stream):
        assert assembler.idle == (stream[:at] == b"".join(r.encode() for r in received))
        count = data.draw(st.integers(1, assembler.wanted))
        message = assembler.feed(stream[at : at + count])
        at += count
        received += [message] if message else []
    assert received == sent
    assert assembler.idle


@pytest.mark.parametrize("request_", FrontendRequest)
@given(payload=st.binary(max_size=300))
def test_a_payload_is_decoded_or_refused(request_: FrontendRequest, payload: bytes) -> None:
    shape = FRONTEND_MESSAGES[request_]
    try:
        values = decode_payload(request_.name, shape, payload)
    except MessageError:
        return
    if isinstance(shape.payload, Record):
        assert shape.payload.encode_values(values) == payload
    elif isinstance(shape.payload, RecordFamily):
        assert payload[:4] == shape.payload(0).encode_values(shape.payload(0).decode(payload))[:4]
    else:
        assert (values, payload) == (None, b"")


def test_room_for_regions_that_are_not_there_is_put_up_with() -> None:
    """User Mode Linux sends 72 bytes for one region."""
    region = {"guest_phys_addr": 1, "memory_size": 2, "userspace_addr": 3, "mmap_offset": 4}
    payload = m.VhostUserMemory(2).encode(nregions=1, regions=[region, dict.fromkeys(region, 0)])
    assert len(payload) == 72
    shape = FRONTEND_MESSAGES[FrontendRequest.SET_MEM_TABLE]
    assert [tuple(r) for r in decode_payload("SET_MEM_TABLE", shape, payload).regions] == [(1, 2, 3, 4)]
    with pytest.raises(MessageError):
        decode_payload("SET_MEM_TABLE", shape, m.VhostUserMemory(0).encode(nregions=1))
    with pytest.raises(MessageError):
        decode_payload("SET_MEM_TABLE", shape, m.VhostUserMemory(0).encode(nregions=9) + bytes(9 * 32))


def test_the_packed_position_fills_its_word() -> None:
    register = m.vhost_vring_descriptor_indices.field("num").register
    assert isinstance(register, Register)
    assert register.join({"avail_index": 1, "avail_wrap": 1, "used_index": 2, "used_wrap": 1}) == 0x80028001
