"""Every error that surgery raises on purpose.

SurgeryError
├── ArgumentError            a wrong value handed to a verb (also a ValueError)
├── AddressError             no such module, parameter or buffer (also a KeyError)
├── UnsupportedModelError    lazy, scripted, exported or no model (also a TypeError)
├── WrappedModelError        a changing verb on a model inside DataParallel, DDP or FSDP
├── RecordError              the forward pass could not be recorded
│   └── ExampleError         no example input could be inferred, or the given one does not fit
├── HeadError                which head?
│   ├── NoHeadError          nothing in the model makes classes
│   └── AmbiguousHeadError   several candidates, and nothing that decides
├── PlanError                the operation cannot be done; nothing was touched
│   └── CoverageError        too little of a source of weights fits the model
├── VerificationError        a check failed afterwards; everything was undone
├── UndoError                an outcome cannot be undone (now)
├── WeightsError             a source of weights cannot be read
│   ├── CorruptFileError     the file is broken, or of no format that is known
│   ├── RefusedPickleError   the file asks for code to be run
│   ├── AmbiguousWeightsError    which of these? or: no weights in there
│   └── ChangedFileError     the file is no longer as it was when it was opened
├── RecipeError              a recipe says what cannot be done; nothing was run
│   └── ExpectationError     what a recipe expects does not hold; nothing was written
└── PluginError              a plugin is broken, misspelt or contradicted
    ├── HookError            a hook implementation with a wrong name or argument
    ├── ClaimConflictError   two plugins claim the same class
    └── ClaimContradictedError   the graph shows something else than the plugin says
"""

from __future__ import annotations


class SurgeryError(Exception):
    """What went wrong, where, what was expected and found, and what to do next.

    Args:
        what: one sentence that says what is wrong.
        where: the full address (or argument, or file) it is about.
        expected: what would have been right.
        found: what is there instead.
        fix: the next step, as code where there is some.

    Example:
        >>> from surgery.errors import SurgeryError
        >>> print(SurgeryError("no such layer", where="fc", fix="surgery.find_heads(model)"))
        no such layer
          where: fc
          next: surgery.find_heads(model)
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: object = None,
        found: object = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.found = found
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        for label, value in (
            ("where", self.where),
            ("expected", self.expected),
            ("found", self.found),
            ("next", self.fix),
        ):
            if value is not None:
                text = str(value).replace("\n", "\n    ")
                lines.append(f"  {label}: {text}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # The keyword fields live in __dict__, which pickle restores after calling the class.
        return (type(self), (self.what,), self.__dict__)


class ArgumentError(SurgeryError, ValueError):
    """An argument of a verb has a value that cannot be right."""


class AddressError(SurgeryError, KeyError):
    """The model has no module, parameter or buffer at this address."""

    __str__ = SurgeryError.__str__


class UnsupportedModelError(SurgeryError, TypeError):
    """This object cannot be operated on at all (lazy, scripted, exported, no module)."""


class WrappedModelError(SurgeryError):
    """A changing verb met DataParallel, DistributedDataParallel or FSDP."""


class RecordError(SurgeryError):
    """The forward pass could not be recorded."""


class ExampleError(RecordError):
    """No example input could be inferred, or the one given does not fit the model."""


class HeadError(SurgeryError):
    """It is not clear which layer is the head."""


class NoHeadError(HeadError):
    """Nothing in the model makes classes."""


class AmbiguousHeadError(HeadError):
    """There are several candidates, and nothing that decides between them."""


class PlanError(SurgeryError):
    """The operation cannot be done. Nothing was touched."""


class CoverageError(PlanError):
    """Too few tensors of a source of weights fit the model by name and shape."""


class VerificationError(SurgeryError):
    """A check failed after the operation. Everything was undone."""


class UndoError(SurgeryError):
    """This outcome cannot be undone, or not yet."""


class WeightsError(SurgeryError):
    """A source of weights cannot be read."""


class CorruptFileError(WeightsError):
    """The file is broken, or of no format that is known."""


class RefusedPickleError(WeightsError):
    """The file asks for code to be run. None was."""


class AmbiguousWeightsError(WeightsError):
    """There are several sources of weights to choose from, or none."""


class ChangedFileError(WeightsError):
    """The file is no longer as it was when it was opened."""


class RecipeError(SurgeryError):
    """A recipe says what cannot be done. It names file, line and column."""


class ExpectationError(RecipeError):
    """What a recipe expects does not hold. Nothing was written."""


class PluginError(SurgeryError):
    """A plugin is broken, misspelt or contradicted."""


class HookError(PluginError):
    """A hook implementation has a name or an argument that the contract does not know."""


class ClaimConflictError(PluginError):
    """Two plugins claim the same class."""


class ClaimContradictedError(PluginError):
    """The graph shows something else than the plugin says."""


class UncorroboratedWarning(UserWarning):
    """A layer was taken for the head on the word of the graph alone."""


class PartialLoadWarning(UserWarning):
    """Some tensors were not loaded: of another shape, or not in the source."""
