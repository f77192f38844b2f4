"""Devices and drivers over the legacy interface, whose integers are the guest's own. Guests are little-endian here
(see decisions.md), so that what is to be seen in memory is little-endian too; headers have their old sizes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.carriers import CARRIERS, Setting
from tests.net_frames import THEM, Wire, frame_of
from virtio_py.device import Device
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.driver import BlkDriver
from virtio_py.devices.blk.layout import BlkFeature, BlkStatus, virtio_blk_config
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.driver import ConsoleDriver
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.console.layout import ConsoleEvent, ConsoleSize, virtio_console_config
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.driver import NetDriver
from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import NetFeature, virtio_net_config
from virtio_py.devices.scsi.device import ScsiDevice
from virtio_py.devices.scsi.disk import ScsiDisk
from virtio_py.devices.scsi.driver import ScsiDriver
from virtio_py.devices.scsi.layout import AsyncEvent, Tmf, encode_lun, virtio_scsi_config
from virtio_py.driver import Driver, Transport
from virtio_py.records import Record
from virtio_py.rings.chain import Chain
from virtio_py.rings.engine import REFERENCE
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import bit, mask
from virtio_py.status import RING_FEATURES


@contextmanager
def over_legacy(
    device: Device, kind: type[Driver], config: Record, place: Path, **options: Any
) -> Iterator[tuple[Any, Transport, list[tuple[int, bytes]]]]:
    """A started driver, its carrier, and what the device is sent: (queue, readable bytes) of each chain."""
    seen: list[tuple[int, bytes]] = []
    handle = device.handle

    def witness(queue: DeviceQueue, chain: Chain) -> None:
        seen.append((queue.index, b"".join(bytes(view) for view in chain.readable.views())))
        handle(queue, chain)

    device.handle = witness  # type: ignore[method-assign]  # a witness of this one device
    with CARRIERS["mmio-legacy"](Setting(device, REFERENCE, RING_FEATURES, config, place)) as transport:
        yield kind(transport, **options).start(), transport, seen


@pytest.mark.clause("blk-legacy.driver.config-layout.1", "blk-legacy.device.config-layout.1")
@pytest.mark.clause("blk-legacy.driver.device-op.1", "blk-legacy.device.device-op.1")
def test_a_disk(tmp_path: Path) -> None:
    device = BlkDevice(MemoryMedium.of(0x304 * 512), blk_size=1024)
    with over_legacy(device, BlkDriver, virtio_blk_config, tmp_path) as (driver, transport, seen):
        assert transport.read_config(0, 8) == struct.pack("<Q", 0x304)
        assert transport.read_config(virtio_blk_config.offset("blk_size"), 4) == struct.pack("<I", 1024)
        assert (driver.info.capacity, driver.info.blk_size) == (0x304, 1024)
        driver.write(0x203, b"x" * 512)
        assert driver.read(0x203, 1) == b"x" * 512
        assert [data[:16] for _, data in seen] == [struct.pack("<IIQ", kind, 0, 0x203) for kind in (1, 0)]


@pytest.mark.clause("blk-legacy.device.device-init.2", "blk-legacy.device.device-init.3")
@pytest.mark.clause("blk-legacy.driver.device-init.1")
def test_the_cache_mode_is_nobodys_but_the_drivers(tmp_path: Path) -> None:
    """Neither features nor status, as they are written one by one, turn what the driver reads before DRIVER_OK."""
    device = BlkDevice(MemoryMedium.of(4096))
    with CARRIERS["mmio-legacy"](Setting(device, REFERENCE, RING_FEATURES, virtio_blk_config, tmp_path)) as transport:
        at = virtio_blk_config.offset("writeback")
        before = transport.read_config(at, 1)
        for features in (0, bit(BlkFeature.CONFIG_WCE), mask(BlkFeature.CONFIG_WCE, BlkFeature.FLUSH)):
            transport.accept_features(features)
            assert transport.read_config(at, 1) == before
        for status in (1, 3):
            transport.write_status(status)
            assert transport.read_config(at, 1) == before
        transport.write_status(7)
        assert transport.read_config(at, 1) == before


@pytest.mark.clause("blk-legacy.device.device-op.2")
def test_an_old_flush(tmp_path: Path) -> None:
    device = BlkDevice(MemoryMedium.of(4096))
    with over_legacy(device, BlkDriver, virtio_blk_config, tmp_path) as (driver, _, _):
        for kind, status in ((4, BlkStatus.OK), (5, BlkStatus.OK), (6, BlkStatus.UNSUPP)):
            answers, _ = driver.transact(driver.queues[0], [struct.pack("<IIQ", kind, 0, 0)], [1])
            assert answers == [bytes([status])]


@pytest.mark.clause("blk-legacy.driver.device-op.2")
def test_used_lengths_of_old_disks_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = BlkDevice(MemoryMedium.of(4096))
    with over_legacy(device, BlkDriver, virtio_blk_config, tmp_path) as (driver, _, _):
        driver.write(1, b"y" * 512)
        monkeypatch.setattr(Chain, "used_length", property(lambda chain: 0))
        assert driver.read(1, 1) == b"y" * 512


@pytest.mark.clause("blk-legacy.driver.framing.1")
def test_header_data_and_status_of_a_disk_are_descriptors_of_their_own(tmp_path: Path) -> None:
    device = BlkDevice(MemoryMedium.of(4096))
    shapes: list[tuple[list[int], list[int]]] = []
    handle = device.handle

    def witness(queue: DeviceQueue, chain: Chain) -> None:
        shapes.append(([len(v) for v in chain.readable.views()], [len(v) for v in chain.writable.views()]))
        handle(queue, chain)

    device.handle = witness  # type: ignore[method-assign]  # a witness of this one device
    with CARRIERS["mmio-legacy"](Setting(device, REFERENCE, RING_FEATURES, virtio_blk_config, tmp_path)) as transport:
        driver = BlkDriver(transport).start()
        driver.write(0, bytes(1024))
        driver.read(0, 1)
        driver.flush()
    assert shapes == [([16, 1024], [1]), ([16], [512, 1]), ([16], [1])]


@pytest.mark.clause("net-legacy.device.legacy-config-layout.1", "net-legacy.driver.legacy-config-layout.1")
@pytest.mark.clause(
    "net-legacy.device.legacy-device-operation-hdr.1", "net-legacy.driver.legacy-device-operation-hdr.1"
)
@pytest.mark.parametrize(("merged", "size"), [(False, 10), (True, 12)])
def test_an_interface(tmp_path: Path, merged: bool, size: int) -> None:
    wire = Wire()
    device = NetDevice(wire, pairs=3)
    wanted = mask(NetFeature.MAC, NetFeature.STATUS, NetFeature.CTRL_VQ, NetFeature.MQ) | (
        merged << NetFeature.MRG_RXBUF
    )
    with over_legacy(device, NetDriver, virtio_net_config, tmp_path, features=wanted) as (driver, transport, seen):
        assert transport.read_config(6, 4) == struct.pack("<HH", 1, 3)
        assert (driver.info.link_up, driver.info.max_pairs) == (True, 3)
        frame = frame_of(b"old")
        driver.send_all([frame])
        assert wire.frames == [frame]
        # No num_buffers without MRG_RXBUF.
        assert seen[-1] == (1, bytes(size) + frame)
        wire.deliver(Packet(frame))
        assert driver.receive().frame == frame
        assert driver.last_header.num_buffers == merged


@pytest.mark.clause(
    "net-legacy.device.legacy-mac-filtering-endian.1", "net-legacy.driver.legacy-mac-filtering-endian.1"
)
@pytest.mark.clause("net-legacy.device.legacy-vlan-filtering.1", "net-legacy.driver.legacy-vlan-filtering.1")
@pytest.mark.clause("net-legacy.device.legacy-automatic-receive-steering.1")
@pytest.mark.clause("net-legacy.driver.legacy-automatic-receive-steering.1")
@pytest.mark.clause("net-legacy.device.legacy-setting-offloads-state.1")
@pytest.mark.clause("net-legacy.driver.legacy-setting-offloads-state.1")
def test_commands_to_an_interface(tmp_path: Path) -> None:
    device = NetDevice(Wire(), pairs=3)
    with over_legacy(device, NetDriver, virtio_net_config, tmp_path) as (driver, _, seen):
        seen.clear()
        driver.set_mac_table([THEM, b"\1" * 6, b"\3" * 6])
        driver.add_vlan(0x203)
        driver.set_pairs(2)
        driver.set_offloads(bit(NetFeature.GUEST_CSUM))
        assert [data[2:] for _, data in seen] == [
            struct.pack("<I", 1) + THEM + struct.pack("<I", 2) + b"\1" * 6 + b"\3" * 6,
            struct.pack("<H", 0x203),
            struct.pack("<H", 2),
            struct.pack("<Q", 2),
        ]
        assert device.filter.macs == {THEM, b"\1" * 6, b"\3" * 6}
        assert device.filter.vlans == {0x203}
        assert (device.steering.pairs, device.offloads) == (2, 2)


@pytest.mark.clause("scsi-legacy.driver.config-layout.1", "scsi-legacy.device.config-layout.1")
@pytest.mark.clause("scsi-legacy.driver.request-queues.1", "scsi-legacy.device.request-queues.1")
@pytest.mark.clause("scsi-legacy.driver.controlq.1", "scsi-legacy.device.controlq.1")
@pytest.mark.clause("scsi-legacy.driver.eventq.1", "scsi-legacy.device.eventq.1")
def test_a_scsi_host(tmp_path: Path) -> None:
    device = ScsiDevice(cmd_per_lun=0x102)
    device.attach(0, 0, ScsiDisk(MemoryMedium.of(4096)))
    with over_legacy(device, ScsiDriver, virtio_scsi_config, tmp_path) as (driver, transport, seen):
        assert transport.read_config(virtio_scsi_config.offset("cmd_per_lun"), 4) == struct.pack("<I", 0x102)
        assert driver.config.cmd_per_lun == 0x102
        driver.test_unit_ready(0, 0)
        [tag] = {data[8:16] for queue, data in seen[-1:] if queue == 2}
        assert tag == struct.pack("<Q", driver._tag)
        lun = encode_lun(0, 0)
        driver.task_management(Tmf.ABORT_TASK, 0, 0, tag=0x304)
        assert seen[-1] == (0, struct.pack("<II", 0, 0) + lun + struct.pack("<Q", 0x304))
        driver.query_notification(0, 0, AsyncEvent.MEDIA_CHANGE)
        assert seen[-1] == (
            0,
            struct.pack("<I", 1) + lun + struct.pack("<I", AsyncEvent.MEDIA_CHANGE),
        )
        device.attach(3, 7, ScsiDisk(MemoryMedium.of(4096)))
        for _ in range(50):
            transport.wait(0)
        [event] = driver.poll_events()
        assert (event.type, event.address, event.reason) == (1, (3, 7), 1)


@pytest.mark.clause("console-legacy.driver.config-layout.1", "console-legacy.device.config-layout.1")
@pytest.mark.clause("console-legacy.driver.device-op.1", "console-legacy.device.device-op.1")
@pytest.mark.clause("console-legacy.driver.framing.1")
def test_a_console(tmp_path: Path) -> None:
    ports = [ConsolePort(MemoryEndpoint(size=ConsoleSize(0x102, 0x304))), ConsolePort(MemoryEndpoint(), "second")]
    device = ConsoleDevice(ports, max_ports=4)
    with over_legacy(device, ConsoleDriver, virtio_console_config, tmp_path) as (driver, transport, seen):
        assert transport.read_config(0, 8) == struct.pack("<HHI", 0x102, 0x304, 4)
        assert (driver.size, driver.max_nr_ports) == ((0x102, 0x304), 4)
        driver.port("second").open()
        opened = (3, struct.pack("<IHH", 1, ConsoleEvent.PORT_OPEN, 1))
        assert driver.wait_until(lambda: opened in seen, 5)
        assert next(data for queue, data in seen if queue == 3) == struct.pack("<IHH", 0, ConsoleEvent.DEVICE_READY, 1)
