"""JSON: a row per line, one array of rows, or one row over several lines.

Elements of an array are decoded one by one, so memory is bounded.
"""

import codecs
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from s2l_ray.errors import DataError
from s2l_ray.formats import row as limits
from s2l_ray.formats.row import BadRow, NumberedRows, Row, kind_of, not_utf8, too_large
from s2l_ray.input_files import BYTE_ORDER_MARK, InputFile, Warn, open_input, shown

_CHUNK_BYTES = 2**20
_LONGEST_TOKEN = 16
"""An error this close to the end of a window [characters] may only mean that the window ends inside a token."""
_BEHIND_ELEMENT = frozenset(", ]\t\n\r")
_JSON_SPACE = re.compile(r"[ \t\n\r]*")


def read_lines(file: InputFile, on_warning: Warn) -> NumberedRows:
    """Yield the rows of JSON Lines, numbered by physical line."""
    decoder = _RowDecoder()
    yield from _line_rows(file, decoder)
    decoder.warn_of_repeats(file, on_warning)


def read_array(file: InputFile, on_warning: Warn) -> NumberedRows:
    """Yield the rows of a JSON array, numbered by element, or the one row of a file that is an object."""
    decoder = _RowDecoder()
    for number, value, _ in _elements(file, decoder):
        yield number, decoder.check(number, value)
    decoder.warn_of_repeats(file, on_warning)


def copy_lines(file: InputFile, rows: Sequence[int], sink: BinaryIO) -> int:
    """Write the bytes of each chosen line, and a newline."""
    wanted = iter(rows)
    next_row = next(wanted, None)
    written = 0
    for number, _, line in _lines(file):
        if next_row is None:
            break
        if number == next_row and line is not None:
            sink.write(line.removesuffix(b"\n") + b"\n")
            written += 1
            next_row = next(wanted, None)
    return written


def copy_elements(file: InputFile, rows: Sequence[int], sink: BinaryIO) -> int:
    """Write the text of each chosen element, in a new array."""
    wanted = set(rows)
    written = 0
    sink.write(b"[")
    for number, _, text in _elements(file, _RowDecoder()) if rows else ():
        if number in wanted:
            sink.write((b",\n" if written else b"\n") + text.encode())
            written += 1
        if number == rows[-1]:
            break
    sink.write(b"\n]\n")
    return written


class _RowDecoder:
    """Decodes JSON strictly, and tells what the json module lets pass: NaN literals, rows that are no object."""

    def __init__(self) -> None:
        self._repeats = 0
        self._first_repeat: tuple[int, str] | None = None
        self._literal: str | None = None
        self._repeated: str | None = None
        json_decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)
        self._decode: Callable[[str], Any] = json_decoder.decode
        self._raw_decode: Callable[[str, int], tuple[Any, int]] = json_decoder.raw_decode

    def decode(self, text: str) -> Any:
        self._literal = self._repeated = None
        return self._decode(text)

    def raw_decode(self, text: str, start: int) -> tuple[Any, int]:
        self._literal = self._repeated = None
        return self._raw_decode(text, start)

    def check(self, number: int, value: Any) -> Row | BadRow:
        """Return the value decoded last as a row."""
        if self._repeated is not None:
            self._repeats += 1
            self._first_repeat = self._first_repeat or (number, self._repeated)
        if self._literal is not None:
            return BadRow(f"nan_literal: {self._literal} is no JSON; write a number or null")
        if not isinstance(value, dict):
            return BadRow(f"not_an_object: found {kind_of(value)}, expected an object of columns")
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) != len(pairs):
            names = [name for name, _ in pairs]
            self._repeated = next(name for i, name in enumerate(names) if name in names[:i])
        return row

    def _constant(self, literal: str) -> None:
        self._literal = literal

    def warn_of_repeats(self, file: InputFile, on_warning: Warn) -> None:
        """Tell of rows that repeat a key, once for the file."""
        if self._first_repeat is not None:
            number, key = self._first_repeat
            on_warning(
                f"{shown(file.name)}: {self._repeats} rows repeat a key, the first at line {number + 1} "
                f"(`{shown(key)}`); the last value of a key counts."
            )


def _line_rows(file: InputFile, decoder: "_RowDecoder") -> NumberedRows:
    for number, offset, line in _lines(file):
        if line is None:
            yield number, too_large()
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data" and not line.endswith(b"\n"):
                yield number, BadRow("malformed_json: the file ends within a character; it is truncated")
                continue
            raise not_utf8(file, number + 1, offset + error.start, line[error.start]) from error
        try:
            value = decoder.decode(text)
        except json.JSONDecodeError as error:
            yield number, BadRow(f"malformed_json: {error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:
            yield number, BadRow(f"malformed_json: {_beyond_limits(error)}")
        else:
            yield number, decoder.check(number, value)


def _lines(file: InputFile) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (number, byte offset, line with its newline) of lines that are not blank; None in place of a huge line."""
    offset = 0
    with open_input(file) as stream:
        for number in itertools.count():
            line = stream.readline(limits.MAX_ROW_BYTES + 1)
            if not line:
                return
            start, offset = offset, offset + len(line)
            if number == 0 and line.startswith(BYTE_ORDER_MARK):
                start, line = start + len(BYTE_ORDER_MARK), line.removeprefix(BYTE_ORDER_MARK)
            if len(line) > limits.MAX_ROW_BYTES and not line.endswith(b"\n"):
                offset += _skip_line(stream)
                yield number, start, None
            elif not line.isspace() and line:
                yield number, start, line


def _skip_line(stream: BinaryIO) -> int:
    skipped = 0
    while part := stream.readline(_CHUNK_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _elements(file: InputFile, decoder: "_RowDecoder") -> Iterator[tuple[int, Any, str]]:
    """Yield (number, value, text) of every element of a JSON array; an object by itself is the only one."""
    with open_input(file) as stream:
        window = _Window(file, stream)
        number = 0
        if window.peek() == "{":
            yield number, *window.element(decoder, number)
            if window.peek():
                raise window.error("found text after the end of the only object")
            return
        window.take("[", "the array")
        if window.peek() == "]":
            window.take("]", "the array")
        else:
            while True:
                value, text = window.element(decoder, number)
                yield number, value, text
                number += 1
                if window.peek() == "]":
                    window.take("]", "the array")
                    break
                window.take(",", f"row {number}, counted from 0,")
        if window.peek():
            raise window.error("found text after the end of the array")


class _Window:
    """The part of a JSON text that is in memory, and how far it has been read."""

    def __init__(self, file: InputFile, stream: BinaryIO) -> None:
        self._file = file
        self._stream = stream
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._text = ""
        self._at = 0
        self._line = 1
        self._bytes_read = 0

    def peek(self) -> str:
        """Return the next character that is not white space; empty at the end of the file."""
        while True:
            space = _JSON_SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, expected: str, before: str) -> None:
        found = self.peek()
        if found != expected:
            what = f"found {found!r}" if found else "the file ends"
            raise self.error(f"{what} where {before} needs {expected!r}")
        self._at += 1

    def element(self, decoder: _RowDecoder, number: int) -> tuple[Any, str]:
        """Decode the next element; read on as long as it may just not be in the window yet."""
        self.peek()
        while True:
            problem = "the file ends in it or behind it"
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                problem = f"{error.msg} after {error.pos - self._at} characters"
                near_end = error.pos >= len(self._text) - _LONGEST_TOKEN
                whole = not near_end and not error.msg.startswith("Unterminated string")
            except (ValueError, RecursionError) as error:
                problem, whole = _beyond_limits(error), True
            else:
                # At the end of the window, `0` or `0.` may be the beginning of `0.5`; an object ends by itself.
                behind = self._text[end : end + 1]
                ends_here = behind in _BEHIND_ELEMENT if behind else self._text[end - 1] == "}"
                whole = end + _LONGEST_TOKEN < len(self._text) or ends_here
                problem = f"found {behind!r} behind it" if behind else problem
                if whole:
                    text, self._at = self._text[self._at : end], end
                    return value, text
            if len(self._text) - self._at > limits.MAX_ROW_BYTES:
                raise self.error(f"row {number}, counted from 0, is longer than {limits.MAX_ROW_BYTES} characters")
            if whole or not self._more():
                raise self.error(f"row {number}, counted from 0, is malformed: {problem}")

    def error(self, what: str) -> DataError:
        line = self._line + self._text.count("\n", 0, self._at)
        return DataError(
            f"{shown(self._file.name)}:{line}: {what}. Expected one JSON array of rows; mend it there, or write one "
            "row per line (.jsonl), where single bad rows can be set aside."
        )

    def _more(self) -> bool:
        chunk = self._stream.read(max(_CHUNK_BYTES, len(self._text) - self._at))
        pending = len(self._utf8.getstate()[0])
        first = self._bytes_read == 0
        skipped = len(BYTE_ORDER_MARK) if first and chunk.startswith(BYTE_ORDER_MARK) else 0
        try:
            text = self._utf8.decode(chunk[skipped:], final=not chunk)
        except UnicodeDecodeError as error:
            offset = self._bytes_read + skipped - pending + error.start
            line = self._line + self._text.count("\n") + error.object.count(b"\n", 0, error.start)
            raise not_utf8(self._file, line, offset, error.object[error.start]) from error
        self._bytes_read += len(chunk)
        self._line += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + text
        self._at = 0
        return bool(chunk)


def _beyond_limits(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
