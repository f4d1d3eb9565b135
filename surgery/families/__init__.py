"""What plugins know of architectures: all that the author of one imports, in one place."""

from surgery.families.family import Family, HeadClaim, HeadKind, WeightReader
from surgery.families.hookspecs import hookimpl

__all__ = ["Family", "HeadClaim", "HeadKind", "WeightReader", "hookimpl"]
