"""Single Root I/O Virtualization: how many virtual functions there are, where, and their BARs."""

from __future__ import annotations

from construct import Array, Int8ul, Int16ul, Int32ul, Struct

from virtio_py.pci.capabilities import BarOffset
from virtio_py.pci.extended_ids import extended_header
from virtio_py.records import Record, Register

pci_sriov = Record(
    "pci_sriov",
    Struct(
        extended_header(),
        "sriov_capabilities"
        / Register(
            Int32ul,
            vf_migration_capable=1,
            ari_capable_hierarchy_preserved=1,
            vf_10bit_tag_requester=1,
            reserved_3=18,
            vf_migration_interrupt_message_number=11,
        ),
        "sriov_control"
        / Register(
            Int16ul,
            vf_enable=1,
            vf_migration_enable=1,
            vf_migration_interrupt_enable=1,
            vf_memory_space_enable=1,
            ari_capable_hierarchy=1,
            vf_10bit_tag_requester_enable=1,
            reserved_6=10,
        ),
        "sriov_status" / Register(Int16ul, vf_migration_status=1, reserved_1=15),
        "initial_vfs" / Int16ul,
        "total_vfs" / Int16ul,
        "num_vfs" / Int16ul,
        "function_dependency_link" / Int8ul,
        "reserved_19" / Int8ul,
        "first_vf_offset" / Int16ul,
        "vf_stride" / Int16ul,
        "reserved_24" / Int16ul,
        "vf_device_id" / Int16ul,
        "supported_page_sizes" / Int32ul,
        "system_page_size" / Int32ul,
        "vf_base_address" / Array(6, Int32ul),
        "vf_migration_state_array" / BarOffset(),
    ),
    cite="Single Root I/O Virtualization 1.1, 3.3",
)
