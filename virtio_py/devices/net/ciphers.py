"""What IPsec encrypts and authenticates with: the algorithms of a security association, under the crypto device's
numbers (5.9.3), as the protocol uses them.

    VIRTIO_CRYPTO_AEAD_GCM                 AES-GCM-ESP, 16 bytes of integrity (RFC 4106)
    VIRTIO_CRYPTO_AEAD_CHACHA20_POLY1305   (RFC 7634)
    VIRTIO_CRYPTO_CIPHER_AES_CBC, _CTR     with an HMAC (RFC 3602, RFC 3686)
    no cipher                              NULL encryption, with an HMAC (RFC 2410)
    VIRTIO_CRYPTO_MAC_HMAC_SHA1, _SHA_256  12 and 16 bytes of integrity (RFC 2404, RFC 4868)

A security association has one number for its cipher, and no word for which of two tables it is from: where there is no
authentication algorithm beside it, it is an AEAD's, since nothing else would protect the packet.

AES and ChaCha20 come from the package `cryptography` (the extra `ipsec`). Without it, NULL with an HMAC is left.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from enum import IntEnum
from importlib.util import find_spec
from typing import Any, Final, Protocol

from attrs import field, frozen

from virtio_py.errors import UsageError
from virtio_py.spec import mask


class Cipher(IntEnum):
    """VIRTIO_CRYPTO_CIPHER_*, of those that are implemented."""

    NONE = 0
    AES_CBC = 3
    AES_CTR = 4


class Mac(IntEnum):
    """VIRTIO_CRYPTO_MAC_*, of those that are implemented."""

    HMAC_SHA1 = 2
    HMAC_SHA_256 = 4


class Aead(IntEnum):
    """VIRTIO_CRYPTO_AEAD_*, of those that are implemented."""

    GCM = 1
    CHACHA20_POLY1305 = 3


AES_BLOCK: Final = 16
_AES_KEYS: Final = (16, 24, 32)
_COUNTER_IV: Final = 8
_AEAD_ICV: Final = 16
MAX_IV: Final = 16
MAX_ALIGN: Final = 16
MAX_ICV: Final = 16
"""The most, in bytes, that any of the algorithms asks for."""


class Suite(Protocol):
    """The algorithms of one association, with their keys.

    align: bytes of which the plaintext must be a multiple;  iv, icv: bytes in front of the ciphertext and behind it

    `head` is what stands in front of it and is authenticated only, `high` the half of the sequence number that is
    authenticated and not sent, empty without extended sequence numbers.
    """

    @property
    def align(self) -> int: ...
    @property
    def iv(self) -> int: ...
    @property
    def icv(self) -> int: ...

    def make_iv(self, number: int) -> bytes:
        """An initialisation vector from a number that is used once."""

    def seal(self, head: bytes, high: bytes, iv: bytes, plain: bytes) -> bytes:
        """Ciphertext and integrity check value."""

    def open(self, head: bytes, high: bytes, iv: bytes, sealed: bytes) -> bytes | None:
        """The plaintext, or None if the packet is not genuine. `sealed` is at least `icv` bytes."""


def available() -> bool:
    """Whether the package `cryptography` is here."""
    return find_spec("cryptography") is not None


def cipher_mask() -> int:
    """The ciphers that can be had, a mask."""
    return mask(*Cipher) if available() else mask(Cipher.NONE)


def mac_mask() -> int:
    """The authentication algorithms that can be had, a mask."""
    return mask(*Mac)


def aead_mask() -> int:
    """The combined algorithms that can be had, a mask."""
    return mask(*Aead) if available() else 0


# Combined


@frozen
class AeadSuite:
    """An algorithm that encrypts and authenticates at once; its nonce is the salt and an IV of 8 bytes."""

    salt: bytes
    _algorithm: Any = field(alias="algorithm")
    align: int = 4
    iv: int = _COUNTER_IV
    icv: int = _AEAD_ICV

    def make_iv(self, number: int) -> bytes:
        """The number itself: unique is all that it has to be."""
        return number.to_bytes(self.iv, "big")

    def _covered(self, head: bytes, high: bytes) -> bytes:
        # SPI, then the whole sequence number, its upper half first.
        return head[:4] + high + head[4:]

    def seal(self, head: bytes, high: bytes, iv: bytes, plain: bytes) -> bytes:
        """See `Suite`."""
        sealed: bytes = self._algorithm.encrypt(self.salt + iv, plain, self._covered(head, high))
        return sealed

    def open(self, head: bytes, high: bytes, iv: bytes, sealed: bytes) -> bytes | None:
        """See `Suite`."""
        from cryptography.exceptions import InvalidTag

        try:
            plain: bytes = self._algorithm.decrypt(self.salt + iv, sealed, self._covered(head, high))
        except InvalidTag:
            return None
        return plain


def _gcm(key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _chacha20_poly1305(key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(key)


_AEADS: Final[Mapping[int, tuple[tuple[int, ...], Callable[[bytes], Any]]]] = {
    Aead.GCM: (_AES_KEYS, _gcm),
    Aead.CHACHA20_POLY1305: ((32,), _chacha20_poly1305),
}
"""Bytes that a key may have, and what makes the algorithm of one."""


# A cipher, and authentication beside it


class CipherMode(Protocol):
    """Encryption alone. align, iv: as in `Suite`."""

    @property
    def align(self) -> int: ...
    @property
    def iv(self) -> int: ...

    def make_iv(self, number: int) -> bytes:
        """As in `Suite`."""

    def encrypt(self, iv: bytes, data: bytes) -> bytes: ...
    def decrypt(self, iv: bytes, data: bytes) -> bytes: ...


@frozen
class NullCipher:
    """What it is given."""

    align: int = 4
    iv: int = 0

    def make_iv(self, number: int) -> bytes:
        """None."""
        return b""

    def encrypt(self, iv: bytes, data: bytes) -> bytes:
        """The data."""
        return data

    decrypt = encrypt


def _aes(key: bytes, mode: Any) -> Any:
    from cryptography.hazmat.primitives.ciphers import Cipher as Engine
    from cryptography.hazmat.primitives.ciphers import algorithms

    return Engine(algorithms.AES(key), mode)


def _run(context: Any, data: bytes) -> bytes:
    return bytes(context.update(data) + context.finalize())


@frozen
class AesCbc:
    """AES in CBC mode."""

    key: bytes
    align: int = AES_BLOCK
    iv: int = AES_BLOCK

    def make_iv(self, number: int) -> bytes:
        """The number, encrypted: nobody without the key can foretell it (SP 800-38A, appendix C)."""
        from cryptography.hazmat.primitives.ciphers.modes import ECB

        return _run(_aes(self.key, ECB()).encryptor(), number.to_bytes(self.iv, "big"))

    def encrypt(self, iv: bytes, data: bytes) -> bytes:
        """Whole blocks."""
        from cryptography.hazmat.primitives.ciphers.modes import CBC

        return _run(_aes(self.key, CBC(iv)).encryptor(), data)

    def decrypt(self, iv: bytes, data: bytes) -> bytes:
        """Whole blocks."""
        from cryptography.hazmat.primitives.ciphers.modes import CBC

        return _run(_aes(self.key, CBC(iv)).decryptor(), data)


@frozen
class AesCtr:
    """AES in counter mode; `salt` is what its specification calls the nonce."""

    key: bytes
    salt: bytes
    align: int = 4
    iv: int = _COUNTER_IV

    def make_iv(self, number: int) -> bytes:
        """The number itself."""
        return number.to_bytes(self.iv, "big")

    def encrypt(self, iv: bytes, data: bytes) -> bytes:
        """Any number of bytes; the same undoes it."""
        from cryptography.hazmat.primitives.ciphers.modes import CTR

        first = self.salt + iv + (1).to_bytes(4, "big")
        return _run(_aes(self.key, CTR(first)).encryptor(), data)

    decrypt = encrypt


@frozen
class MacSuite:
    """A cipher and an HMAC over what it made."""

    cipher: CipherMode
    key: bytes = field(repr=False)
    digest: str
    icv: int

    @property
    def align(self) -> int:
        """As the cipher wants it."""
        return self.cipher.align

    @property
    def iv(self) -> int:
        """As the cipher wants it."""
        return self.cipher.iv

    def make_iv(self, number: int) -> bytes:
        """As the cipher makes it."""
        return self.cipher.make_iv(number)

    def _check_value(self, *parts: bytes) -> bytes:
        return hmac.digest(self.key, b"".join(parts), self.digest)[: self.icv]

    def seal(self, head: bytes, high: bytes, iv: bytes, plain: bytes) -> bytes:
        """See `Suite`."""
        encrypted = self.cipher.encrypt(iv, plain)
        return encrypted + self._check_value(head, iv, encrypted, high)

    def open(self, head: bytes, high: bytes, iv: bytes, sealed: bytes) -> bytes | None:
        """See `Suite`."""
        encrypted, value = sealed[: -self.icv], sealed[-self.icv :]
        if not hmac.compare_digest(value, self._check_value(head, iv, encrypted, high)):
            return None
        # Genuine, yet not whole blocks: only a peer that has the key can send it.
        return self.cipher.decrypt(iv, encrypted) if len(encrypted) % self.align == 0 else None


_CIPHERS: Final[Mapping[int, tuple[tuple[int, ...], Callable[[bytes, bytes], CipherMode]]]] = {
    Cipher.NONE: ((0,), lambda key, salt: NullCipher()),
    Cipher.AES_CBC: (_AES_KEYS, lambda key, salt: AesCbc(key)),
    Cipher.AES_CTR: (_AES_KEYS, AesCtr),
}
_MACS: Final[Mapping[int, tuple[int, str, int]]] = {
    Mac.HMAC_SHA1: (20, "sha1", 12),
    Mac.HMAC_SHA_256: (32, "sha256", 16),
}
"""Bytes of the key, hash, bytes of the integrity check value."""


def suite_of(cipher: int, key: bytes, mac: int, mac_key: bytes, salt: bytes) -> Suite:
    """The algorithms with these numbers and keys; `salt` is 4 bytes. Raises UsageError for what is not to be had."""
    if mac:
        lengths, make = _CIPHERS.get(cipher, ((), None))
        mac_length, digest, icv = _MACS.get(mac, (-1, "", 0))
        if make is None or mac_length < 0 or not cipher_mask() >> cipher & 1:
            raise UsageError(f"cipher {cipher} with authentication {mac} is not to be had")
        _check_key(key, lengths)
        _check_key(mac_key, (mac_length,))
        return MacSuite(make(key, salt), mac_key, digest, icv)
    if cipher not in _AEADS or not available():
        raise UsageError(f"the combined algorithm {cipher} is not to be had")
    lengths, combined = _AEADS[cipher]
    _check_key(key, lengths)
    return AeadSuite(salt, combined(key))


def _check_key(key: bytes, lengths: tuple[int, ...]) -> None:
    if len(key) not in lengths:
        raise UsageError(f"a key of {len(key)} bytes where {' or '.join(map(str, lengths))} are needed")
