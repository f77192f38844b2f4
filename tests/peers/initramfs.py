"""An initial RAM disk for a guest of QEMU's: busybox, some of the host's programs, modules of a kernel, and a script.

It is a cpio archive of the "newc" kind, not compressed: what software emulation would unpack it would rather read.
"""

from __future__ import annotations

import lzma
import re
import shlex
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from attrs import define, field, frozen

from tests.peers.require import require

GUEST = Path(__file__).parent / "guest"


@frozen
class Kernel:
    """An installed kernel: its image, and where its modules are."""

    image: Path
    modules: Path

    def files(self, names: Iterable[str]) -> list[Path]:
        """The files of these modules, each behind those that it depends on; of what is built in, none."""
        table = dict(line.split(":", 1) for line in (self.modules / "modules.dep").read_text().splitlines())
        builtin = (self.modules / "modules.builtin").read_text()
        ordered: dict[str, None] = {}
        for name in names:
            spelt = rf"(?:.*/)?{name.replace('_', '[-_]')}\.ko(?:\.xz)?"
            found = [path for path in table if re.fullmatch(spelt, path)]
            assert found or re.search(rf"(?m)^{spelt}$", builtin), f"no module {name} in {self.modules}"
            for path in found:
                ordered.update(dict.fromkeys([*reversed(table[path].split()), path]))
        return [self.modules / path for path in ordered]


def installed_kernel() -> Kernel:
    """The kernel that Debian's package for cloud guests has put here. Where there is none the test is skipped; under CI
    it fails."""
    [image] = require("linux-cloud")
    return Kernel(Path(image), Path("/lib/modules") / Path(image).name.removeprefix("vmlinuz-"))


@define
class Archive:
    """A cpio archive in the making: files, symbolic links and directories by their paths."""

    _data: bytearray = field(init=False, factory=bytearray)
    _names: set[str] = field(init=False, factory=set)

    def add(self, name: str, content: bytes, mode: int = 0o755) -> None:
        """A file, and the directories that it lies in."""
        self._parents(name)
        self._entry(name, content, stat.S_IFREG | mode)

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._parents(name)
        self._entry(name, target.encode(), stat.S_IFLNK | 0o777)

    def directory(self, name: str) -> None:
        """A directory."""
        self._parents(f"{name}/x")

    def program(self, path: str) -> None:
        """A host's program, and the libraries that it is linked with."""
        for file in [path, *_libraries(path)]:
            if file.lstrip("/") not in self._names:
                self.add(file.lstrip("/"), Path(file).read_bytes())

    def finish(self) -> bytes:
        """The archive."""
        self._entry("TRAILER!!!", b"", 0)
        return bytes(self._data)

    def _parents(self, name: str) -> None:
        for parent in reversed(Path(name).parents[:-1]):
            if str(parent) not in self._names:
                self._entry(str(parent), b"", stat.S_IFDIR | 0o755)

    def _entry(self, name: str, content: bytes, mode: int) -> None:
        self._names.add(name)
        encoded = name.encode() + b"\0"
        numbers = (len(self._names), mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._data += b"070701" + b"".join(b"%08x" % number for number in numbers) + encoded
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)


def _libraries(program: str) -> Iterator[str]:
    listed = subprocess.run(["ldd", program], check=False, capture_output=True, text=True).stdout
    return (path for path in re.findall(r"(/\S+) \(0x", listed))


def build(path: Path, kernel: Kernel, modules: Sequence[str], programs: Sequence[str], script: Sequence[str]) -> None:
    """Writes an initial RAM disk that loads `modules` and runs guest/`script`, a name and its arguments."""
    archive = Archive()
    [busybox] = require("busybox")
    archive.add("bin/busybox", Path(busybox).read_bytes())
    archive.link("bin/sh", "busybox")
    for directory in ("dev", "proc", "sys", "run", "tmp", "mnt"):
        archive.directory(directory)
    for program in programs:
        archive.program(program)
    for number, file in enumerate(kernel.files(modules)):
        content = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
        archive.add(f"modules/{number:02}-{file.name.removesuffix('.xz')}", content)
    name, *arguments = script
    archive.add("init", (GUEST / "qemu_init.sh").read_bytes())
    archive.add(name, (GUEST / name).read_bytes())
    archive.add("job", f"exec sh {shlex.join([f'/{name}', *arguments])}\n".encode())
    path.write_bytes(archive.finish())
