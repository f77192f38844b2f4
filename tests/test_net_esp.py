"""ESP: published known answers, any packet there and back, the replay window against a set, and what must fail."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.net_frames import V4, V6, checksums_hold, ethernet, frame_of, ip, udp, words_sum
from virtio_py.devices.net import ciphers
from virtio_py.devices.net.associations import MAX_WINDOW, Association, AssociationTable, IpsecFailed
from virtio_py.devices.net.ciphers import Aead, AesCbc, AesCtr, Cipher, Mac, suite_of
from virtio_py.devices.net.esp import expansion, find_esp, protect, unprotect
from virtio_py.devices.net.ipsec import IPSEC_INB_SA, IPSEC_OUTB_SA, IpsecDirection, IpsecMode, IpsecOption
from virtio_py.devices.net.ipsec_driver import SecurityParameters
from virtio_py.devices.net.parsing import network_at, network_of
from virtio_py.devices.net.replay import ReplayWindow
from virtio_py.errors import UsageError

pytest.importorskip("cryptography")

KEY, MAC_KEY = bytes(range(32)), bytes(range(100, 132))
SUITES: dict[str, dict[str, Any]] = {
    "gcm": {"cipher": Aead.GCM, "key": KEY[:16], "salt": 0x01020304},
    "gcm 256": {"cipher": Aead.GCM, "key": KEY, "salt": 0x01020304},
    "chacha20": {"cipher": Aead.CHACHA20_POLY1305, "key": KEY, "salt": 0x01020304},
    "cbc": {
        "cipher": Cipher.AES_CBC,
        "key": KEY[:16],
        "authentication": Mac.HMAC_SHA_256,
        "authentication_key": MAC_KEY,
    },
    "ctr": {
        "cipher": Cipher.AES_CTR,
        "key": KEY[:24],
        "salt": 9,
        "authentication": Mac.HMAC_SHA1,
        "authentication_key": MAC_KEY[:20],
    },
    "null": {"cipher": Cipher.NONE, "key": b"", "authentication": Mac.HMAC_SHA1, "authentication_key": MAC_KEY[:20]},
}
TUNNELS: dict[int, dict[str, Any]] = {
    4: {"src_ip": 0xC0000201, "dst_ip": 0xC0000202, "dscp": 5, "ttl": 9},
    6: {"src_addr": V6[1], "dst_addr": V6[0], "flabel": 0x12345, "hlimit": 9, "dscp": 5},
}


def parameters(suite: str = "gcm", version: int = 0, **changes: Any) -> SecurityParameters:
    """In tunnel mode if a version is given."""
    mode = IpsecMode.ESP_TUNNEL if version else IpsecMode.ESP_TRANSPORT
    values: dict[str, Any] = {"mode": mode, "spi": 0x1000, **SUITES[suite]}
    if version:
        values |= {"version": version, "tunnel": TUNNELS[version]}
    return SecurityParameters(**(values | changes))


def both(given: SecurityParameters) -> tuple[Association, Association]:
    """The two ends of an association."""
    table = AssociationTable()
    for capability in table.capabilities().values():
        capability.accept(capability.offer())
    for kind, direction in ((IPSEC_OUTB_SA, IpsecDirection.OUTBOUND), (IPSEC_INB_SA, IpsecDirection.INBOUND)):
        table.resource_types()[kind].create(7, given.encode(7, direction))
    sender, receiver = table.outbound(7), table.inbound(given.spi)
    assert sender is not None
    assert receiver is not None
    return sender, receiver


def there(sender: Association, frame: bytes) -> bytes:
    return protect(sender, frame, network_of(frame))


def back(receiver: Association, frame: bytes) -> bytes:
    network = network_of(frame)
    sealed = find_esp(frame, network)
    assert network is not None
    assert sealed is not None
    return unprotect(receiver, frame, network, sealed)


# Known answers


def h(text: str) -> bytes:
    return bytes.fromhex(text)


def test_gcm_as_published() -> None:
    """draft-mcgrew-gcm-test-01, the packet with an extended sequence number."""
    suite = suite_of(Aead.GCM, h("4c80cdefbb5d10da906ac73c3613a634"), 0, b"", h("2e443b68"))
    plain = h(
        "45000048699a000080114db7c0a80102c0a801010a9bf15638d3010000010000000000"
        "00045f736970045f756470037369700963796265726369747902646b0000210001"
        "01020201"
    )
    sealed = h(
        "fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34cfa2436f14a3f3cf65925bf1f4a13c5d"
        "15b21e1884f5ff6247aeabb786b93bce61bc17d768fd973245901814" + "8f6cbe722fd04796562dfdb4"
    )
    head, high, iv = h("0000432100000000"), h("87654321"), h("4956ed7e3b244cfe")
    assert suite.seal(head, high, iv, plain) == sealed
    assert suite.open(head, high, iv, sealed) == plain


def test_chacha20_as_published() -> None:
    """RFC 7634, appendix A."""
    suite = suite_of(Aead.CHACHA20_POLY1305, bytes(range(0x80, 0xA0)), 0, b"", h("a0a1a2a3"))
    plain = h(
        "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec1000073627"
        "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637"
        "01020204"
    )
    sealed = h(
        "24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c614ee8099d52844eb61aa95dfab4c02f7"
        "2aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da9165b82829f641e0"
        "76aaa8266b7fb0f7b11b369907e1ad43"
    )
    assert suite.seal(h("0102030400000005"), b"", h("1011121314151617"), plain) == sealed


def test_cbc_as_published() -> None:
    """RFC 3602, case 5: the ESP packet of a ping in transport mode."""
    plain = h("08000ebda70a00008e9c083db95b0700") + bytes(range(8, 0x38)) + bytes(range(1, 0xF)) + h("0e01")
    cipher = AesCbc(h("90d382b410eeba7ad938c46cec1a82bf"))
    iv = h("e96e8c08ab465763fd098d45dd3ff893")
    sealed = h(
        "f663c25d325c18c6a9453e194e120849a4870b66cc6b9965330013b4898dc856a4699e523a55db080b59ec3a8e4b7e52"
        "775b07d1db34ed9c538ab50c551b874aa269add047ad2d5913ac19b7cfbad4a6"
    )
    assert cipher.encrypt(iv, plain) == sealed
    assert cipher.decrypt(iv, sealed) == plain


def test_ctr_as_published() -> None:
    """RFC 3686, vector 1."""
    cipher = AesCtr(h("ae6852f8121067cc4bf7a5765577f39e"), h("00000030"))
    assert cipher.encrypt(bytes(8), b"Single block msg") == h("e4095d4fb7a7b3792d6175a3261311b8")


def test_a_packet_with_null_encryption_byte_by_byte() -> None:
    sender, _ = both(parameters("null", options=int(IpsecOption.UDP_ENCAP), udp_ports=(4500, 4501)))
    made = there(sender, ethernet(ip(17, udp(b"hello"))))
    assert made[14 + 9] == 17
    assert made[34:42] == struct.pack(">HHHH", 4500, 4501, 8 + 8 + 16 + 12, 0)
    assert made[42:50] == struct.pack(">II", 0x1000, 1)
    # 13 bytes, one of padding, its length, the protocol.
    assert made[50:66] == udp(b"hello") + b"\1\1\x11"
    assert len(made) == 66 + 12
    assert words_sum(made[14:34]) == 0xFFFF


# There and back


@pytest.mark.parametrize("suite", SUITES)
@settings(deadline=None, max_examples=25)
@given(
    payload=st.binary(max_size=300),
    inner=st.sampled_from([4, 6]),
    outer=st.sampled_from([0, 4, 6]),
    vlan=st.sampled_from([None, 5]),
    options=st.integers(0, 3),
)
def test_any_packet_comes_back(
    suite: str, payload: bytes, inner: int, outer: int, vlan: int | None, options: int
) -> None:
    sender, receiver = both(parameters(suite, outer, options=options, udp_ports=(4500, 4500), replay_window=64))
    frame = frame_of(payload, version=inner, vlan=vlan)
    for _ in range(2):
        made = there(sender, frame)
        assert made != frame
        assert len(made) <= len(frame) + expansion(sender.values)
        assert suite == "null" or frame[-20:] not in made
        network = network_of(made)
        assert network is not None
        assert network.version == (outer or inner)
        assert network.end == len(made)
        # A wire pads short frames, and may pad any.
        assert back(receiver, made + bytes(9)) == frame
    assert (sender.packets, sender.octets) == (receiver.packets, receiver.octets)


def test_header_that_stay_outside() -> None:
    """Hop-by-hop options are for every router; they stay in front of ESP, and so they come back."""
    options = bytes([17, 0]) + bytes(6)
    body = udp(b"payload", V6)
    frame = ethernet(ip(0, options + body, V6))
    sender, receiver = both(parameters())
    made = there(sender, frame)
    assert made[14 + 6] == 0
    assert made[54:62] == bytes([50, 0]) + bytes(6)
    assert back(receiver, made) == frame


def test_the_outer_header_takes_what_it_is_told_to() -> None:
    options = IpsecOption.COPY_DSCP | IpsecOption.COPY_DF | IpsecOption.ECN | IpsecOption.DEC_TTL
    inner = bytearray(ip(17, udp(b"x")))
    inner[1] = 0x2E << 2 | 1
    inner[6] = 0x40
    inner[10:12] = bytes(2)
    inner[10:12] = struct.pack(">H", ~words_sum(bytes(inner[:20])) & 0xFFFF)
    frame = ethernet(bytes(inner))
    plain, told = both(parameters("null", 4))[0], both(parameters("null", 4, options=int(options)))[0]
    made = there(plain, frame)
    assert (made[15], made[20] & 0x40, made[22]) == (5 << 2, 0, 9)
    assert made[26:34] == bytes([192, 0, 2, 1, 192, 0, 2, 2])
    assert made[42:62] == frame[14:34]
    made = there(told, frame)
    assert (made[15], made[20] & 0x40, made[22]) == (0x2E << 2 | 1, 0x40, 9)
    assert made[42 + 8] == 63
    assert words_sum(made[42:62]) == words_sum(made[14:34]) == 0xFFFF
    six = there(both(parameters("null", 6, options=int(options)))[0], frame)
    assert struct.unpack_from(">I", six, 14)[0] == 6 << 28 | (0x2E << 2 | 1) << 20 | 0x12345
    assert six[20:22] == bytes([50, 9])
    assert six[22:54] == V6[1] + V6[0]
    dead = bytearray(frame)
    dead[22] = 1
    with pytest.raises(IpsecFailed):
        there(told, bytes(dead))


@pytest.mark.parametrize("version", [4, 6])
def test_congestion_in_the_tunnel_is_told(version: int) -> None:
    def marked(frame: bytes) -> bytes:
        made = bytearray(frame)
        made[15] |= 3
        made[24:26] = bytes(2)
        made[24:26] = struct.pack(">H", ~words_sum(bytes(made[14:34])) & 0xFFFF)
        return bytes(made)

    addresses = V4 if version == 4 else V6
    body = bytearray(ip(17, udp(b"x", addresses), addresses))
    sender, receiver = both(parameters("gcm", 4, options=int(IpsecOption.ECN)))
    with pytest.raises(IpsecFailed):
        back(receiver, marked(there(sender, ethernet(bytes(body)))))
    body[1] |= 2 if version == 4 else 0x20
    if version == 4:
        body[10:12] = bytes(2)
        body[10:12] = struct.pack(">H", ~words_sum(bytes(body[:20])) & 0xFFFF)
    found = back(receiver, marked(there(sender, ethernet(bytes(body)))))
    assert found[15] & (3 if version == 4 else 0x30) == (3 if version == 4 else 0x30)
    assert checksums_hold(found)


# What fails


@settings(deadline=None)
@given(
    suite=st.sampled_from(sorted(SUITES)),
    outer=st.sampled_from([0, 4, 6]),
    at=st.integers(0, 1000),
    bit=st.integers(0, 7),
)
def test_no_bit_of_what_is_protected_can_be_changed(suite: str, outer: int, at: int, bit: int) -> None:
    sender, receiver = both(parameters(suite, outer, options=int(IpsecOption.ESN)))
    made = bytearray(there(sender, frame_of(b"payload")))
    start = 14 + (40 if outer == 6 else 20)
    made[start + at % (len(made) - start)] ^= 1 << bit
    # An SPI is how the association is found: another one would not be asked.
    with pytest.raises((IpsecFailed, AssertionError)):
        back(receiver, bytes(made))
    assert receiver.packets == 0


@given(data=st.binary(max_size=80), protocol=st.sampled_from([50, 17]), outer=st.sampled_from([0, 4]))
def test_no_bytes_are_taken_for_a_packet(data: bytes, protocol: int, outer: int) -> None:
    _, receiver = both(parameters("cbc", outer))
    frame = ethernet(ip(protocol, data))
    network = network_of(frame)
    sealed = find_esp(frame, network)
    if sealed is not None:
        assert network is not None
        with pytest.raises(IpsecFailed):
            unprotect(receiver, frame, network, sealed)


@pytest.mark.parametrize(
    "plain",
    [bytes([4, 50]), b"\0\0\0\4", bytes(13) + b"\1\0\x29", bytes(20) + b"\1\2\2\4", bytes(5) + b"\1\1\x11"],
    ids=["padding beyond", "no packet", "half a header", "version 0", "other protocol"],
)
def test_what_a_peer_with_the_key_may_not_send(plain: bytes) -> None:
    sender, receiver = both(parameters("null", 4))
    head = struct.pack(">II", 0x1000, 1)
    plain = plain.rjust(-(-len(plain) // 4) * 4, b"\0")
    frame = ethernet(ip(50, head + sender.suite.seal(head, b"", b"", plain)))
    with pytest.raises(IpsecFailed):
        back(receiver, frame)
    assert receiver.packets == 0


def test_what_cannot_be_protected() -> None:
    sender, _ = both(parameters("gcm"))
    fragment = bytearray(frame_of(b"x"))
    fragment[20] |= 0x20
    for frame in (b"\xff" * 60, bytes(fragment), ethernet(ip(17, bytes(65500)))):
        with pytest.raises(IpsecFailed):
            there(sender, frame)
    assert (sender.sequence, sender.packets) == (0, 0)


def test_encapsulation_is_as_agreed() -> None:
    options = int(IpsecOption.UDP_ENCAP)
    sender, receiver = both(parameters(options=options, udp_ports=(4500, 4500)))
    other = both(parameters())[1]
    elsewhere = both(parameters(options=options, udp_ports=(4500, 4501)))[1]
    made = there(sender, frame_of(b"x"))
    for wrong in (other, elsewhere):
        with pytest.raises(IpsecFailed):
            back(wrong, made)
    # A translator of addresses has been at work.
    assert back(receiver, made[:34] + b"\x12\x34" + made[36:]) == frame_of(b"x")


def test_sequence_numbers_end() -> None:
    for options, last in ((0, (1 << 32) - 1), (int(IpsecOption.ESN), (1 << 64) - 1)):
        sender, _ = both(parameters(options=options))
        sender.sequence = last - 1
        there(sender, frame_of(b"x"))
        with pytest.raises(IpsecFailed):
            there(sender, frame_of(b"x"))


@pytest.mark.parametrize("unit", ["packets", "bytes"])
def test_lifetimes(unit: str) -> None:
    frame = frame_of(b"x" * 60)
    size = len(frame) - 34 if unit == "bytes" else 1
    life = {f"{unit}_soft_limit": 2 * size, f"{unit}_hard_limit": 3 * size}
    sender, receiver = both(parameters(options=int(IpsecOption.SA_LIFETIME), lifetime=life))
    told = []
    for _ in range(3):
        assert back(receiver, there(sender, frame)) == frame
        told.append((sender.expiring, receiver.expiring))
    assert told == [(False, False), (True, True), (True, True)]
    with pytest.raises(IpsecFailed):
        there(sender, frame)
    # Without the option, limits are not meant.
    sender, receiver = both(parameters(lifetime=life))
    for _ in range(5):
        assert back(receiver, there(sender, frame)) == frame
    assert not sender.expiring


# Replay


numbers = st.lists(st.integers(1, 60) | st.integers(1, 10_000), max_size=60)


@given(size=st.sampled_from([0, 1, 2, 32, 64, 100, MAX_WINDOW]), order=numbers)
def test_the_window_is_a_set_of_the_last(size: int, order: list[int]) -> None:
    window, seen, top = ReplayWindow(size), set[int](), 0
    for number in order:
        expected = not size or (number > top - size and number not in seen)
        assert window.admits(number) == expected
        if expected:
            window.accept(number)
            seen.add(number)
            top = max(top, number)
    assert window.top == top
    assert not window.admits(0)


@given(
    size=st.sampled_from([0, 64, 100]),
    top=st.integers(1, (1 << 40)) | st.integers((1 << 32) - 200, (1 << 32) + 200),
    step=st.integers(-60, 1 << 31),
)
def test_half_a_number_is_enough(size: int, top: int, step: int) -> None:
    """RFC 4303, A2: a packet that is in the window, or less than 2^31 ahead of it, has the number that was meant."""
    window = ReplayWindow(size, extended=True)
    window.accept(top)
    number = top + step
    if number > 0:
        assert window.number(number & 0xFFFFFFFF) == number


def test_extended_numbers_over_the_wrap() -> None:
    sender, receiver = both(parameters(options=int(IpsecOption.ESN), replay_window=64))
    sender.sequence = receiver.window.top = (1 << 32) - 3
    made = [there(sender, frame_of(bytes([n]))) for n in range(6)]
    for n in (3, 0, 5, 1, 4, 2):
        assert back(receiver, made[n]) == frame_of(bytes([n]))
        with pytest.raises(IpsecFailed):
            back(receiver, made[n])


# What can be had


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": KEY[:15]},
        {"cipher": 2},
        {"authentication": Mac.HMAC_SHA1, "authentication_key": b"short", "cipher": Cipher.NONE, "key": b""},
        {"authentication": Mac.HMAC_SHA1, "authentication_key": MAC_KEY[:20], "cipher": 1},
        {"authentication": 1, "authentication_key": MAC_KEY[:16], "cipher": Cipher.NONE, "key": b""},
        {"cipher": Cipher.NONE, "key": b""},
    ],
)
def test_suites_that_there_are_not(wrong: dict[str, Any]) -> None:
    values: dict[str, Any] = {
        "cipher": Aead.GCM,
        "key": KEY[:16],
        "authentication": 0,
        "authentication_key": b"",
    } | wrong
    with pytest.raises(UsageError):
        suite_of(values["cipher"], values["key"], values["authentication"], values["authentication_key"], bytes(4))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Callable[[str], None] = lambda name: None  # noqa: E731
    monkeypatch.setattr(ciphers, "find_spec", missing)
    assert (ciphers.cipher_mask(), ciphers.aead_mask()) == (1, 0)
    assert suite_of(0, b"", Mac.HMAC_SHA_256, MAC_KEY, bytes(4)).icv == 16
    for cipher, mac in ((Aead.GCM, 0), (Cipher.AES_CBC, Mac.HMAC_SHA_256)):
        with pytest.raises(UsageError):
            suite_of(cipher, KEY, mac, MAC_KEY if mac else b"", bytes(4))


def test_a_header_told_is_found_behind_two_tags() -> None:
    frame = frame_of(b"x")
    tagged = frame[:12] + h("88a80001") + h("81000002") + frame[12:]
    sender, receiver = both(parameters())
    with pytest.raises(IpsecFailed):
        there(sender, tagged)
    made = protect(sender, tagged, network_at(tagged, 22))
    assert made[:22] == tagged[:22]
    assert back(receiver, made[:12] + made[20:]) == frame
