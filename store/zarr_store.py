"""Zarr's local store with durable writes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from zarr.storage import LocalStore

from featbench.store.durable import write_durably
from featbench.store.folder import Folder

if TYPE_CHECKING:
    from typing import Self

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype
    from zarr.core.common import AccessModeLiteral


class DurableStore(LocalStore):
    """Zarr's local store, with fsync before and after the rename; writes into an open folder, if one is given."""

    def __init__(self, root: Path | str, *, read_only: bool = False, within: Folder | None = None) -> None:
        super().__init__(root, read_only=read_only)
        self._within = within

    def with_read_only(self, read_only: bool = False) -> Self:
        """Return the same store, read-only or writable."""
        return type(self)(self.root, read_only=read_only, within=self._within)

    async def _open(self, *, mode: AccessModeLiteral | None = None) -> None:
        if self._within is None:
            await super()._open(mode=mode)
        self._is_open = True  # Zarr would create the folder if it has been removed

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read one object; anything but a regular file is treated as absent."""
        is_file = await asyncio.to_thread((self.root / key).is_file)
        return await super().get(key, prototype, byte_range) if is_file else None

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read one object; see `get`."""
        is_file = (self.root / key).is_file()
        return super().get_sync(key, prototype=prototype, byte_range=byte_range) if is_file else None

    async def set(self, key: str, value: Buffer) -> None:
        """Write one object; see `write_durably`."""
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write one object unless it exists: the groups above a new array."""
        if not await self.exists(key):
            await self.set(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write one object; see `write_durably`."""
        self._check_writable()
        if self._within is not None:
            self._within.write(key, value.to_bytes())
        else:
            write_durably(self.root / key, value.to_bytes())
