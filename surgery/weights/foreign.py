"""Files that are no checkpoint this tool reads: what they are, and what to do instead."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.errors import CorruptFileError

_SAVE = "torch.save(model.state_dict(), 'weights.pth') where it was made"
_PLUGIN = "a plugin with surgery_weight_readers can read it, or convert it to safetensors"


@dataclass(frozen=True)
class Kind:
    """A format that is not read here.

    Attributes:
        what: what the file is.
        fix: what to do.
        magic: how it begins, in lower case.
        at: after how many bytes.
    """

    what: str
    fix: str
    magic: bytes
    at: int = 0


_KINDS = (
    Kind(
        "this is a pointer of Git LFS, not the file itself",
        "git lfs pull",
        b"version https://git-lfs",
    ),
    Kind("this is a web page: the download failed", "download it again", b"<!doctype"),
    Kind("this is a web page: the download failed", "download it again", b"<html"),
    Kind("this is XML text: the download failed", "download it again", b"<?xml"),
    Kind("this is an HDF5 file, as Keras writes", _PLUGIN, b"\x89hdf\r\n\x1a\n"),
    Kind("this is a GGUF file", _PLUGIN, b"gguf"),
    Kind("this is a NumPy array", _PLUGIN, b"\x93numpy"),
    Kind("this file is packed with gzip", "gunzip it first", b"\x1f\x8b"),
    Kind("this file is packed with bzip2", "bunzip2 it first", b"bzh"),
    Kind("this file is packed with xz", "unxz it first", b"\xfd7zxz"),
    Kind("this is a tar archive, or a checkpoint from before PyTorch 0.2", _SAVE, b"ustar", 257),
    Kind("this is JSON text, not a file of weights", "read the file it belongs to", b"{"),
)
# Enough to see every magic.
HEAD = 512


def recognise(head: bytes) -> Kind | None:
    """What a file is that is not read here, by its first ``HEAD`` bytes.

    Example:
        >>> recognise(b"GGUF....").what
        'this is a GGUF file'
    """
    text = head.lower().lstrip()
    return next((kind for kind in _KINDS if text[kind.at :].startswith(kind.magic)), None)


def refusal(head: bytes, size: int, where: str) -> CorruptFileError:
    """The error for a file of no known format, which says what it is where that can be seen.

    Args:
        head: its first ``HEAD`` bytes, or all where there are fewer.
        size: its bytes.
        where: its path.

    Returns:
        The error, to be raised.

    Example:
        >>> refusal(b"<html>", 6, "vgg.pth").what
        'this is a web page: the download failed'
    """
    known = "a file of torch.save (zip or legacy) or safetensors"
    kind = recognise(head)
    if kind is not None:
        return CorruptFileError(
            kind.what, where=where, expected=known, found=repr(head[:16]), fix=kind.fix
        )
    if len(head) > 1 and head[0] == 0x80 and head[1] <= 5:
        return CorruptFileError(
            "this is a pickle that torch.save did not write; it was not opened",
            where=where,
            expected=known,
            found=f"a pickle of protocol {head[1]}",
            fix=_SAVE,
        )
    return CorruptFileError(
        "this file is of no format that is known",
        where=where,
        expected=f"{known}, or one that a plugin reads",
        found=f"{size:,} bytes that begin with {head[:8]!r}",
        fix="copy or download it again, or install a plugin that reads it",
    )
