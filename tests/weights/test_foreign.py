from __future__ import annotations

import gzip

import pytest

from surgery.weights import foreign


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (gzip.compress(b"x", mtime=0), "this file is packed with gzip"),
        (b"GGUF\x03", "this is a GGUF file"),
        (b"\x93NUMPY\x01", "this is a NumPy array"),
        (b"<?xml version='1.0'?>", "this is XML text: the download failed"),
        (b"  <HTML>", "this is a web page: the download failed"),
    ],
)
def test_other_formats_are_called_by_their_name(head: bytes, what: str):
    error = foreign.refusal(head, len(head), "x.pth")
    assert error.what == what
    assert error.fix
    assert error.where == "x.pth"


def test_what_is_not_known_shows_how_it_begins():
    assert foreign.recognise(b"abcdefghij") is None
    assert repr(b"abcdefgh") in str(foreign.refusal(b"abcdefghij", 10, "x").found)
