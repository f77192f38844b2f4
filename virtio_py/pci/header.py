"""The first 64 bytes of every function's configuration space: the type 0 and type 1 headers.

All of configuration space is little-endian. Field names are the PCI Local Bus and PCI Express Base specifications'
in lower case; bits that they reserve are called `reserved…`.
"""

from __future__ import annotations

from typing import Any, Final

from construct import Array, Bytes, BytesInteger, Int8ul, Int16ul, Int32ul, Struct

from virtio_py.records import Record, Register

CONFIG_SPACE_MIN: Final = 64
CONVENTIONAL_SIZE: Final = 256
CONFIG_SPACE_MAX: Final = 4096

command = Register(
    Int16ul,
    io_space=1,
    memory_space=1,
    bus_master=1,
    special_cycles=1,
    memory_write_and_invalidate=1,
    vga_palette_snoop=1,
    parity_error_response=1,
    stepping=1,
    serr_enable=1,
    fast_back_to_back=1,
    interrupt_disable=1,
    reserved_11=5,
)

status = Register(
    Int16ul,
    reserved_0=3,
    interrupt_status=1,
    capabilities_list=1,
    capable_66mhz=1,
    user_definable_features=1,
    fast_back_to_back=1,
    master_data_parity_error=1,
    devsel_timing=2,
    signaled_target_abort=1,
    received_target_abort=1,
    received_master_abort=1,
    signaled_system_error=1,
    detected_parity_error=1,
)

bridge_control = Register(
    Int16ul,
    parity_error_response=1,
    serr_enable=1,
    isa_enable=1,
    vga_enable=1,
    vga_16bit_decode=1,
    master_abort_mode=1,
    secondary_bus_reset=1,
    fast_back_to_back=1,
    primary_discard_timer=1,
    secondary_discard_timer=1,
    discard_timer_status=1,
    discard_timer_serr_enable=1,
    reserved_12=4,
)


def _common() -> list[Any]:
    return [
        "vendor_id" / Int16ul,
        "device_id" / Int16ul,
        "command" / command,
        "status" / status,
        "revision_id" / Int8ul,
        "class_code" / BytesInteger(3, swapped=True),
        "cache_line_size" / Int8ul,
        "latency_timer" / Int8ul,
        "header_type" / Register(Int8ul, layout=7, multi_function=1),
        "bist" / Int8ul,
    ]


pci_header_common = Record("pci_header_common", Struct(*_common()), cite="PCI 3.0, 6.1")

pci_header_type0 = Record(
    "pci_header_type0",
    Struct(
        *_common(),
        "base_address" / Array(6, Int32ul),
        "cardbus_cis_pointer" / Int32ul,
        "subsystem_vendor_id" / Int16ul,
        "subsystem_id" / Int16ul,
        "expansion_rom_base_address" / Int32ul,
        "capabilities_pointer" / Int8ul,
        "reserved_53" / Bytes(7),
        "interrupt_line" / Int8ul,
        "interrupt_pin" / Int8ul,
        "min_gnt" / Int8ul,
        "max_lat" / Int8ul,
    ),
    cite="PCI 3.0, 6.1",
)

pci_header_type1 = Record(
    "pci_header_type1",
    Struct(
        *_common(),
        "base_address" / Array(2, Int32ul),
        "primary_bus_number" / Int8ul,
        "secondary_bus_number" / Int8ul,
        "subordinate_bus_number" / Int8ul,
        "secondary_latency_timer" / Int8ul,
        "io_base" / Int8ul,
        "io_limit" / Int8ul,
        "secondary_status" / status,
        "memory_base" / Int16ul,
        "memory_limit" / Int16ul,
        "prefetchable_memory_base" / Int16ul,
        "prefetchable_memory_limit" / Int16ul,
        "prefetchable_base_upper" / Int32ul,
        "prefetchable_limit_upper" / Int32ul,
        "io_base_upper" / Int16ul,
        "io_limit_upper" / Int16ul,
        "capabilities_pointer" / Int8ul,
        "reserved_53" / Bytes(3),
        "expansion_rom_base_address" / Int32ul,
        "interrupt_line" / Int8ul,
        "interrupt_pin" / Int8ul,
        "bridge_control" / bridge_control,
    ),
    cite="PCI-to-PCI Bridge 1.2, 3.2",
)

HEADERS: Final = {0: pci_header_type0, 1: pci_header_type1}

# A CardBus bridge (type 2) has its list's head elsewhere; its other registers are of no use here.
CAPABILITIES_POINTER: Final = {
    0: pci_header_type0.offset("capabilities_pointer"),
    1: pci_header_type1.offset("capabilities_pointer"),
    2: 0x14,
}
