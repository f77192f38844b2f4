"""One PCI function as a model: configuration space, BARs, interrupts and resets, as software on the bus meets them.

function = PciFunction(ids, {4: Bar(0x4000, [Region(0, 64, registers)], wide=True)})
function.registers.add_capability(record, values, writable)      before anybody looks
function.registers.read(offset, width)      function.registers.write(offset, value, width)
function.read_bar(index, offset, width)     function.write_bar(index, offset, value, width)

It is a PCI Express function, a Root Complex Integrated Endpoint, or a conventional one, with power management and
function level reset. What software does to it that makes no sense has no effect; reads of nothing are all ones in
configuration space and 0 in a BAR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import define, field

from virtio_py.errors import UsageError
from virtio_py.pci.bars import Bar, Region, bar_register
from virtio_py.pci.capabilities import CapabilityId, pci_advanced_features, pci_msix, pci_power_management
from virtio_py.pci.config_registers import ConfigRegisters
from virtio_py.pci.express import PortType, pci_express
from virtio_py.pci.header import CONFIG_SPACE_MAX, CONVENTIONAL_SIZE, pci_header_type0
from virtio_py.pci.msix import Msix, Send, pba_size, table_size

_D0, _D3HOT = 0, 3
_PIN_A: Final = 1
_EXPRESS_VERSION: Final = 2
_PM_VERSION: Final = 3
_READ_REQUEST_512: Final = 2

_HEADER: Final = {"interrupt_pin": _PIN_A, "status": {"capabilities_list": 1}}
_HEADER_WRITABLE: Final = {
    "command": {
        "io_space": 1,
        "memory_space": 1,
        "bus_master": 1,
        "parity_error_response": 1,
        "serr_enable": 1,
        "interrupt_disable": 1,
    },
    "cache_line_size": 0xFF,
    "interrupt_line": 0xFF,
}
_POWER: Final = {
    "cap_id": CapabilityId.POWER_MANAGEMENT,
    "pmc": {"version": _PM_VERSION},
    "pmcsr": {"no_soft_reset": 1},
}
_EXPRESS: Final = {
    "cap_id": CapabilityId.PCI_EXPRESS,
    "pcie_capabilities": {"version": _EXPRESS_VERSION, "port_type": PortType.ROOT_COMPLEX_ENDPOINT},
    "device_capabilities": {"role_based_error_reporting": 1, "function_level_reset": 1},
    "device_control": {"max_read_request_size": _READ_REQUEST_512, "relaxed_ordering": 1, "no_snoop": 1},
}
_ADVANCED: Final = {
    "cap_id": CapabilityId.ADVANCED_FEATURES,
    "cap_len": pci_advanced_features.size,
    "af_capabilities": {"transactions_pending": 1, "function_level_reset": 1},
}
_EXPRESS_WRITABLE: Final = {
    "device_control": {
        "correctable_error_enable": 1,
        "non_fatal_error_enable": 1,
        "fatal_error_enable": 1,
        "unsupported_request_enable": 1,
        "relaxed_ordering": 1,
        "no_snoop": 1,
        "max_read_request_size": 7,
        "bridge_retry_or_flr": 1,
    }
}


def _nothing() -> None:
    """For a function with nothing to reset behind it."""


def _no_line(level: bool) -> None:
    """For a function that is on no bus."""


def _no_message(address: int, data: int) -> None:
    """For a function that is on no bus."""


@define(eq=False)
class PciFunction:
    """A type 0 function. One thread at a time may call.

    header: values of `pci_header_type0`: ids and class code; bars: by index, a wide one takes two
    express: whether it is a PCI Express function, with 4096 bytes of configuration space, or has 256
    on_reset: called when a function level reset has reset everything here
    interrupt: called with the level of INTx whenever that changes; send: where MSI-X messages go
    silent: BARs read 0 and ignore writes, until a reset
    """

    header: Mapping[str, Any]
    bars: Mapping[int, Bar] = field(factory=dict)
    express: bool = True
    on_reset: Callable[[], None] = _nothing
    interrupt: Callable[[bool], None] = _no_line
    send: Send = _no_message
    registers: ConfigRegisters = field(init=False)
    msix: Msix | None = field(init=False, default=None)
    silent: bool = field(init=False, default=False)
    _msix_at: int = field(init=False, default=0)
    _power: int = field(init=False, default=0)
    _reset_at: int = field(init=False, default=0)
    _pending: bool = field(init=False, default=False)
    _level: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        registers = ConfigRegisters(CONFIG_SPACE_MAX if self.express else CONVENTIONAL_SIZE)
        self.registers = registers
        writable = pci_header_type0.encode(**_HEADER_WRITABLE)
        registers.declare(0, pci_header_type0.encode(**{**_HEADER, **self.header}), writable)
        registers.after_write(pci_header_type0, 0, "command", self._permit)
        for index, bar in self.bars.items():
            bar.check(index)
            if bar.wide and index + 1 in self.bars:
                raise UsageError(f"BAR {index} is 64 bits wide and leaves no BAR {index + 1}")
            registers.declare(bar_register(index), bar.low_bits, bar.address_bits)
        self._power = registers.add_capability(pci_power_management, _POWER, {"pmcsr": {"power_state": 3}})
        registers.after_write(pci_power_management, self._power, "pmcsr", self._power_written)
        self._add_reset()

    def _add_reset(self) -> None:
        registers = self.registers
        if self.express:
            self._reset_at = registers.add_capability(pci_express, _EXPRESS, _EXPRESS_WRITABLE)
            registers.after_write(pci_express, self._reset_at, "device_control", self._device_control_written)
        else:
            initiate = {"af_control": {"initiate_flr": 1}}
            self._reset_at = registers.add_capability(pci_advanced_features, _ADVANCED, initiate)
            registers.after_write(pci_advanced_features, self._reset_at, "af_control", self._af_control_written)

    def add_msix(self, msix: Msix, bar: int, table: int, pba: int) -> None:
        """The capability of MSI-X, whose table and pending bits lie in a BAR at these offsets. Raises UsageError."""
        for offset, size in ((table, table_size(msix.vectors)), (pba, pba_size(msix.vectors))):
            if bar not in self.bars or self.bars[bar].find(offset, size) is None:
                raise UsageError(f"BAR {bar} has no region for MSI-X at {offset:#x}")
        values = {
            "cap_id": CapabilityId.MSI_X,
            "message_control": {"table_size": msix.vectors - 1},
            "table": {"bir": bar, "offset": table},
            "pba": {"bir": bar, "offset": pba},
        }
        writable = {"message_control": {"enable": 1, "function_mask": 1}}
        self._msix_at = self.registers.add_capability(pci_msix, values, writable)
        self.registers.after_write(pci_msix, self._msix_at, "message_control", self._permit)
        self.msix = msix

    def set_multi_function(self) -> None:
        """The device that this function 0 belongs to has others."""
        self.registers.update(pci_header_type0, 0, "header_type", multi_function=1)

    # What its registers switch

    def _command(self) -> Any:
        return self.registers.field(pci_header_type0, 0, "command")

    def _power_state(self) -> int:
        return int(self.registers.field(pci_power_management, self._power, "pmcsr").power_state)

    @property
    def powered(self) -> bool:
        """Whether the function is in D0."""
        return self._power_state() == _D0

    @property
    def bus_master(self) -> bool:
        """Whether the function may read and write memory, which sending a message is."""
        return bool(self._command().bus_master) and self.powered

    def decodes(self, io: bool) -> bool:
        """Whether the function answers in I/O or in memory space."""
        command = self._command()
        return bool(command.io_space if io else command.memory_space) and self.powered

    def bar_address(self, index: int) -> int:
        """Where a BAR begins in its space, in bytes."""
        bar, at = self.bars[index], bar_register(index)
        return int.from_bytes(self.registers.load(at, bar.length), "little") & -bar.size

    def _power_written(self) -> None:
        if self._power_state() not in (_D0, _D3HOT):
            # D1 and D2 are not supported; a write of theirs is discarded, and whoever writes one was in D0.
            self.registers.update(pci_power_management, self._power, "pmcsr", power_state=_D0)
        self._permit()

    def _device_control_written(self) -> None:
        if self.registers.field(pci_express, self._reset_at, "device_control").bridge_retry_or_flr:
            self.reset()

    def _af_control_written(self) -> None:
        if self.registers.field(pci_advanced_features, self._reset_at, "af_control").initiate_flr:
            self.reset()

    def reset(self) -> None:
        """A function level reset: all registers are as after power-on, and what stands behind them is reset."""
        several = self.registers.field(pci_header_type0, 0, "header_type").multi_function
        self.registers.reset()
        # Whether the device has more functions is not the function's to forget.
        self.registers.update(pci_header_type0, 0, "header_type", multi_function=several)
        self.silent = False
        if self.msix is not None:
            self.msix.reset()
        self.on_reset()
        self.set_interrupt(False)

    # Interrupts

    def set_interrupt(self, pending: bool) -> None:
        """Whether the function has an interrupt to tell of by INTx."""
        self._pending = pending
        self._permit()

    def _permit(self) -> None:
        """What the registers let out: messages, or the line."""
        if self.msix is not None:
            control = self.registers.field(pci_msix, self._msix_at, "message_control")
            self.msix.permit(bool(control.enable), not control.function_mask and self.bus_master)
        by_line = self._pending and not (self.msix is not None and self.msix.enabled)
        self.registers.update(pci_header_type0, 0, "status", interrupt_status=int(by_line))
        level = by_line and not self._command().interrupt_disable and self.powered
        if level != self._level:
            self._level = level
            self.interrupt(level)

    # BARs

    def read_bar(self, index: int, offset: int, width: int) -> int:
        """What a read in a BAR returns, wherever the BAR is; 0 where nothing is."""
        region = self._region(index, offset, width)
        return region.access.read(offset - region.offset, width) if region is not None else 0

    def write_bar(self, index: int, offset: int, value: int, width: int) -> None:
        """A write in a BAR."""
        region = self._region(index, offset, width)
        if region is not None:
            region.access.write(offset - region.offset, value, width)

    def _region(self, index: int, offset: int, width: int) -> Region | None:
        bar = self.bars.get(index)
        return None if bar is None or self.silent else bar.find(offset, width)
