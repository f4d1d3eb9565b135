"""What plugins know of architectures: all that the author of one imports, in one place."""

from surgery.families.catalog import Catalog
from surgery.families.family import Family, HeadClaim
from surgery.families.hookspecs import hookimpl
from surgery.families.kinds import HeadKind, WeightReader
from surgery.families.wrapping import Wrapping

__all__ = ["Catalog", "Family", "HeadClaim", "HeadKind", "WeightReader", "Wrapping", "hookimpl"]
