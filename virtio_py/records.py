"""Records: everything one needs to know of a structure, derived from its one declaration in construct.

A layout is declared once, as a `construct.Struct` under the specification's C name. `Record` derives from it each
field's offset, the size, a numpy dtype and a codec on `struct` (construct's own parser takes some hundred times
longer; it stays the oracle that a property test holds the codec against).

    virtq_desc = Record("virtq_desc", Struct("addr" / Int64ul, "len" / Int32ul, "flags" / Int16ul, "next" / Int16ul))
    virtq_desc.size                               # 16
    virtq_desc.offset("flags")                    # 12
    virtq_desc.encode(addr=0x1000, len=512)       # 16 bytes; a field that is not given is 0
    virtq_desc.decode(data).addr                  # 0x1000
    virtq_desc.violations(virtq_desc.decode(data))

Encoding takes any value that the field's bits can hold, wrong ones too: tests and fuzzers need them. Whether the
specification allows a value is a separate question, asked with `violations` or `validate`, which name the clause.
"""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import construct
from attrs import frozen

from virtio_py.errors import LayoutError, PeerError, UsageError
from virtio_py.values import FieldValue

if TYPE_CHECKING:
    import numpy as np

Buffer = bytes | bytearray | memoryview


class Register(construct.Adapter):  # type: ignore[misc]  # construct ships no types
    """An integer whose bits have names, given from bit 0 upwards with widths: `Register(Int16ul, nfd=1, version=15)`.

    Decodes to a named tuple of the fields and encodes from a mapping, a named tuple, or the whole integer.
    """

    def __init__(self, word: Any, /, **widths: int) -> None:
        super().__init__(word)
        size = word.sizeof()
        if sum(widths.values()) != 8 * size:
            raise UsageError(f"the fields of a register of {size} bytes must fill {8 * size} bits")
        self.shifts: dict[str, tuple[int, int]] = {}
        shift = 0
        for name, width in widths.items():
            self.shifts[name] = (shift, (1 << width) - 1)
            shift += width
        self.make: Callable[..., Any] = namedtuple("Register", list(widths))  # type: ignore[misc]

    def split(self, word: int) -> Any:
        """The fields of `word` as a named tuple."""
        return self.make(*(word >> shift & mask for shift, mask in self.shifts.values()))

    def join(self, value: Any) -> int:
        """The whole integer; raises LayoutError for a field that is unknown or too wide."""
        if isinstance(value, int):
            return value
        word = 0
        for name, part in _items(value):
            if name not in self.shifts:
                raise LayoutError(f"the register has no field {name!r}, only {', '.join(self.shifts)}")
            shift, mask = self.shifts[name]
            if not 0 <= part <= mask:
                raise LayoutError(f"{name} = {part} does not fit its {mask.bit_length()} bits")
            word |= part << shift
        return word

    def _decode(self, obj: int, context: object, path: object) -> Any:
        return self.split(obj)

    def _encode(self, obj: Any, context: object, path: object) -> int:
        return self.join(obj)


class Rule(NamedTuple):
    """One thing the specification says of a record's values: the clause, the field, a test, and what it means."""

    clause: str
    field: str
    holds: Callable[[Any], bool]
    meaning: str


class Violation(NamedTuple):
    """A rule that a record's values break."""

    clause: str
    field: str
    message: str


@frozen(eq=False)
class Field:
    """One field of a record: where it lies, what it is, and its codec.

    offset, size: bytes; kind: "int", "bytes", "register", "record" or "array"; dtype: a numpy format or its recipe.
    """

    name: str
    offset: int
    size: int
    kind: str
    dtype: Any
    decode: Callable[[Buffer, int], Any]
    encode: Callable[[Any], bytes]
    zero: Any
    nested: Record | None = None
    register: Register | None = None
    item: Field | None = None


class Record:
    """One structure of the specification. All public attributes are derived from `layout`.

    name: the specification's C name; cite: where it is declared; layout: the construct declaration;
    rules: what the specification demands of its values; value_type: the named tuple that `decode` returns.
    Raises UsageError for a construct that it cannot derive from.
    """

    def __init__(self, name: str, layout: Any, *, cite: str = "", rules: Iterable[Rule] = ()) -> None:
        self.name: Final = name
        self.layout: Final = layout
        self.cite: Final = cite
        self.rules: Final = tuple(rules)
        self.fields: Final[Mapping[str, Field]] = dict(_derive_fields(layout))
        self.size: Final[int] = sum(f.size for f in self.fields.values())
        self.value_type: Final[type[Any]] = _value_type(name, self.fields.values())
        self._make: Callable[..., Any] = self.value_type
        self._flat: Final = _flat_codec(layout) if all(f.kind == "int" for f in self.fields.values()) else None

    @property
    def codec(self) -> struct.Struct:
        """The one struct codec of a record of plain integers. Raises UsageError for any other record."""
        if self._flat is None:
            raise UsageError(f"{self.name} is not made of plain integers of one byte order")
        return self._flat

    def __repr__(self) -> str:
        return f"<Record {self.name}: {self.size} bytes, {', '.join(self.fields)}>"

    def field(self, path: str) -> Field:
        """The field at a dotted path; its offset is relative to the innermost record. Raises LayoutError."""
        name, _, rest = path.partition(".")
        if name not in self.fields:
            raise LayoutError(f"{self.name} has no field {name!r}, only {', '.join(self.fields)}")
        found = self.fields[name]
        if not rest:
            return found
        if found.nested is None:
            raise LayoutError(f"{self.name}.{name} has no fields of its own")
        return found.nested.field(rest)

    def offset(self, path: str) -> int:
        """The offset in bytes of the field at a dotted path, from the start of this record."""
        name, _, rest = path.partition(".")
        found = self.field(name)
        if not rest:
            return found.offset
        if found.nested is None:
            raise LayoutError(f"{self.name}.{name} has no fields of its own")
        return found.offset + found.nested.offset(rest)

    def end(self, path: str) -> int:
        """The offset in bytes of the first byte behind the field at a dotted path."""
        return self.offset(path) + self.field(path).size

    def register(self, path: str) -> Register:
        """The register declared at a dotted path, for its fields' shifts and masks. Raises LayoutError."""
        found = self.field(path).register
        if found is None:
            raise LayoutError(f"{self.name}.{path} is no register")
        return found

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype, with this record's offsets and byte order."""
        import numpy

        made: np.dtype[Any] = numpy.dtype(_dtype_recipe(self))
        return made

    def decode(self, buffer: Buffer, offset: int = 0) -> Any:
        """The values at `offset` as a named tuple. Raises LayoutError when the buffer is too short."""
        if offset < 0 or len(buffer) - offset < self.size:
            raise LayoutError(f"{self.name} takes {self.size} bytes, {max(len(buffer) - offset, 0)} are here")
        if self._flat is not None:
            return self._make(*self._flat.unpack_from(buffer, offset))
        return self._make(*(f.decode(buffer, offset + f.offset) for f in self.fields.values()))

    def decode_available(self, buffer: Buffer, offset: int = 0) -> dict[str, Any]:
        """Those fields that lie wholly inside the buffer: for structures that an older peer makes shorter."""
        here = len(buffer) - offset
        return {f.name: f.decode(buffer, offset + f.offset) for f in self.fields.values() if f.offset + f.size <= here}

    def encode(self, **values: Any) -> bytes:
        """The bytes; fields not given are zero. Raises LayoutError for an unknown field or one that does not fit."""
        if unknown := values.keys() - self.fields.keys():
            raise LayoutError(f"{self.name} has no field {', '.join(sorted(unknown))}, only {', '.join(self.fields)}")
        return b"".join(self._encode_field(f, values) for f in self.fields.values())

    def _encode_field(self, field: Field, values: Mapping[str, Any]) -> bytes:
        if field.name not in values:
            return bytes(field.size)
        try:
            return field.encode(values[field.name])
        except (struct.error, OverflowError, TypeError, ValueError, LayoutError) as error:
            shown = f"{values[field.name]!r:.60}"
            raise LayoutError(f"{self.name}.{field.name} = {shown} does not fit: {error}") from error

    def encode_values(self, values: Any) -> bytes:
        """The bytes of a named tuple or a mapping, such as `decode` and `as_dict` return."""
        return self.encode(**dict(_items(values)))

    def as_dict(self, values: Any) -> dict[str, Any]:
        """Nested dicts and lists of the values, bytes as hexadecimal text: what JSON can carry."""
        return {name: _plain(value) for name, value in _items(values)}

    def violations(self, values: Any) -> list[Violation]:
        """The rules that these values break, in the order of declaration."""
        return [Violation(r.clause, r.field, r.meaning) for r in self.rules if not r.holds(values)]

    def validate(self, values: Any, error: type[PeerError] = PeerError) -> None:
        """Raises `error` for the first rule that these values break, naming its clause and field."""
        for found in self.violations(values):
            raise error(found.message, clause=found.clause, where=f"{self.name}.{found.field}")


class RecordFamily:
    """A structure whose layout depends on a number, such as the queue size: `virtq_avail(256)` is a Record."""

    def __init__(self, name: str, declare: Callable[[int], Any], *, cite: str = "") -> None:
        self.name: Final = name
        self.cite: Final = cite
        self._declare = declare
        self._made: dict[int, Record] = {}

    def __call__(self, count: int) -> Record:
        if count not in self._made:
            self._made[count] = Record(self.name, self._declare(count), cite=self.cite)
        return self._made[count]


def _value_type(name: str, fields: Iterable[Field]) -> type[Any]:
    """The named tuple of a record, annotated for `from_type`."""
    hints = {field.name: FieldValue[field] for field in fields}  # type: ignore[misc]  # a field is no type, and need not be
    made: type[Any] = namedtuple(name, list(hints))  # type: ignore[misc]  # the names are known only here
    made.__annotations__ = hints
    return made


def _items(values: Any) -> Iterator[tuple[str, Any]]:
    mapping = values._asdict() if hasattr(values, "_asdict") else values
    if not isinstance(mapping, Mapping):
        raise LayoutError(f"fields are wanted, not {values!r:.60}")
    return iter(mapping.items())


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict") or isinstance(value, dict):
        return {name: _plain(inner) for name, inner in _items(value)}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    return [_plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value


def _flat_codec(layout: Any) -> struct.Struct | None:
    formats = [_bare(part)[1] for part in layout.subcons]
    if not all(isinstance(c, construct.FormatField) for c in formats):
        return None
    orders = {c.fmtstr[0] for c in formats}
    return struct.Struct(orders.pop() + "".join(c.fmtstr[1:] for c in formats)) if len(orders) == 1 else None


def _bare(part: Any) -> tuple[str | None, Any]:
    """A subconstruct without its name."""
    name = None
    while isinstance(part, construct.Renamed):
        name = name or part.name
        part = part.subcon
    return name, part


def _derive_fields(layout: Any) -> Iterator[tuple[str, Field]]:
    if not isinstance(layout, construct.Struct):
        raise UsageError("a record is declared as a construct.Struct")
    offset = 0
    for part in layout.subcons:
        name, bare = _bare(part)
        if name is None:
            raise UsageError("every field of a record has a name")
        field = _derive(name, offset, bare)
        offset += field.size
        yield name, field


def _derive(name: str, offset: int, part: Any) -> Field:
    for kind, build in _BUILDERS.items():
        if isinstance(part, kind):
            return build(name, offset, part)
    raise UsageError(f"{name}: a record cannot be derived from {type(part).__name__}")


def _integer(name: str, offset: int, part: Any) -> Field:
    # The length decides, not fmtstr: numpy reads "<L" as 8 bytes.
    codec = struct.Struct(part.fmtstr)
    order, letter = part.fmtstr[0], part.fmtstr[1]
    dtype = f"{order}{'i' if letter.islower() else 'u'}{codec.size}"
    return Field(name, offset, codec.size, "int", dtype, lambda b, at: codec.unpack_from(b, at)[0], codec.pack, 0)


def _odd_integer(name: str, offset: int, part: Any) -> Field:
    size: int = part.sizeof()
    order: Any = "little" if part.swapped else "big"
    return Field(
        name,
        offset,
        size,
        "int",
        f"V{size}",
        lambda b, at: int.from_bytes(b[at : at + size], order),
        lambda value: int(value).to_bytes(size, order),
        0,
    )


def _bytes(name: str, offset: int, part: Any) -> Field:
    size: int = part.sizeof()

    def encode(value: Any) -> bytes:
        if isinstance(value, int):
            raise TypeError(f"{size} bytes are wanted, not a number")
        data = bytes.fromhex(value) if isinstance(value, str) else bytes(value)
        if len(data) != size:
            raise ValueError(f"{size} bytes are wanted")
        return data

    return Field(name, offset, size, "bytes", f"V{size}", lambda b, at: bytes(b[at : at + size]), encode, bytes(size))


def _register(name: str, offset: int, part: Register) -> Field:
    word = _derive(name, offset, part.subcon)
    return Field(
        name,
        offset,
        word.size,
        "register",
        word.dtype,
        lambda b, at: part.split(word.decode(b, at)),
        lambda value: word.encode(part.join(value)),
        part.split(0),
        register=part,
    )


def _record(name: str, offset: int, part: Any) -> Field:
    inner = Record(name, part)
    return Field(
        name,
        offset,
        inner.size,
        "record",
        inner,
        inner.decode,
        inner.encode_values,
        inner.decode(bytes(inner.size)),
        nested=inner,
    )


def _array(name: str, offset: int, part: Any) -> Field:
    count: int = part.count
    item = _derive(name, 0, part.subcon)

    def encode(values: Any) -> bytes:
        if len(values) != count:
            raise ValueError(f"{count} values are wanted, not {len(values)}")
        return b"".join(map(item.encode, values))

    def decode(buffer: Buffer, at: int) -> Any:
        return tuple(item.decode(buffer, at + i * item.size) for i in range(count))

    zero = (item.zero,) * count
    return Field(name, offset, count * item.size, "array", (item, count), decode, encode, zero, item=item)


_BUILDERS: dict[type, Callable[[str, int, Any], Field]] = {
    Register: _register,
    construct.FormatField: _integer,
    construct.BytesInteger: _odd_integer,
    construct.Bytes: _bytes,
    construct.Array: _array,
    construct.Struct: _record,
}


def _dtype_recipe(record: Record) -> Any:
    return {
        "names": list(record.fields),
        "formats": [_dtype_format(f) for f in record.fields.values()],
        "offsets": [f.offset for f in record.fields.values()],
        "itemsize": record.size,
    }


def _dtype_format(field: Field) -> Any:
    if field.kind == "record":
        return _dtype_recipe(field.dtype)
    if field.kind == "array":
        item, count = field.dtype
        return (_dtype_format(item), (count,))
    return field.dtype
