"""The errors that extraction raises; each can be fixed by the user, and its text is the whole message.

For callers in Python, those about an argument are ValueErrors, too.
"""

from __future__ import annotations

from featbench.store import BenchError


class ModelError(BenchError, ValueError):
    """A model that can't be built or read, or that lacks what it is asked for."""


class HeadError(BenchError, ValueError):
    """A head that does not exist, can't be built, or doesn't fit the trunk."""


class WeightsError(BenchError):
    """Weights that can't be read or do not fit the model."""


class DataError(BenchError):
    """A data set that can't be listed, or is not as it must be."""


class ChangedError(DataError):
    """Files have changed since they were listed."""


class DatasetError(BenchError, ValueError):
    """A dataset or a loader that features can't be extracted from."""


class ImageError(BenchError):
    """An image that can't be read; where asked for, the run goes on without it."""


class MemberError(ImageError):
    """A member of an archive that can't be read."""


class UnavailableError(BenchError):
    """What stops the reading of every image, and is no image's fault."""


class DecoderError(BenchError):
    """A decoding process could not be started, or has died."""


class OutOfMemoryError(BenchError):
    """The host or the accelerator has no memory left."""


class RemoteError(RuntimeError):
    """An unexpected error in a decoding process; its text is the traceback there."""
