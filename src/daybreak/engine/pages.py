"""Keys and values in pages of 16 places, which texts that start alike share.

A layer that sees only a window of latest keys gives the pages behind it back. Layers of the same window have
their pages in common: they form a group. What texts leave behind stays as long as there is room, for others
that start the same way.
"""

from __future__ import annotations

import hashlib
import mmap
import sys
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from daybreak.architecture import Architecture
from daybreak.engine.logprobs import TokenLogprob
from daybreak.errors import DaybreakError

PAGE = 16
"""Places of a page; as in attention.h."""
SYSTEM_PAGE = mmap.PAGESIZE
LAZY = sys.platform == "linux"
"""Memory that was given back is zeros when it is used again, and costs nothing until then."""
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
"""Of a number of a key or value, by what they are kept as."""


@dataclass(frozen=True)
class PageLayout:
    """What the pages of an architecture hold."""

    stored: str
    windows: tuple[int | None, ...]
    """Of each group of layers."""
    groups: tuple[int, ...]
    """Of each layer, its group."""
    heads: int
    """Of keys."""
    head_width: int

    @classmethod
    def of(cls, architecture: Architecture, stored: str, parts: int = 1) -> PageLayout:
        """`parts`: with tensor parallelism each process has so many equal parts' share of the heads. Raises
        `DaybreakError` for an unknown kind of numbers.
        """
        if stored not in BYTES:
            raise DaybreakError(f"keys and values as {stored!r} are not supported; say {', '.join(BYTES)}")
        seen = [architecture.window(layer) for layer in range(architecture.layers)]
        windows = tuple(dict.fromkeys(seen))
        return cls(
            stored,
            windows,
            tuple(map(windows.index, seen)),
            (architecture.key_heads or architecture.heads) // parts,
            architecture.head_width,
        )

    @property
    def numbers(self) -> int:
        """Of the keys of one layer in a page, and of its values."""
        return self.heads * self.head_width * PAGE

    @property
    def layer_bytes(self) -> int:
        """Of one layer in a page: keys, values, and with 8 bits a scale for each token and head of both."""
        scales = 2 * self.heads * PAGE * 4 if self.stored == "int8" else 0
        return 2 * self.numbers * BYTES[self.stored] + scales

    def page_bytes(self, group: int) -> int:
        """Whole pages of the system, so that each can be given back to it."""
        size = self.groups.count(group) * self.layer_bytes
        return -(-size // SYSTEM_PAGE) * SYSTEM_PAGE

    def bytes_for(self, places: int, at_once: int = 1) -> int:
        """The most that a text of so many places has, which reads so many `at_once`."""
        pages = -(-places // PAGE)
        kept = [
            pages if window is None else min(pages, (window + at_once) // PAGE + 2) for window in self.windows
        ]
        return sum(count * self.page_bytes(group) for group, count in enumerate(kept))


class _Pool:
    """Memory of one group's pages, zero at first. On Linux it is reserved at once and taken from the system
    as it is used; `limit` may then be more than there is.
    """

    def __init__(self, size: int, limit: int, device: torch.device) -> None:
        self.size = size
        count = max(1, limit // size)
        self._memory: mmap.mmap | None = None
        if device.type == "cpu" and LAZY:
            self._memory = _reserved(count * size, size)
            count = len(self._memory) // size
            self.bytes = torch.frombuffer(self._memory, dtype=torch.uint8)  # [pages * size]
        else:
            self.bytes = torch.zeros(count * size, dtype=torch.uint8, device=device)
        self.base = self.bytes.data_ptr()
        self._next, self._count, self._free = 0, count, array("q")

    @property
    def left(self) -> int:
        """Pages that are not taken."""
        return self._count - self._next + len(self._free)

    def take(self) -> int:
        """The address of a page of zeros; there must be one left."""
        if self._free:
            return self._free.pop()
        self._next += 1
        return self.base + (self._next - 1) * self.size

    def give(self, address: int) -> None:
        start = address - self.base
        if self._memory is not None:
            self._memory.madvise(mmap.MADV_DONTNEED, start, self.size)  # which makes it zeros as well
        else:
            self.bytes[start : start + self.size] = 0
        self._free.append(address)


def _reserved(wanted: int, least: int) -> mmap.mmap:
    """As much address space as is to be had of what is `wanted`."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    while True:
        try:
            return mmap.mmap(-1, wanted, flags=flags)
        except OSError:
            if wanted <= least:
                raise DaybreakError("there is no memory left for keys and values") from None
            wanted = max(least, wanted // 2 // least * least)


@dataclass(eq=False)
class Block:
    """16 places of one text or of several that are alike up to their end."""

    pages: list[int]
    """Addresses by group; 0: given back."""
    holders: list[int]
    """Texts that read each of them."""
    key: bytes | None = None
    """What all tokens up to its end are; None: not to be found by others."""
    scores: dict[int, tuple[TokenLogprob | None, ...]] = field(default_factory=dict)
    """Log-probabilities of its tokens, by how many alternatives were asked for."""


class Pages:
    """All pages of a model. What nobody holds but others may find is given up, the oldest first, when there
    is no room.
    """

    def __init__(self, layout: PageLayout, limit: int, device: torch.device | None = None) -> None:
        self.layout = layout
        self.limit = limit
        """Bytes at most."""
        self.used = 0
        """Bytes of all pages taken."""
        self.groups = range(len(layout.windows))
        place = device or torch.device("cpu")
        sizes = [layout.page_bytes(group) for group in self.groups]
        lazy = place.type == "cpu" and LAZY
        # Memory that is taken at once is for as many pages of each group.
        shares = [limit if lazy else limit * size // sum(sizes) for size in sizes]
        self.pools = [_Pool(size, share, place) for size, share in zip(sizes, shares, strict=True)]
        self._known: dict[bytes, Block] = {}
        self._idle: OrderedDict[tuple[int, int], Block] = OrderedDict()

    @property
    def idle(self) -> int:
        """Bytes that nobody holds: there for the next text that starts alike."""
        return sum(self.pools[group].size for _, group in self._idle)

    def new(self) -> Block | None:
        """16 places, held once; None: there is no room."""
        block = Block([0 for _ in self.groups], [0 for _ in self.groups])
        for group in self.groups:
            address = self._take(group)
            if address is None:
                for taken in range(group):
                    self.release(block, taken)
                return None
            block.pages[group], block.holders[group] = address, 1
        return block

    def hold(self, block: Block, group: int) -> None:
        self._idle.pop((id(block), group), None)
        block.holders[group] += 1

    def release(self, block: Block, group: int) -> None:
        block.holders[group] -= 1
        if block.holders[group]:
            return
        if block.key is not None:
            self._idle[id(block), group] = block
        else:
            self._give(block, group)

    def know(self, block: Block, key: bytes) -> None:
        """Others may find it from now on, unless the same is there already."""
        if key not in self._known:
            block.key = key
            self._known[key] = block

    def find(self, keys: Sequence[bytes]) -> list[Block]:
        """The blocks of the longest known start of a text, whose blocks have these keys."""
        found: list[Block] = []
        for key in keys:
            block = self._known.get(key)
            if block is None or not all(block.pages[group] for group in self._whole()):
                break
            found.append(block)
        while found and not self._reaches(found):
            found.pop()
        return found

    def _reaches(self, blocks: Sequence[Block]) -> bool:
        """Do layers with windows find all that the next token sees?"""
        return all(
            block.pages[group]
            for group in self.groups
            for block in blocks[first_seen(self.layout.windows[group], len(blocks) * PAGE) // PAGE :]
        )

    def _whole(self) -> list[int]:
        return [group for group in self.groups if self.layout.windows[group] is None]

    def _take(self, group: int) -> int | None:
        pool = self.pools[group]
        while self.used + pool.size > self.limit or not pool.left:
            if not self._evict(self.groups if pool.left else (group,)):
                return None
        self.used += pool.size
        return pool.take()

    def _evict(self, groups: Sequence[int]) -> bool:
        """Give up the oldest page of these groups that nobody holds; False: there is none."""
        oldest = next((entry for entry in self._idle if entry[1] in groups), None)
        if oldest is None:
            return False
        self._give(self._idle.pop(oldest), oldest[1])
        return True

    def _give(self, block: Block, group: int) -> None:
        self.pools[group].give(block.pages[group])
        self.used -= self.pools[group].size
        block.pages[group] = 0
        if block.key is not None and not any(block.pages):
            del self._known[block.key]
            block.key = None


class PageTable:
    """The pages of one text."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self.blocks: list[Block] = []
        self._begins = [0 for _ in pages.groups]
        """By group the first block that is held."""
        self._addresses = [array("q") for _ in pages.groups]

    def adopt(self, blocks: Sequence[Block]) -> None:
        """Begin with blocks that `Pages.find` found."""
        assert not self.blocks
        self.blocks = list(blocks)
        for group in self._pages.groups:
            begin = first_seen(self._pages.layout.windows[group], len(blocks) * PAGE) // PAGE
            self._begins[group] = min(begin, len(blocks))
            for block in blocks[self._begins[group] :]:
                self._pages.hold(block, group)
            addresses = [block.pages[group] for block in blocks]
            self._addresses[group] = array("q", [0] * self._begins[group] + addresses[self._begins[group] :])

    def reach(self, end: int) -> bool:
        """Have pages up to place `end`, not with it; False: there is no room."""
        while len(self.blocks) * PAGE < end:
            block = self._pages.new()
            if block is None:
                return False
            self.blocks.append(block)
            for group in self._pages.groups:
                self._addresses[group].append(block.pages[group])
        return True

    def forget(self, place: int) -> None:
        """Give back what a token at `place` and those after it do not see."""
        for group in self._pages.groups:
            begin = first_seen(self._pages.layout.windows[group], place) // PAGE
            while self._begins[group] < begin:
                self._pages.release(self.blocks[self._begins[group]], group)
                self._addresses[group][self._begins[group]] = 0
                self._begins[group] += 1

    def release(self) -> None:
        """Give everything back, the end first: starts are what others have in common."""
        for number in reversed(range(len(self.blocks))):
            for group in self._pages.groups:
                if number >= self._begins[group]:
                    self._pages.release(self.blocks[number], group)
        self.blocks = []
        self._begins = [0 for _ in self._pages.groups]
        self._addresses = [array("q") for _ in self._pages.groups]

    def places_of_lists(self) -> list[int]:
        """By group the address of the list of pages' addresses; true until the table changes."""
        return [addresses.buffer_info()[0] for addresses in self._addresses]

    def numbers(self, group: int) -> list[int]:
        """Of each block the number of its page in the pool. For one given back stands the first that is held:
        it is hidden, but must be of this text, since 0 times another's infinity is not 0.
        """
        pool, addresses = self._pages.pools[group], self._addresses[group]
        first = addresses[min(self._begins[group], len(addresses) - 1)] or pool.base
        return [((address or first) - pool.base) // pool.size for address in addresses]


def first_seen(window: int | None, place: int) -> int:
    """The first place that a token at `place` sees."""
    return 0 if window is None else max(0, place + 1 - window)


def keys_of(tokens: Sequence[int], start: bytes = b"") -> list[bytes]:
    """Of each whole block of a text a key that stands for all tokens up to its end; `start` for what else
    they depend on.
    """
    keys, key = [], hashlib.sha256(start).digest()
    for end in range(PAGE, len(tokens) + 1, PAGE):
        key = hashlib.sha256(key + array("q", tokens[end - PAGE : end]).tobytes()).digest()
        keys.append(key)
    return keys
