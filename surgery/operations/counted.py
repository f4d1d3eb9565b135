"""What a head counts, classes or keypoints: how errors speak of them, and what names them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counted:
    """What the outputs of a head stand for.

    Attributes:
        one: what a person calls it.
        many: several of them.
        verb: what changes their number.
        number: the argument that gives the new number.
        new: the argument that names the new ones.
        old: the argument that names the old ones.
        published: where an entry of pretrained weights lists their names, in its ``meta``.
        sample: two names, for showing how they are given.
    """

    one: str
    many: str
    verb: str
    number: str
    new: str
    old: str
    published: str
    sample: tuple[str, str]


CLASSES = Counted(
    one="class",
    many="classes",
    verb="replace_head",
    number="num_classes",
    new="classes",
    old="old_classes",
    published="categories",
    sample=("cat", "dog"),
)
KEYPOINTS = Counted(
    one="keypoint",
    many="keypoints",
    verb="replace_keypoints",
    number="num_keypoints",
    new="keypoints",
    old="old_keypoints",
    published="keypoint_names",
    sample=("nose", "left_eye"),
)
