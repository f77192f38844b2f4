"""Writing a device: both halves of one that nobody has specified, and its test, in one file.

    python examples/writing_a_device.py

The device keeps a tally: a request names a number of 64 bits, the answer is the sum of all so far. Its configuration
says how many requests it has seen, and a feature bit makes it answer with the largest number too.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define
from construct import Int64ul, Struct

from virtio_py.device import Device, QueueSpec
from virtio_py.driver import Driver
from virtio_py.errors import RequestError
from virtio_py.records import Record
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceId, bit
from virtio_py.testing.pairs import connected

# Declared once: sizes, offsets and codecs follow from it.
tally_config = Record("tally_config", Struct("seen" / Int64ul))
tally_req = Record("tally_req", Struct("number" / Int64ul))
tally_answer = Record("tally_answer", Struct("sum" / Int64ul, "largest" / Int64ul))
LARGEST = 0
"""The position of the feature bit."""


@define(eq=False)
class TallyDevice(Device):
    """The device's half. It sees streams of bytes: no descriptor, no address, no transport."""

    device_id = DeviceId.SIGNAL_DISTRIBUTION  # an identifier nobody uses
    seen: int = 0
    sum: int = 0
    largest: int = 0

    def queues(self) -> Sequence[QueueSpec]:
        return [QueueSpec("tallyq")]

    def offered_features(self) -> int:
        return bit(LARGEST)

    def read_config(self) -> bytes:
        return tally_config.encode(seen=self.seen)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        if chain.readable.remaining != tally_req.size:
            raise RequestError(f"a request of {chain.readable.remaining} bytes")  # becomes DEVICE_NEEDS_RESET
        number = tally_req.decode(chain.readable.read_all()).number
        self.seen += 1
        self.sum = (self.sum + number) & (1 << 64) - 1
        self.largest = max(self.largest, number)
        answer = tally_answer.encode(sum=self.sum, largest=self.largest)
        # With room for the sum alone, that is all that is written: the used length says so.
        chain.writable.write(answer[: chain.writable.remaining])

    def reset(self) -> None:
        self.seen = self.sum = self.largest = 0


class TallyDriver(Driver):
    """The driver's half: it is given a transport, and cannot tell which."""

    device_id = DeviceId.SIGNAL_DISTRIBUTION
    known_features = bit(LARGEST)

    def add(self, number: int) -> tuple[int, int | None]:
        """The sum so far, and the largest number where the device tells."""
        room = tally_answer.size if self.has(LARGEST) else tally_answer.end("sum")
        [data], length = self.transact(self.queues[0], [tally_req.encode(number=number)], [room])
        answer = tally_answer.decode_available(data[:length])
        return answer["sum"], answer.get("largest")

    def seen(self) -> int:
        """How many requests the device has seen."""
        return int(tally_config.decode(self.read_config_bytes(0, tally_config.size)).seen)


def main() -> None:
    """The same two halves over each layout, engine and carrier."""
    for layout in ("split", "packed"):
        for engine in ("reference", "compiled"):
            for carrier in ("in-process", "mmio"):
                with connected(TallyDevice(), TallyDriver, layout=layout, engine=engine, carrier=carrier) as driver:
                    answers = [driver.add(number) for number in (3, 40, 7)]
                    assert answers == [(3, 3), (43, 40), (50, 40)]
                    assert driver.seen() == 3
                    print(f"{layout:8}{engine:12}{carrier:12}{answers[-1]}")
    with connected(TallyDevice(), TallyDriver, features=0) as driver:
        assert driver.add(5) == (5, None)


if __name__ == "__main__":
    main()
