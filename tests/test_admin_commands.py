"""Group administration commands (2.12.1) and their virtqueues (2.14): their form, their order, who may what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from tests.admin_tools import (
    BAD_FIELD,
    BAD_GROUP,
    BAD_MEMBER,
    BAD_OPCODE,
    CAP,
    HEAD,
    OK,
    Owner,
    Shelf,
    members,
    owner,
)
from virtio_py.admin.client import AdminClient, AdminFailed, GroupClient
from virtio_py.admin.functions import enabled_functions
from virtio_py.admin.layout import (
    GroupType,
    Opcode,
    bits_of,
    numbers_of,
    virtio_admin_cmd,
    virtio_admin_cmd_list,
    virtio_admin_cmd_status,
)
from virtio_py.admin.member import Member
from virtio_py.device import QueueSpec
from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.driver import Driver
from virtio_py.errors import UsageError
from virtio_py.pci.extended_sriov import pci_sriov
from virtio_py.resources import AdminQualifier, AdminStatus, Capability, ResourceType
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceStatus, Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports.in_process import InProcess

SELF, SR_IOV = GroupType.SELF, GroupType.SR_IOV


def command_list(*opcodes: int) -> bytes:
    return bits_of(opcodes, virtio_admin_cmd_list, "device_admin_cmd_opcodes")


def listed(found: Owner, group: int = SELF) -> frozenset[int]:
    return numbers_of(found.send(Opcode.LIST_QUERY, group).result)


def shelf_and_functions() -> tuple[Owner, Shelf]:
    shelf = Shelf()
    return owner(shelf, members(2)), shelf


# The device: what is judged, and in which order


@pytest.mark.clause(
    "admin.device.group-cmds.1",
    "admin.device.group-cmds.2",
    "admin.device.group-cmds.3",
    "admin.device.group-cmds.4",
    "admin.device.group-cmds.5",
    "admin.device.group-cmds.6",
    "admin.device.group-cmds.8",
)
def test_the_group_is_judged_before_the_opcode_and_that_before_the_member() -> None:
    found, _ = shelf_and_functions()
    found.use_all(SELF)
    found.use_all(SR_IOV)
    assert found.send(0x7777, group=9, member=5).state == BAD_GROUP
    assert found.send(0x7777, group=SR_IOV, member=5).state == BAD_OPCODE
    assert found.send(Opcode.DEV_MODE_SET, group=SR_IOV, member=5).state == BAD_MEMBER
    assert found.send(Opcode.CAP_ID_LIST_QUERY, group=SELF, member=1).state == BAD_MEMBER
    assert found.send(Opcode.DEV_MODE_SET, group=SR_IOV, member=2).state == OK
    assert found.carrier.end.read_status() & DeviceStatus.DEVICE_NEEDS_RESET == 0


@pytest.mark.clause("admin.device.group-cmds.7", "admin.device.group-cmds.9")
@given(st.integers(0, 0xFFFF), st.integers(0, 3), st.integers(0, 4), st.binary(max_size=48))
def test_a_command_that_fails_changes_nothing(opcode: int, group: int, member: int, data: bytes) -> None:
    found, shelf = shelf_and_functions()
    found.use_all(SELF)
    before = (shelf.limit, dict(shelf.things), listed(found), found.carrier.end.read_status())
    answer = found.send(opcode, group, member, data)
    if answer.state != OK:
        assert (shelf.limit, dict(shelf.things), listed(found), found.carrier.end.read_status()) == before
        assert answer.state[0] != AdminStatus.OK


@pytest.mark.clause(
    "admin.device.group-cmds.14",
    "admin.device.group-cmds.15",
    "admin.device.group-cmds.16",
    "admin.device.group-cmds.17",
    "admin.device.group-cmds.12",
    "admin.device.group-cmds.13",
)
def test_only_commands_that_were_listed_as_used_are_legal_for_each_group_apart() -> None:
    found, _ = shelf_and_functions()
    assert found.send(Opcode.CAP_ID_LIST_QUERY).state == BAD_OPCODE
    assert found.send(Opcode.LIST_USE, data=command_list(0, 1, Opcode.CAP_ID_LIST_QUERY)).state == OK
    assert found.send(Opcode.CAP_ID_LIST_QUERY).state == OK
    assert found.send(Opcode.DEVICE_CAP_GET).state == BAD_OPCODE
    assert found.send(Opcode.DEV_MODE_SET, SR_IOV, 1).state == BAD_OPCODE
    assert listed(found, SELF) != listed(found, SR_IOV)
    found.use_all(SR_IOV)
    assert found.send(Opcode.DEV_MODE_SET, SR_IOV, 1).state == OK
    assert found.send(Opcode.LIST_USE, data=command_list(0, 1)).state == OK
    assert found.send(Opcode.CAP_ID_LIST_QUERY).state == BAD_OPCODE


@pytest.mark.clause("admin.device.group-cmds.10", "admin.device.group-cmds.11")
def test_a_list_that_is_of_no_use_is_refused() -> None:
    found, _ = shelf_and_functions()
    assert found.send(Opcode.LIST_USE, data=command_list(0, 1, 0x40)).state == BAD_FIELD
    assert found.send(Opcode.LIST_USE, data=command_list(0, 1, Opcode.RESOURCE_OBJ_DESTROY)).state == BAD_FIELD
    assert found.send(Opcode.LIST_USE, SR_IOV, 0, command_list(0, 1, Opcode.DEV_PARTS_GET)).state == BAD_FIELD
    whole = command_list(0, 1, Opcode.RESOURCE_OBJ_CREATE, Opcode.RESOURCE_OBJ_DESTROY)
    assert found.send(Opcode.LIST_USE, data=whole).state == OK


@pytest.mark.clause(
    "admin.device.group-cmds.18",
    "admin.device.group-cmds.20",
    "admin.device.group-cmds.21",
    "admin.device.group-cmds.14",
)
def test_after_a_reset_the_same_list_is_there_and_may_be_used_again() -> None:
    found, _ = shelf_and_functions()
    before = {group: listed(found, group) for group in (SELF, SR_IOV)}
    found.use_all(SELF)
    found.driver.start()
    assert found.send(Opcode.CAP_ID_LIST_QUERY).state == BAD_OPCODE
    for group, opcodes in before.items():
        assert listed(found, group) >= opcodes
        assert found.send(Opcode.LIST_USE, group, 0, command_list(*opcodes)).state == OK


@pytest.mark.clause("admin.device.group-cmds.18", "admin.device.group-cmds.19")
def test_commands_may_come_and_do_not_go() -> None:
    device = Fickle(has=False)
    found = owner(device)
    few = listed(found)
    device.has = True
    many = listed(found)
    assert few < many
    found.use_all()
    device.has = False
    assert listed(found) == many
    assert numbers_of(found.send(Opcode.CAP_ID_LIST_QUERY).result) == set()
    assert found.send(Opcode.DEVICE_CAP_GET, data=CAP.to_bytes(8, "little")).state[0] == AdminStatus.ENXIO


@define(eq=False)
class Fickle(Shelf):
    """A shelf that is not always one."""

    has: bool = field(default=True, kw_only=True)

    def capabilities(self) -> dict[int, Capability]:
        return Shelf.capabilities(self) if self.has else {}

    def resource_types(self) -> dict[int, ResourceType]:
        return Shelf.resource_types(self) if self.has else {}


def sriov(**changes: Any) -> bytearray:
    values = pci_sriov.decode(enabled_functions(2))
    return bytearray(pci_sriov.encode(**(values._asdict() | changes)))


@pytest.mark.clause("admin.device.group-cmds.23", "admin.device.group-cmds.24")
def test_without_virtual_functions_there_is_no_group_of_them() -> None:
    capability = sriov(sriov_control={"vf_enable": 0})
    found = owner(None, members(2), capability=capability)
    opcodes = [*Opcode, 0x1234]
    assert {found.send(opcode, SR_IOV, 1).state for opcode in opcodes} == {BAD_GROUP}
    assert {owner(None, members(1), capability=None).send(opcode, SR_IOV, 1).state for opcode in opcodes} == {BAD_GROUP}
    assert {owner().send(opcode, SR_IOV, 1).state for opcode in opcodes} == {BAD_GROUP}
    capability[:] = sriov(num_vfs=1)
    found.use_all(SR_IOV)
    states = {member: found.send(Opcode.DEV_MODE_SET, SR_IOV, member).state for member in (0, 1, 2, 3, 1 << 63)}
    assert states == {0: BAD_MEMBER, 1: OK, 2: BAD_MEMBER, 3: BAD_MEMBER, 1 << 63: BAD_MEMBER}


def test_more_functions_than_there_are_devices_do_not_exist() -> None:
    found = owner(None, members(1), capability=sriov(num_vfs=2))
    found.use_all(SR_IOV)
    assert found.send(Opcode.DEV_MODE_SET, SR_IOV, 2).state == BAD_MEMBER


# The device: lengths


@pytest.mark.clause("admin.device.admin-vq.1", "admin.device.admin-vq.2", "admin.device.admin-vq.6")
@given(st.data())
def test_a_command_cut_short_is_the_command_with_zeros(data: st.DataObject) -> None:
    found, shelf = shelf_and_functions()
    found.use_all()
    set_cap = virtio_admin_cmd.encode(opcode=Opcode.DRIVER_CAP_SET) + CAP.to_bytes(8, "little") + b"\5"
    readable, writable = set_cap[: data.draw(st.integers(1, len(set_cap)))], data.draw(st.integers(0, 16))
    whole = readable.ljust(len(set_cap), b"\0")
    expected = owner_after(whole)
    answer, length = found.raw(readable, writable)
    assert length == min(writable, len(expected[0]))
    assert answer[:length] == expected[0][:length]
    assert shelf.limit == expected[1]


def owner_after(readable: bytes) -> tuple[bytes, int]:
    found, shelf = shelf_and_functions()
    found.use_all()
    answer, length = found.raw(readable, 64)
    return answer[:length], shelf.limit


@pytest.mark.clause("admin.device.admin-vq.3", "admin.device.admin-vq.4", "admin.device.admin-vq.6")
@given(st.binary(max_size=5000), st.integers(0, 3000))
def test_what_is_too_long_is_ignored(surplus: bytes, room: int) -> None:
    found, _ = shelf_and_functions()
    found.use_all()
    get_cap = virtio_admin_cmd.encode(opcode=Opcode.DEVICE_CAP_GET) + CAP.to_bytes(8, "little")
    plain, used = found.raw(get_cap, HEAD + 8)
    assert used == HEAD + 8
    answer, length = found.raw(get_cap + surplus, HEAD + 8 + room)
    assert (answer[:length], length) == (plain, used)


@pytest.mark.clause("admin.device.admin-vq.5", "admin.device.admin-vq.7", "admin.device.admin-vq.8")
@pytest.mark.parametrize("opcode", [*Opcode, 0x5555])
def test_what_is_written_is_whole_units_that_begin_with_a_status(opcode: int) -> None:
    found, _ = shelf_and_functions()
    for group in (SELF, SR_IOV):
        found.use_all(group)
        answer, length = found.raw(virtio_admin_cmd.encode(opcode=opcode, group_type=group, group_member_id=group), 256)
        assert length >= HEAD
        assert length % 8 == 0
        head = virtio_admin_cmd_status.decode(answer)
        assert head.status in list(AdminStatus)
        assert (head.status == 0) == (head.status_qualifier == 0)
        assert head.reserved2 == bytes(4)


@pytest.mark.clause("admin.device.admin-vq.5")
def test_a_result_of_known_size_is_zero_when_the_command_fails() -> None:
    found, _ = shelf_and_functions()
    found.use_all(SR_IOV)
    answer = found.send(Opcode.DEV_PARTS_METADATA_GET, SR_IOV, 1)
    assert answer.state[0] == AdminStatus.ENXIO
    assert answer.result == bytes(8)


# The device: order


@define(eq=False)
class Busy(EntropyDevice):
    """A device that never finishes on its own account."""

    held: Chain | None = None

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        chain.defer()
        self.held = chain

    def busy(self) -> bool:
        return self.held is not None

    def reset(self) -> None:
        self.held = None

    def finish(self) -> None:
        if self.held is not None:
            self.held.complete()
        self.held = None


@pytest.fixture
def slow() -> tuple[Owner, Busy, InProcess]:
    device = Busy()
    carrier = InProcess(device, memory_size=1 << 20)
    driver = EntropyDriver(carrier).start()
    buffer = carrier.arena.allocate(16)
    driver.queues[0].add([], [buffer.extent])
    driver.kick(driver.queues[0])
    while carrier.step():
        pass
    assert device.busy()
    found = owner(None, [Member(carrier.end)], queues=2)
    found.use_all(SR_IOV)
    return found, device, carrier


def posted(found: Owner, queue: int, *commands: bytes) -> Callable[[], list[int]]:
    """Adds commands to an administration virtqueue; the call returns how many of them were answered, by number."""
    ring, arena, driver = found.driver.admin_queues[queue], found.carrier.arena, found.driver
    for number, command in enumerate(commands):
        readable, writable = arena.allocate(len(command)), arena.allocate(64)
        readable.view[:] = command
        ring.add([readable.extent], [writable.extent], number)
    driver.kick(ring)
    done: list[int] = []

    def answered() -> list[int]:
        while found.carrier.step():
            pass
        done.extend(token for token, _ in ring.take_used())
        return done

    return answered


STOP = virtio_admin_cmd.encode(opcode=Opcode.DEV_MODE_SET, group_type=SR_IOV, group_member_id=1) + b"\1" + bytes(7)
RESUME = STOP[: virtio_admin_cmd.size] + bytes(8)
QUERY = virtio_admin_cmd.encode(opcode=Opcode.LIST_QUERY)


@pytest.mark.clause(
    "admin.device.admin-vq.9",
    "admin.device.admin-vq.10",
    "admin-parts.device.device-parts.9",
    "admin.driver.admin-vq.8",
)
def test_a_queue_is_served_in_order_and_another_one_meanwhile(slow: tuple[Owner, Busy, InProcess]) -> None:
    found, device, _ = slow
    first = posted(found, 0, STOP, QUERY)
    assert first() == []
    assert posted(found, 1, QUERY)() == [0]
    assert first() == []
    device.finish()
    found.functions.members[0].end.settled()  # type: ignore[union-attr]  # the owner of this test has functions
    assert first() == [0, 1]


@pytest.mark.parametrize("by", ["resume", "reset of the member"])
def test_a_stop_that_waits_ends_with_what_it_waits_for(slow: tuple[Owner, Busy, InProcess], by: str) -> None:
    found, _, carrier = slow
    first = posted(found, 0, STOP)
    assert first() == []
    if by == "resume":
        assert posted(found, 1, RESUME)() == [0]
        assert carrier.end.running
    else:
        carrier.end.write_status(0)
    assert first() == [0]


def test_a_reset_of_the_owner_forgets_a_stop_that_waits(slow: tuple[Owner, Busy, InProcess]) -> None:
    found, device, carrier = slow
    posted(found, 0, STOP, QUERY)()
    found.driver.start()
    device.finish()
    carrier.end.settled()
    assert found.send(Opcode.LIST_QUERY).state == OK


def test_a_queue_reset_forgets_the_commands_of_its_queue(slow: tuple[Owner, Busy, InProcess]) -> None:
    found, device, carrier = slow
    posted(found, 0, STOP, QUERY)()
    found.carrier.end.reset_queue(found.driver.admin_queues[0].index)
    device.finish()
    carrier.end.settled()
    assert posted(found, 1, QUERY)() == [0]


def test_an_administration_virtqueue_takes_its_feature() -> None:
    found = owner()
    driver = EntropyDriver(found.carrier).start()
    assert not driver.has(Feature.ADMIN_VQ)
    assert driver.admin_queues == []
    index = found.carrier.admin_queues.start
    queue = driver._enabled_queue(index, 8)
    queue.add([found.carrier.arena.allocate(24).extent], [found.carrier.arena.allocate(24).extent])
    driver.kick(queue)
    while found.carrier.step():
        pass
    assert found.carrier.end.read_status() & DeviceStatus.DEVICE_NEEDS_RESET


def test_queues_of_commands_are_behind_the_others_and_not_counted() -> None:
    end = owner(queues=3).carrier.end
    assert end.num_queues == 1
    assert end.admin_queues == range(1, 4)


# The driver


class Script:
    """An Administrator that answers with prepared bytes; the last answer again and again."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[bytes, int]] = []

    def queues(self) -> list[QueueSpec]:
        return [QueueSpec("adminq1", 16)]

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        self.asked.append((chain.readable.read_all(), chain.writable.remaining))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        chain.writable.write(answer[: chain.writable.remaining])

    def queue_reset(self, index: int) -> None:
        pass

    def reset(self) -> None:
        pass


def scripted(*answers: bytes, **options: Any) -> tuple[AdminClient, Script]:
    script = Script(*answers)
    carrier = InProcess(EntropyDevice(), memory_size=1 << 20, admin=script)
    driver: Driver = EntropyDriver(carrier, features=RING_FEATURES | bit(Feature.ADMIN_VQ)).start()
    return AdminClient(driver, **options), script


def status(number: int, qualifier: int = 0) -> bytes:
    return virtio_admin_cmd_status.encode(status=number, status_qualifier=qualifier)


@pytest.mark.clause("admin.driver.group-cmds.9", "admin.driver.group-cmds.10")
@given(st.integers(1, 0xFFFF), st.integers(0, 0xFFFF))
def test_reserved_numbers_mean_what_the_plainest_ones_do(number: int, qualifier: int) -> None:
    client, _ = scripted(status(number, qualifier), retries=0)
    with pytest.raises(AdminFailed) as failed:
        client.send(SELF, 7, 0, b"", 0)
    assert failed.value.status == (number if number in list(AdminStatus) else AdminStatus.EINVAL)
    known = qualifier in list(AdminQualifier)
    assert failed.value.qualifier == (qualifier if known else AdminQualifier.INVALID_COMMAND)


@pytest.mark.clause("admin.driver.admin-vq.9")
def test_a_command_is_sent_again_if_the_device_says_so() -> None:
    client, script = scripted(status(11, 7), status(11, 7), status(0))
    assert client.send(SELF, 7, 0, b"", 0) == b""
    assert len(script.asked) == 3
    client, script = scripted(status(11, 7), retries=4)
    with pytest.raises(AdminFailed, match="EAGAIN"):
        client.send(SELF, 7, 0, b"", 0)
    assert len(script.asked) == 5


@pytest.mark.clause("admin.driver.admin-vq.6", "admin.driver.admin-vq.7")
def test_a_status_that_is_not_written_is_zero() -> None:
    client, _ = scripted(status(22, 3)[:2])
    with pytest.raises(AdminFailed, match="OK"):
        client.send(SELF, 7, 0, b"", 16)
    client, _ = scripted(b"")
    assert client.send(SELF, 7, 0, b"", 16) == b""


@pytest.mark.clause("admin.driver.admin-vq.6")
@pytest.mark.parametrize("length", range(24))
def test_what_the_device_did_not_write_is_not_there(length: int) -> None:
    client, _ = scripted((status(0) + b"\x5a" * 16)[:length])
    for _ in range(2):
        assert client.send(SELF, 7, 0, b"", 16) == b"\x5a" * max(length - HEAD, 0)


@pytest.mark.clause(
    "admin.driver.admin-vq.1",
    "admin.driver.admin-vq.2",
    "admin.driver.admin-vq.3",
    "admin.driver.admin-vq.4",
    "admin.driver.admin-vq.5",
)
@given(st.binary(max_size=40), st.integers(0, 40))
def test_both_parts_are_whole_units_and_never_empty(data: bytes, room: int) -> None:
    every = command_list(*Opcode)
    client, script = scripted(status(0) + every)
    group = GroupClient(client, SELF)
    group.command(Opcode.DEVICE_CAP_GET, 0, data, room)
    for readable, writable in script.asked:
        assert len(readable) >= virtio_admin_cmd.size
        assert writable >= HEAD
        assert len(readable) % 8 == writable % 8 == 0
    assert script.asked[-1][0][virtio_admin_cmd.size :].startswith(data)


@pytest.mark.clause(
    "admin.driver.group-cmds.1",
    "admin.driver.group-cmds.2",
    "admin.driver.group-cmds.4",
    "admin.driver.group-cmds.5",
    "admin.driver.group-cmds.6",
    "admin.driver.group-cmds.7",
)
def test_a_driver_asks_then_says_what_it_uses_and_uses_no_more() -> None:
    client, script = scripted(status(0) + command_list(0, 1, 7, 8, 0x13, 0x50))
    group = GroupClient(client, SELF, known=frozenset({Opcode.LIST_QUERY, Opcode.LIST_USE, Opcode.DEVICE_CAP_GET}))
    opcodes = [virtio_admin_cmd.decode(readable).opcode for readable, _ in script.asked]
    assert opcodes == [Opcode.LIST_QUERY, Opcode.LIST_USE]
    assert numbers_of(script.asked[1][0][virtio_admin_cmd.size :]) == {0, 1, 8}
    with pytest.raises(UsageError, match="DRIVER_CAP_SET is not among"):
        group.command(Opcode.DRIVER_CAP_SET, 0)
    with pytest.raises(UsageError, match="has not reported command 0x9"):
        group.use([0, 1, 9])
    assert len(script.asked) == 2


def test_a_group_that_is_not_there_is_found_out_by_asking() -> None:
    with pytest.raises(AdminFailed) as failed:
        GroupClient(AdminClient(owner().driver), SR_IOV, registers=lambda: pci_sriov.decode(sriov()))
    assert failed.value.qualifier == AdminQualifier.INVALID_GROUP


@pytest.mark.clause("admin.driver.group-cmds.3", "admin.driver.group-cmds.8")
def test_a_driver_may_change_its_list_and_lock_the_lists_away() -> None:
    found, _ = shelf_and_functions()
    group = found.client()
    group.use(group.supported - {Opcode.LIST_QUERY})
    with pytest.raises(UsageError):
        group.command(Opcode.LIST_QUERY, 0)
    assert found.send(Opcode.LIST_QUERY).state == BAD_OPCODE
    group.use({Opcode.CAP_ID_LIST_QUERY})
    assert found.send(Opcode.LIST_USE, data=command_list(0, 1)).state == BAD_OPCODE
    assert group.command(Opcode.CAP_ID_LIST_QUERY, 0, room=8) == b"\1" + bytes(7)


@pytest.mark.clause("admin.driver.group-cmds.11", "admin.driver.group-cmds.12")
@pytest.mark.parametrize(
    "changes",
    [
        {"num_vfs": 1},
        {"sriov_control": {"vf_enable": 0}},
        {"sriov_capabilities": {"vf_migration_capable": 1}},
    ],
)
def test_a_function_is_addressed_while_it_is_there(changes: dict[str, Any]) -> None:
    capability = sriov()
    found = owner(None, members(2), capability=capability)
    group = found.client(SR_IOV)
    group.command(Opcode.DEV_MODE_SET, 2, bytes(1))
    capability[:] = sriov(**changes)
    with pytest.raises(UsageError):
        group.command(Opcode.DEV_MODE_SET, 2, bytes(1))
    with pytest.raises(UsageError):
        group.command(Opcode.DEV_MODE_SET, 0, bytes(1))


def test_a_client_takes_a_queue_and_the_functions() -> None:
    with pytest.raises(UsageError, match="no administration virtqueue"):
        AdminClient(EntropyDriver(InProcess(EntropyDevice(), memory_size=1 << 20)).start())
    with pytest.raises(UsageError, match="how many"):
        GroupClient(AdminClient(owner().driver), SR_IOV)


@pytest.mark.clause("admin.driver.admin-vq.8")
def test_commands_on_several_queues_are_carried_out_in_the_order_of_the_calls() -> None:
    shelf = Shelf()
    found = owner(shelf, queues=3)
    found.use_all()
    client = AdminClient(found.driver)
    for n in range(9):
        data = CAP.to_bytes(8, "little") + bytes([n % 8])
        client.send(SELF, Opcode.DRIVER_CAP_SET, 0, data, 0, queue=n % 3)
        assert shelf.limit == n % 8
