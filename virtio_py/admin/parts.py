"""Device parts (2.13): the state of a device as the specification takes it apart, and a device put together from it.

The device is stopped then, so that nothing is under way: every buffer it has seen is either used, or will be taken
anew by whoever goes on with the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from virtio_py.admin.legacy import legacy_access
from virtio_py.admin.member import NO_VECTOR, Member, PartKey
from virtio_py.admin.parts_layout import (
    FEATURE_WORDS,
    NO_SELECTOR,
    OPTIONAL,
    Part,
    PartType,
    pci_common_cfg,
    virtio_dev_part_features,
    virtio_dev_part_vq_cfg,
    virtio_dev_part_vq_notify_data,
    virtio_py_dev_part_vq_state,
    vq_index,
)
from virtio_py.device import DeviceEnd
from virtio_py.errors import PeerError
from virtio_py.pci.virtio_caps import virtio_pci_common_cfg
from virtio_py.resources import AdminStatus, Refused
from virtio_py.rings.queue import QueueConfig, QueueState
from virtio_py.spec import DeviceStatus, Feature, bit

_WORD: Final = (1 << 64) - 1
_features = virtio_dev_part_features(FEATURE_WORDS)


def _features_value(features: int) -> bytes:
    return _features.encode(feature_bits=[features >> 64 * n & _WORD for n in range(FEATURE_WORDS)])


def _features_of(part: Part) -> int:
    return sum(word << 64 * n for n, word in enumerate(_features.decode(part.value).feature_bits))


def _queue_selector(index: int) -> bytes:
    return vq_index.encode(index=index)


def _number(part: Part) -> int:
    return int.from_bytes(part.value, "little")


# Taking a device apart


def parts_of(member: Member) -> list[Part]:
    """All parts of a device in the order of the specification's table, those that were set and not yet resumed with
    included: what the device would be after resuming."""
    parts = {**{part.key: part for part in _live_parts(member)}, **member.staged}
    return sorted(parts.values(), key=lambda part: part.type)


def _live_parts(member: Member) -> Iterator[Part]:
    end = member.end
    yield Part(PartType.DEV_FEATURES, NO_SELECTOR, _features_value(end.device_features), OPTIONAL)
    yield Part(PartType.DRV_FEATURES, NO_SELECTOR, _features_value(end.features))
    yield _common(end, "num_queues", end.num_queues)
    yield Part(PartType.DEVICE_STATUS, NO_SELECTOR, bytes([end.read_status()]))
    queues = range(end.num_queues)
    for of_queue in (_queue_config, _queue_notify):
        yield from (of_queue(member, index) for index in queues)
    yield from (Part(kind, selector, value) for (kind, selector), value in end.device.parts().items())
    yield from (_queue_state(member, index) for index in queues)


def _common(end: DeviceEnd, name: str, value: int) -> Part:
    selector = pci_common_cfg.encode(offset=virtio_pci_common_cfg.offset(name))
    return Part(PartType.PCI_COMMON_CFG, selector, value.to_bytes(virtio_pci_common_cfg.field(name).size, "little"))


def _queue_config(member: Member, index: int) -> Part:
    config = member.end.queue(index)
    value = virtio_dev_part_vq_cfg.encode(
        queue_size=config.size,
        vector=member.queue_vectors.get(index, NO_VECTOR),
        enabled=member.end.active_queue(index) is not None,
        queue_desc=config.descriptor_area,
        queue_driver=config.driver_area,
        queue_device=config.device_area,
    )
    return Part(PartType.VQ_CFG, _queue_selector(index), value)


def _queue_notify(member: Member, index: int) -> Part:
    value = virtio_dev_part_vq_notify_data.encode(
        queue_notify_off=index, queue_notif_config_data=member.end.queue(index).notif_config_data
    )
    return Part(PartType.VQ_NOTIFY_CFG, _queue_selector(index), value)


def _queue_state(member: Member, index: int) -> Part:
    queue = member.end.active_queue(index)
    state = member.end.queue(index).state if queue is None else queue.resume_point
    value = virtio_py_dev_part_vq_state.encode(
        next_available=state.next_available,
        next_used=state.next_used,
        available_wrap=state.available_wrap,
        used_wrap=state.used_wrap,
    )
    return Part(PartType.VQ_STATE, _queue_selector(index), value)


# Judging parts that a driver wants to set


def check(member: Member, parts: list[Part]) -> list[Part]:
    """Those of the parts that are to be set. Raises Refused if one cannot be."""
    here = {part.key: part for part in parts_of(member)}
    return [part for part in parts if _settable(member, part, here)]


def _settable(member: Member, part: Part, here: Mapping[PartKey, Part]) -> bool:
    """Whether a part is to be set, or only good to know."""
    wrong = _wrong(member.end, part, here.get(part.key))
    if wrong and (part.type in _VERIFIED or not part.flags & OPTIONAL):
        raise Refused(AdminStatus.EINVAL, f"part {part.type:#x}, {part.selector.hex()}: {wrong}")
    return not wrong and part.type not in _VERIFIED


def _wrong(end: DeviceEnd, part: Part, own: Part | None) -> str:
    if part.type not in _COMMON:
        return "" if end.device.takes_part(part.type, part.selector, part.value) else "the device does not take it"
    if own is None:
        return "there is none"
    if len(part.value) != len(own.value):
        return f"it has {len(own.value)} bytes, not {len(part.value)}"
    if part.type in _VERIFIED:
        return "" if part.value == own.value else "it does not match"
    return _CHECKS.get(part.type, _nothing_wrong)(end, part)


def _wrong_features(end: DeviceEnd, part: Part) -> str:
    extra = _features_of(part) & ~end.device_features
    return f"features {extra:#x} are not offered" if extra else ""


def _wrong_queue(end: DeviceEnd, part: Part) -> str:
    values, config = virtio_dev_part_vq_cfg.decode(part.value), end.queue(_index(part))
    if not 0 < values.queue_size <= config.max_size:
        return f"queue size {values.queue_size} is not from 1 to {config.max_size}"
    return "" if values.enabled in (0, 1) else f"enabled is {values.enabled}"


def _wrong_notify(end: DeviceEnd, part: Part) -> str:
    place = virtio_dev_part_vq_notify_data.decode(part.value).queue_notify_off
    return "" if place == _index(part) else f"queue_notify_off is {_index(part)} here"


def _nothing_wrong(end: DeviceEnd, part: Part) -> str:
    return ""


_COMMON: Final = frozenset(PartType)
_VERIFIED: Final = (PartType.DEV_FEATURES, PartType.PCI_COMMON_CFG)
"""What a device has and no driver changes: it is compared, not set."""
_CHECKS: Final[Mapping[int, Callable[[DeviceEnd, Part], str]]] = {
    PartType.DRV_FEATURES: _wrong_features,
    PartType.VQ_CFG: _wrong_queue,
    PartType.VQ_NOTIFY_CFG: _wrong_notify,
}
"""What else is judged at once; whether a queue can stand where it is to, is judged when all is there."""


def _index(part: Part) -> int:
    index: int = vq_index.decode(part.selector).index
    return index


# Putting a device together


def restore(member: Member) -> None:
    """Brings the parts that wait into effect: the device goes through its initialisation anew, as a driver would take
    it there, as far as the status says. Raises Refused, with all as before, if that cannot be done."""
    if not member.staged:
        return
    parts = {part.key: part for part in parts_of(member)}
    features = _features_of(parts[PartType.DRV_FEATURES, NO_SELECTOR])
    status = _number(parts[PartType.DEVICE_STATUS, NO_SELECTOR])
    configs = [(_config_of(member, index, parts), _cfg(parts, index)) for index in range(member.end.num_queues)]
    _check_queues(member.end, features, [config for config, cfg in configs if cfg.enabled])
    # Only a legacy driver begins without VERSION_1, and it knows no FEATURES_OK.
    legacy = not features & bit(Feature.VERSION_1) and not status & DeviceStatus.FEATURES_OK
    _check_negotiation(member.end, features, status, legacy)
    own = {key: part.value for key, part in parts.items() if key[0] not in _COMMON}
    member.unstage()
    member.end.write_status(0)
    with legacy_access(member.end, legacy):
        _replay(member, features, status, configs, own)


def _cfg(parts: Mapping[PartKey, Part], index: int) -> Any:
    return virtio_dev_part_vq_cfg.decode(parts[PartType.VQ_CFG, _queue_selector(index)].value)


def _config_of(member: Member, index: int, parts: Mapping[PartKey, Part]) -> QueueConfig:
    """A queue's registers, as its parts say."""
    selector, cfg = _queue_selector(index), _cfg(parts, index)
    notify = virtio_dev_part_vq_notify_data.decode(parts[PartType.VQ_NOTIFY_CFG, selector].value)
    state = virtio_py_dev_part_vq_state.decode(parts[PartType.VQ_STATE, selector].value)
    config = member.end.queue(index).fresh()
    config.size = cfg.queue_size
    config.descriptor_area, config.driver_area = cfg.queue_desc, cfg.queue_driver
    config.device_area = cfg.queue_device
    config.notif_config_data = notify.queue_notif_config_data
    config.state = QueueState(state.next_available, state.next_used, state.available_wrap & 1, state.used_wrap & 1)
    return config


def _check_queues(end: DeviceEnd, features: int, configs: list[QueueConfig]) -> None:
    for config in configs:
        try:
            config.activate(end.memory, features, end.engine, lambda: None)
        except PeerError as error:
            raise Refused(AdminStatus.EINVAL, str(error)) from error


def _check_negotiation(end: DeviceEnd, features: int, status: int, legacy: bool) -> None:
    with legacy_access(end, legacy):
        reason = end.refusal(features)
    if reason is not None and status & (DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK):
        raise Refused(AdminStatus.EINVAL, reason)


def _replay(
    member: Member, features: int, status: int, configs: list[tuple[QueueConfig, Any]], own: Mapping[PartKey, bytes]
) -> None:
    end, begun = member.end, DeviceStatus.DRIVER_OK | DeviceStatus.SUSPEND
    write = partial(_add_status, end, status)
    write(DeviceStatus.ACKNOWLEDGE)
    write(DeviceStatus.DRIVER)
    end.accept_features(features)
    write(DeviceStatus.FEATURES_OK)
    for config, cfg in configs:
        end.configure_queue(config)
        member.queue_vectors[config.index] = cfg.vector
        if cfg.enabled:
            end.enable_queue(config.index)
    for (kind, selector), value in own.items():
        end.guard(partial(end.device.set_part, kind, selector, value))
    if status & begun:
        end.write_status(end.read_status() | DeviceStatus.DRIVER_OK)
    write(DeviceStatus.FAILED)
    write(DeviceStatus.SUSPEND)
    if status & DeviceStatus.DEVICE_NEEDS_RESET:
        end.needs_reset(PeerError("the device was stopped when it needed a reset"))


def _add_status(end: DeviceEnd, status: int, wanted: int) -> None:
    if status & wanted:
        end.write_status(end.read_status() | wanted)
