"""The states of zones in a file: what is there after any end of a program is what was there before it."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_blk_device import ask, head
from tests.test_blk_zones import CAPACITY, MANAGE, SIZE, append, disk, write
from tests.test_cli_serve import program
from tests.test_vhost_user_transport import connected
from tests.vhost_user_socket import await_
from virtio_py.devices.blk.layout import BlkFeature, BlkRequest, BlkStatus, ZonedModel, ZoneState
from virtio_py.devices.blk.zone_file import ZoneFile
from virtio_py.devices.blk.zoned_driver import ZonedBlkDriver
from virtio_py.devices.blk.zones import Zones
from virtio_py.errors import UsageError
from virtio_py.spec import bit

starts = st.integers(0, 5).map(lambda n: n * SIZE)
steps = st.one_of(
    st.tuples(st.just("manage"), starts, st.sampled_from(MANAGE)),
    st.tuples(st.just("append"), starts, st.integers(1, 8)),
    st.tuples(st.just("degrade"), starts, st.sampled_from([ZoneState.RDONLY, ZoneState.OFFLINE])),
    st.tuples(st.just("all")),
    st.tuples(st.just("end"), st.booleans()),
)


def rested(zones: Zones) -> list[tuple[ZoneState, int]]:
    """What a restart leaves of zones: none is open."""
    found: list[tuple[ZoneState, int]] = []
    for zone in zones:
        state = ZoneState.CLOSED if zone.state in (ZoneState.IOPEN, ZoneState.EOPEN) else zone.state
        found.append((ZoneState.EMPTY if state == ZoneState.CLOSED and zone.wp == zone.start else state, zone.wp))
    return found


@settings(deadline=None, max_examples=60)
@given(
    todo=st.lists(steps, max_size=25),
    model=st.sampled_from([ZonedModel.HM, ZonedModel.HA]),
    conventional=st.integers(0, 2),
    limits=st.integers(0, 3),
)
def test_zones_outlive_any_end(todo: list[tuple[Any, ...]], model: ZonedModel, conventional: int, limits: int) -> None:
    def made() -> Zones:
        return Zones(CAPACITY, SIZE, model=model, conventional=conventional, max_open=limits, max_active=limits)

    with TemporaryDirectory() as place:
        path = f"{place}/zones"
        zones = made()
        file = ZoneFile(path, zones)
        device = disk(zones)
        for verb, *args in [*todo, ("end", True)]:
            if verb == "manage":
                ask(device, head(args[1], args[0]))
            elif verb == "append":
                append(device, *args)
            elif verb == "all":
                ask(device, head(BlkRequest.ZONE_RESET_ALL))
            elif verb == "degrade":
                if args[0] >= conventional * SIZE and zones._zones[args[0] // SIZE].state not in (
                    ZoneState.OFFLINE,
                    ZoneState.RDONLY,
                ):
                    zones.degrade(args[0], args[1])
            else:
                expected = rested(zones)
                if args[0]:
                    file.close()
                # Else the program was killed, and nothing more is done.
                zones = made()
                other = ZoneFile(path, zones)
                if not args[0]:
                    os.close(file._fd)
                file, device = other, disk(zones)
                assert [(zone.state, zone.wp) for zone in zones] == expected
        file.close()


class Spy:
    """A journal that writes down in what order it is called."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def store(self, zone: object) -> None:
        self.calls.append("store")

    def commit(self) -> None:
        self.calls.append("commit")


@pytest.mark.parametrize("cached", [False, True])
def test_a_state_is_as_persistent_as_the_data(monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    calls: list[str] = []
    zones = Zones(CAPACITY, SIZE)
    device = disk(zones, accept=bit(BlkFeature.ZONED) | (bit(BlkFeature.FLUSH) if cached else 0))
    monkeypatch.setattr(type(device.medium), "flush", lambda medium: calls.append("flush"))
    zones.journal = Spy(calls)
    assert write(device, 0, 1) == BlkStatus.OK
    if cached:
        assert "commit" not in calls
        assert ask(device, head(BlkRequest.FLUSH))[0] == BlkStatus.OK
    assert calls.index("store") < len(calls) - 1 - calls[::-1].index("commit")
    assert calls.index("flush") < len(calls) - 1 - calls[::-1].index("commit")
    calls.clear()
    assert ask(device, head(BlkRequest.ZONE_FINISH))[0] == BlkStatus.OK
    assert calls[-1] == "commit"


def test_files_that_are_of_no_such_zones(tmp_path: Path) -> None:
    path = tmp_path / "zones"
    ZoneFile(str(path), Zones(CAPACITY, SIZE)).close()
    good = path.read_bytes()
    others = [
        Zones(CAPACITY, SIZE * 2),
        Zones(CAPACITY - 4, SIZE),
        Zones(CAPACITY, SIZE, model=ZonedModel.HA),
        Zones(CAPACITY, SIZE, conventional=1),
        Zones(CAPACITY, SIZE, zone_capacity=SIZE - 1),
    ]
    for other in others:
        with pytest.raises(UsageError):
            ZoneFile(str(path), other)
    assert path.read_bytes() == good
    at = len(good) - 16
    # Full of nothing, behind its end, open, of no state, and a write pointer in an empty zone.
    for wp, state in ((40, 99), (1 << 40, 4), (41, 2), (41, 3), (41, 1)):
        path.write_bytes(good[:at] + wp.to_bytes(8, "little") + bytes([state]) + bytes(7))
        opened = state in (ZoneState.IOPEN, ZoneState.EOPEN)
        if opened:
            ZoneFile(str(path), Zones(CAPACITY, SIZE)).close()
            continue
        with pytest.raises(UsageError):
            ZoneFile(str(path), Zones(CAPACITY, SIZE))
    for bad in (good[:-1], good + b"\0", b"zones"):
        path.write_bytes(bad)
        with pytest.raises(UsageError):
            ZoneFile(str(path), Zones(CAPACITY, SIZE))
        assert path.read_bytes() == bad
    with pytest.raises(OSError, match="No such file"):
        ZoneFile(str(tmp_path / "nowhere" / "zones"), Zones(CAPACITY, SIZE))


@pytest.mark.skipif(sys.platform != "linux", reason="vhost-user needs Linux")
def test_a_served_disk_comes_back(tmp_path: Path) -> None:
    image, path = tmp_path / "disk.img", tmp_path / "sock"
    image.write_bytes(bytes(64 * 512))
    zoned = ("--zoned", "host-managed", "--zone-size", "16", "--zones", str(tmp_path / "zones"))
    states = []
    for start in range(3):
        # `program` holds it to a clean end, which it has twice.
        killed = pytest.raises(AssertionError, match="-9 == 0") if start == 1 else nullcontext()
        with killed, program("blk", "--socket-path", str(path), "--blk-file", str(image), *zoned) as process:
            await_(path.exists, "the socket", 60)
            with connected(str(path)) as transport:
                driver = ZonedBlkDriver(transport).start()
                states.append([(zone.state, zone.write_pointer) for zone in driver.report_zones()])
                if not start:
                    driver.append(0, b"1" * 1024)
                    driver.write(16, b"2" * 512 * 16)
                    driver.open_zone(32)
                    driver.finish_zone(48)
                assert driver.read(0, 2) == b"1" * 1024
                driver.reset()
            if start == 1:
                process.send_signal(signal.SIGKILL)
                path.unlink(missing_ok=True)
    empty = [(ZoneState.EMPTY, n * 16) for n in range(4)]
    after = [(ZoneState.CLOSED, 2), (ZoneState.FULL, None), (ZoneState.EMPTY, 32), (ZoneState.FULL, None)]
    assert states == [empty, after, after]
