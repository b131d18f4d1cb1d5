"""Every error that quantcore raises on purpose.

    QuantcoreError
    ├── InputError            what was given cannot be used; the user can mend it
    │   ├── UnreadableFile        a file is missing, truncated or not of its type
    │   ├── ShortText             a text has too few tokens to be measured
    │   ├── UselessPredictions    what a model predicts is no number, or next to none
    │   ├── UnknownArchitecture   no description of this model family
    │   ├── UnknownFormat         no such format, level or type
    │   ├── UnsupportedTensor     a tensor's shape or values do not fit the format
    │   └── NeedsCalibration      the type cannot be made without an importance matrix
    ├── ResourceError         the machine lacks something now; worth another try
    │   ├── NotEnoughSpace        the disk is, or would become, full
    │   ├── NotEnoughMemory       what was asked for takes more memory than there is
    │   ├── TookTooLong           it was stopped at the time limit that was given
    │   ├── CannotWrite           the system does not let a file be written
    │   └── MissingEngine         an optional package or library is not installed
    └── Cancelled             the caller asked to stop

Messages name the file, tensor or field, give the numbers, and say the way out where there is one.
`retryable` says whether the same call may succeed later without a change by the user.
"""


class QuantcoreError(Exception):
    """Base of all errors raised on purpose."""

    retryable = False


class InputError(QuantcoreError):
    """What was given cannot be used."""


class UnreadableFile(InputError):
    """A file is missing, truncated, or not what its name or header says."""


class ShortText(InputError):
    """A text has too few tokens to be measured."""


class UselessPredictions(InputError):
    """What a model predicts is no number, or so wrong that it must be damaged."""


class UnknownArchitecture(InputError):
    """No description of this model family exists here."""


class UnknownFormat(InputError):
    """No format, level or tensor type goes by this name."""


class UnsupportedTensor(InputError):
    """A tensor's shape or values do not fit the format asked for."""


class NeedsCalibration(InputError):
    """The type is meaningless without an importance matrix."""


class ResourceError(QuantcoreError):
    """The machine lacks something at the moment."""

    retryable = True


class NotEnoughSpace(ResourceError):
    """The disk is full, or the planned file would fill it."""


class NotEnoughMemory(ResourceError):
    """What was asked for takes more memory than there is now."""


class TookTooLong(ResourceError):
    """It was stopped at the time limit that was given."""


class CannotWrite(ResourceError):
    """The system does not let a file be written: a folder is closed, a disk fails."""


class MissingEngine(ResourceError):
    """An optional engine is not installed; the message says how to install it."""

    retryable = False


class Cancelled(QuantcoreError):
    """The caller asked to stop; nothing was left behind."""

    retryable = True
