"""The registers of virtio_pci_common_cfg (4.1.4.3): what a read of each returns and what a write does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from virtio_py.errors import MessageError
from virtio_py.rings.queue import QueueConfig
from virtio_py.spec import Feature
from virtio_py.transports.pci_layout import NO_VECTOR
from virtio_py.transports.register_device import HIGH, LOW, Read, Write, half, select

if TYPE_CHECKING:
    from virtio_py.transports.pci import PciDevice


def presented_size(machine: PciDevice, config: QueueConfig) -> int:
    """A queue's size as a driver finds it: without packed rings a power of two, whatever the device could do."""
    packed = machine.has(Feature.RING_PACKED)
    return config.size if packed or not config.size else 1 << config.size.bit_length() - 1


def _size(machine: PciDevice) -> int:
    return presented_size(machine, machine.end.queue(machine.selected_queue)) if machine.queue_exists() else 0


def _set_size(machine: PciDevice, value: int) -> None:
    machine.idle_queue().size = value


def _enable(machine: PciDevice, value: int) -> None:
    config = machine.idle_queue()
    if value != 1:
        raise MessageError(f"queue_enable is written 1, not {value:#x}", queue=config.index)
    if config.size == config.max_size:
        # Not chosen by the driver, who took what it was shown.
        config.size = presented_size(machine, config)
    machine.enable()


def _notify_off(machine: PciDevice) -> int:
    return machine.selected_queue if machine.queue_exists() else 0


def _notif_config_data(machine: PciDevice) -> int:
    negotiated = machine.has(Feature.NOTIF_CONFIG_DATA) and machine.queue_exists()
    return machine.end.queue(machine.selected_queue).notif_config_data if negotiated else 0


def _reset(machine: PciDevice, value: int) -> None:
    machine.reset_queue(value)
    machine.vectors_of.pop(machine.selected_queue, None)


def queue_vector(machine: PciDevice) -> int:
    """queue_msix_vector."""
    return machine.vectors_of.get(machine.selected_queue, NO_VECTOR)


def set_queue_vector(machine: PciDevice, value: int) -> None:
    """queue_msix_vector. Raises MessageError for a queue that is not there."""
    if not machine.queue_exists():
        raise MessageError(f"there is no queue {machine.selected_queue}")
    machine.vectors_of[machine.selected_queue] = machine.mappable(value)


def config_vector(machine: PciDevice) -> int:
    """config_msix_vector."""
    return machine.config_vector


def set_config_vector(machine: PciDevice, value: int) -> None:
    """config_msix_vector."""
    machine.config_vector = machine.mappable(value)


_AREAS: Final = {"queue_desc": "descriptor_area", "queue_driver": "driver_area", "queue_device": "device_area"}


def _address(area: str, shift: int) -> Read:
    return lambda m: getattr(m.end.queue(m.selected_queue), area) >> shift if m.queue_exists() else 0


READABLE: Final[Mapping[str, Read]] = {
    "device_feature_select": lambda m: m.selected.get("device_feature_select", 0),
    "device_feature": lambda m: m.offer(m.selected.get("device_feature_select", 0)),
    "driver_feature_select": lambda m: m.selected.get("driver_feature_select", 0),
    "driver_feature": lambda m: m.accepted(m.selected.get("driver_feature_select", 0)),
    "config_msix_vector": config_vector,
    "num_queues": lambda m: m.end.num_queues,
    "device_status": lambda m: m.end.read_status(),
    "config_generation": lambda m: m.end.config_generation,
    "queue_select": lambda m: m.selected_queue,
    "queue_size": _size,
    "queue_msix_vector": queue_vector,
    "queue_enable": lambda m: m.in_use(),
    "queue_notify_off": _notify_off,
    **{name + LOW: _address(area, 0) for name, area in _AREAS.items()},
    **{name + HIGH: _address(area, 32) for name, area in _AREAS.items()},
    "queue_notif_config_data": _notif_config_data,
    "queue_reset": lambda m: m.selected_queue in m.resetting,
    "admin_queue_index": lambda m: m.end.admin_queues.start if m.has(Feature.ADMIN_VQ) else 0,
    "admin_queue_num": lambda m: len(m.end.admin_queues) if m.has(Feature.ADMIN_VQ) else 0,
}

WRITABLE: Final[Mapping[str, Write]] = {
    "device_feature_select": select("device_feature_select"),
    "driver_feature_select": select("driver_feature_select"),
    "driver_feature": lambda m, value: m.accept(m.selected.get("driver_feature_select", 0), value),
    "config_msix_vector": set_config_vector,
    "device_status": lambda m, value: m.write_status(value),
    "queue_select": select("queue_select"),
    "queue_size": _set_size,
    "queue_msix_vector": set_queue_vector,
    "queue_enable": _enable,
    **{name + LOW: half(area, 0) for name, area in _AREAS.items()},
    **{name + HIGH: half(area, 32) for name, area in _AREAS.items()},
    "queue_reset": _reset,
}
