"""Models whose parameters cost nothing until they are filled."""

from surgery.deferred.construct import Deferred, construct

__all__ = ["Deferred", "construct"]
