"""What a disk may hold after the power went: every prefix of a log of system calls, with all that was not synced in doubt.

Files are inodes, folders are inodes with entries; a name is only as safe as the last fsync of its folder, a byte as the last
fsync of its file. Un-synced data is there, zeros, half, or missing; un-synced names are there, or not: all of them, and each
alone. Source of the model: Pillai et al. 2014, "All File Systems Are Not Created Equal".
"""

import itertools
import shutil
from pathlib import Path


class Disk:
    """Two views of a tree: what a process sees, and what is durable."""

    def __init__(self):
        self.data, self.safe = {}, {}  # inode => bytes, now and durable
        self.entries, self.kept = {0: {}}, {0: {}}  # folder inode => {name: inode}, now and durable
        self.ids = itertools.count(1)

    def _find(self, path):
        inode = 0
        for part in Path(path).parts:
            inode = self.entries[inode][part]
        return inode

    def _folder(self, path):
        return self._find(Path(path).parent), Path(path).name

    def apply(self, entry):
        operation, path, *rest = entry
        if operation == "fsync":
            inode = self._find(path)
            if inode in self.entries:
                self.kept[inode] = dict(self.entries[inode])
            else:
                self.safe[inode] = self.data[inode]
            return
        folder, name = self._folder(path)
        if operation in ("create", "mkdir"):
            inode = next(self.ids)
            self.entries[folder][name] = inode
            if operation == "mkdir":
                self.entries[inode], self.kept[inode] = {}, {}
            else:
                self.data[inode], self.safe[inode] = b"", None
        elif operation == "write":
            self.data[self._find(path)] += rest[0]
        elif operation == "rename":
            target, new = self._folder(rest[0])
            self.entries[target][new] = self.entries[folder].pop(name)
        elif operation == "rmtree":
            del self.entries[folder][name]

    def states(self):
        """Trees, as nested dicts of bytes, that may be found after the power went."""
        doubtful = [inode for inode in self.entries if self.entries[inode] != self.kept[inode]]
        choices = [frozenset(), frozenset(doubtful), *(frozenset([inode]) for inode in doubtful)]
        for lost in dict.fromkeys(choices):
            for damage in ("full", "zeros", "half", "empty"):
                yield self._tree(0, lost, damage)

    def _tree(self, inode, lost, damage):
        if inode not in self.entries:
            return self._bytes(inode, damage)
        names = self.kept[inode] if inode in lost else self.entries[inode]
        return {name: self._tree(below, lost, damage) for name, below in names.items()}

    def _bytes(self, inode, damage):
        data, safe = self.data[inode], self.safe[inode]
        if safe == data or damage == "full":
            return data
        kept = safe or b""
        return {
            "zeros": kept + bytes(len(data) - len(kept)),
            "half": data[: (len(kept) + len(data)) // 2],
            "empty": kept,
        }[damage]


def lay_out(tree, folder):
    """Writes a tree of `states` to the disk, in the place of what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, below in tree.items():
        if isinstance(below, dict):
            lay_out(below, folder / name)
        else:
            (folder / name).write_bytes(below)


def frozen(tree):
    """A tree as something to compare and hash."""
    return tuple((n, frozen(b)) if isinstance(b, dict) else (n, b) for n, b in sorted(tree.items()))
