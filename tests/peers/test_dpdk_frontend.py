"""Our network driver in front of DPDK's back-end, which sends every frame back with its addresses swapped."""

from __future__ import annotations

from contextlib import closing
from itertools import product
from pathlib import Path
from random import Random

import pytest

from tests.peers.dpdk import dpdk_back_end
from virtio_py.devices.net.driver import NetDriver
from virtio_py.devices.net.layout import NetFeature
from virtio_py.rings.engine import engine_named
from virtio_py.spec import DeviceId, Feature, mask
from virtio_py.transports.vhost_user_transport import VhostUserTransport

pytestmark = pytest.mark.peer

THERE, HERE = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
FRAMES, WINDOW = 600, 50
"""Frames sent, and how many at a time: what the driver does not take in time is dropped."""


def frames() -> list[bytes]:
    draw = Random(3)
    contents = (number.to_bytes(4, "big") + draw.randbytes(draw.randrange(50, 1490)) for number in range(FRAMES))
    return [THERE + HERE + b"\x08\x00" + content for content in contents]


def exchange(driver: NetDriver, sent: list[bytes]) -> list[bytes]:
    """What comes back of them."""
    back: list[bytes] = []
    for start in range(0, len(sent), WINDOW):
        driver.send_all(sent[start : start + WINDOW])
        while len(back) < min(start + WINDOW, len(sent)) and (packet := driver.receive(timeout=10)) is not None:
            back.append(packet.frame)
    return back


@pytest.mark.parametrize(
    ("layout", "order", "merged"), list(product(["split", "packed"], [False, True], [False, True]))
)
@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_every_frame_comes_back(tmp_path: Path, layout: str, order: bool, merged: bool, engine: str) -> None:
    choices = {
        Feature.RING_PACKED: layout == "packed",
        Feature.IN_ORDER: order,
        NetFeature.MRG_RXBUF: merged,
    }
    chosen = [feature for feature, wanted in choices.items() if wanted]
    features = mask(Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX, *chosen)
    sent = frames()
    with dpdk_back_end(tmp_path / "sock") as server:
        # It has no configuration space, and leaves the queue pairs to be guessed: one, without MQ.
        transport = VhostUserTransport(str(server.socket), DeviceId.NET)
        with closing(transport):
            driver = NetDriver(transport, engine=engine_named(engine), features=features)
            for _ in range(2):
                driver.start()
                assert driver.features == features
                assert exchange(driver, sent) == [HERE + THERE + frame[12:] for frame in sent]
                driver.reset()
