"""A driver's interrupts over PCI: messages by MSI-X where the device has enough vectors, else the line (4.1.5.1.2)."""

from __future__ import annotations

from typing import Final, Protocol

from virtio_py.access import RegisterAccess
from virtio_py.pci.bus import Address, Message
from virtio_py.pci.capabilities import CapabilityId, pci_msix, pci_msix_table_entry
from virtio_py.pci.decode import Capability
from virtio_py.pci.enumeration import FoundFunction
from virtio_py.pci.walk import Function

ENOUGH: Final = 2
"""Vectors below which the line serves better: one tells nothing of why it fires."""

_DWORD: Final = 4


class Interrupts(Protocol):
    """Where a machine's interrupts arrive; raised: the functions whose line is up."""

    raised: set[Address]

    def allocate(self) -> Message:
        """A message that no other vector has."""

    def take(self, message: Message) -> bool:
        """Whether the message has come since this was last asked."""


class MsixVectors:
    """A function's MSI-X vectors, of which `count` are in use. One thread at a time may call."""

    def __init__(self, found: FoundFunction, capability: Capability, interrupts: Interrupts) -> None:
        self._config = found.config
        self._at = capability.offset + pci_msix.offset("message_control")
        self._interrupts = interrupts
        self._offset = capability.fields["table"]["offset"]
        self._table: RegisterAccess = found.bar(capability.fields["table"]["bir"])
        self._messages: list[Message] = []
        self.size: int = capability.fields["message_control"]["table_size"] + 1

    @property
    def count(self) -> int:
        """How many vectors are in use."""
        return len(self._messages)

    def enable(self, count: int) -> None:
        """Gives `count` vectors a message each, at most the table's size, and switches MSI-X on."""
        self._control(enable=1, function_mask=1)
        while len(self._messages) < min(count, self.size):
            self._messages.append(self._interrupts.allocate())
        for vector, message in enumerate(self._messages):
            self._store(vector, message)
        self._control(enable=1, function_mask=0)

    def _store(self, vector: int, message: Message) -> None:
        entry = pci_msix_table_entry.encode(message_address=message.address, message_data=message.data)
        for at in range(0, len(entry), _DWORD):
            place = self._offset + vector * pci_msix_table_entry.size + at
            self._table.write(place, int.from_bytes(entry[at : at + _DWORD], "little"), _DWORD)

    def disable(self) -> None:
        """Switches MSI-X off: the function has its line again."""
        self._control(enable=0, function_mask=0)
        self._messages = []

    def _control(self, **bits: int) -> None:
        register = pci_msix.register("message_control")
        before = register.split(self._config.read(self._at, 2))
        self._config.write(self._at, register.join(before._replace(**bits)), 2)

    def taken(self) -> list[int]:
        """The vectors whose messages have come since this was last asked."""
        return [vector for vector, message in enumerate(self._messages) if self._interrupts.take(message)]


def find_vectors(found: FoundFunction, function: Function, interrupts: Interrupts) -> MsixVectors | None:
    """The function's MSI-X vectors; None where there are not enough, or their table lies in no BAR."""
    for capability in function.find(CapabilityId.MSI_X):
        if capability.fields.get("table", {}).get("bir") in found.bars:
            vectors = MsixVectors(found, capability, interrupts)
            return vectors if vectors.size >= ENOUGH else None
    return None
