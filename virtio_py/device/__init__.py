"""The device half: `Device` is what an author writes, `DeviceEnd` is what every carrier talks to.

A `Device` never sees a descriptor, an address or a transport. A carrier translates its own words (registers,
messages) into the verbs of `DeviceEnd`, and carries out the two verbs of `Notifier`.
"""

from virtio_py.device.author import Administrator, Device, Notifier, QueueSpec
from virtio_py.device.end import DeviceEnd

__all__ = ["Administrator", "Device", "DeviceEnd", "Notifier", "QueueSpec"]
