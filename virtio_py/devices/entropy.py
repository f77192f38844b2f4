"""The entropy device (5.4), both halves. Read this file first: it is the smallest device there is, and complete.

    Device ID       4
    Virtqueues      0  requestq
    Feature bits    none
    Configuration   none
    Operation       The driver places device-writable buffers into requestq. The device puts one random byte or more
                    into each and returns it; the used length says how many they are.

Every device of this package has the same two halves. The device is given chains, and sees of each a stream of
readable and a stream of writable bytes: no descriptor, no address, no transport. The driver is given a transport, and
cannot tell which one. Here is each half at work on the other, in one process:

    transport = InProcess(EntropyDevice())
    driver = EntropyDriver(transport).start()       the initialisation sequence of 3.1.1, from reset to DRIVER_OK
    driver.read(16)                                 16 random bytes
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from attrs import define

from virtio_py.device import Device, QueueSpec
from virtio_py.driver import Driver
from virtio_py.errors import RequestError, UsageError
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceId

REQUESTQ: Final = 0
"""The index of the only virtqueue."""


@define(eq=False)
class EntropyDevice(Device):
    """The device: it fills what the driver offers.

    source: called with a number of bytes, returns at least 1 and at most that many
    limit:  the most bytes put into one buffer; with the device free to "use less than the entire buffer length", a
            driver that offers 4 GiB does not make us hold them in memory
    """

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY
    source: Callable[[int], bytes] = os.urandom
    limit: int = 1 << 16

    def queues(self) -> Sequence[QueueSpec]:
        """The name is the specification's, the size is the largest that we take."""
        return [QueueSpec("requestq")]

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serves one buffer. On return the chain is used, with the bytes written to `chain.writable` as its length.

        Raises RequestError for a buffer that breaks the specification: there is no status byte in which to say so,
        hence it becomes DEVICE_NEEDS_RESET, and the driver hears of it.
        """
        if chain.readable.remaining:
            raise RequestError("the buffer has device-readable bytes", clause="entropy.driver.device-op.1")
        wanted = min(chain.writable.remaining, self.limit)
        if not wanted:
            raise RequestError("the buffer has no room for a random byte", clause="entropy.device.device-op.1")
        data = self.source(wanted)
        if not 0 < len(data) <= wanted:
            raise UsageError(f"the source gave {len(data)} bytes where 1 to {wanted} were asked for")
        chain.writable.write(data)


class EntropyDriver(Driver):
    """The driver: it offers buffers, and takes from each as many bytes as the device says it wrote."""

    device_id = DeviceId.ENTROPY
    chunk: ClassVar[int] = 4096

    def read(self, count: int, timeout: float | None = None) -> bytes:
        """`count` random bytes, in as many requests as it takes.

        Raises TimedOut after `timeout` seconds, and RequestError, with FAILED set, for a device that returns a buffer
        without a random byte in it.
        """
        data = bytearray()
        with self.within(timeout):
            while len(data) < count:
                data += self._some(min(count - len(data), self.chunk))
        return bytes(data)

    def _some(self, most: int) -> bytes:
        [answer], length = self.transact(self.queues[REQUESTQ], [], [most])
        if not length:
            self.fail()
            raise RequestError("a buffer came back empty", clause="entropy.device.device-op.1", queue=REQUESTQ)
        # Only the used length counts: what lies behind it is not random, it is what the memory held before.
        return answer[:length]
