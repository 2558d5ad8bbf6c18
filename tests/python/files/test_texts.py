"""Text and JSON as editors of every system write them; what is refused names file and place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mulosd.files import texts
from mulosd.files.texts import encoding_of, parse_json, read_json, read_lines, read_text

TEXT = "a cat\nein Käfer\n\n猫\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_ends_of_lines(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert read_text(path) == TEXT
    assert read_lines(path) == ["a cat", "ein Käfer", "", "猫"]


@pytest.mark.parametrize("mark", ["\ufeff", ""])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_with_and_without_a_mark(tmp_path: Path, encoding: str, mark: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes((mark + "a cat\r\nein Käfer").encode(encoding))
    assert read_lines(path) == ["a cat", "ein Käfer"]


def test_marks_of_joined_files_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("a cat\n".encode("utf-8-sig") + "an owl\n".encode("utf-8-sig"))
    assert read_lines(path) == ["a cat", "an owl"]


def test_other_encodings_are_refused_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a cat\na caf\xe9\n")
    with pytest.raises(
        ValueError, match=r"a\.txt is no UTF-8 text: byte 11 \(line 2\) is 0xe9; .*iconv -f WINDOWS-1252"
    ):
        read_text(path)
    path.write_bytes("cat".encode("utf-16") + b"x")
    with pytest.raises(ValueError, match=r"a\.txt is no UTF-16 text: byte 8"):
        read_text(path)


def test_nul_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a cat\nan\0owl")
    with pytest.raises(ValueError, match=r"a\.txt is no text: there is a NUL character in line 2"):
        read_text(tmp_path / "a.txt")


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lost\.txt cannot be read: no such file"):
        read_text(tmp_path / "lost.txt")
    with pytest.raises(ValueError, match="cannot be read: is a directory"):
        read_text(tmp_path)
    (tmp_path / "large.txt").write_bytes(b"x" * 11)
    with pytest.raises(ValueError, match=r"large\.txt has more than 10 bytes"):
        read_text(tmp_path / "large.txt", limit=10)
    with pytest.raises(ValueError, match="/dev/zero has more than 10 bytes"):
        read_text(Path("/dev/zero"), limit=10)


def test_lines_are_those_of_an_editor(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\fb\u2028c\x85d\ne", encoding="utf-8")
    assert read_lines(tmp_path / "a.txt") == ["a\fb\u2028c\x85d", "e"]
    (tmp_path / "empty.txt").touch()
    assert read_lines(tmp_path / "empty.txt") == []


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\ufeff")))
def test_utf8_is_read_as_it_is(text: str) -> None:
    assert encoding_of(text.encode()) == "utf-8"
    path = Path("/dev/null")
    assert read_text(path) == ""
    assert texts.text_of(_Bytes(text.encode()), "x") == text


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, count: int) -> bytes:
        return self.data[:count]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_refused(data: bytes) -> None:
    try:
        text = texts.text_of(_Bytes(data), "x")
    except ValueError as error:
        text = str(error)
        assert text.startswith("x is no ")
    assert "\0" not in text and "\r" not in text


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plain)
def test_json_is_what_python_reads(value: object) -> None:
    assert parse_json(json.dumps(value), "x") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b": }', r"line 2, column 7: this is no JSON: expecting value"),
        ("", r"line 1, column 1: this is no JSON"),
        ('{"a": 1, "b": 2, "a": 3}', r"the key 'a' is there twice"),
        ('{"a": NaN}', r"NaN is no JSON"),
        ('{"a": -Infinity}', r"-Infinity is no JSON"),
        ('{"a": 1e999}', r"the number 1e999 is too large"),
        ("[" * 66 + "0" + "]" * 66, r"nested more than 64 deep"),
        ("[" * 200_000, r"nested more than 64 deep"),
        ('{"a":' * 200_000, r"nested more than 64 deep"),
        ("9" * 5000, r"x\.json: .*limit"),
        ("[1]", r"must hold a dict at its top level, but holds a list"),
    ],
)
def test_errors_of_json_name_file_and_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path, kind=dict)
    assert "x.json" in str(caught.value) and "\n" not in str(caught.value)


def test_json_of_windows(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes('{"a": "Käfer"}\r\n'.encode("utf-8-sig"))
    assert read_json(tmp_path / "x.json", kind=dict) == {"a": "Käfer"}


def test_depth_that_is_allowed() -> None:
    assert parse_json("[" * 64 + "0" + "]" * 64, "x")


def test_line_of_a_line() -> None:
    with pytest.raises(ValueError, match=r"^x, line 7, column 2: this is no JSON"):
        parse_json("[", "x", 7)
    with pytest.raises(ValueError, match=r"^x, line 7: the key 'a' is there twice"):
        parse_json('{"a": 1, "a": 2}', "x", 7)
