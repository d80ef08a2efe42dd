"""Text files of a question and its answer by turns, a line each, as DeepMind's mathematics data set writes them."""

import itertools
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from s2l_ray.errors import DataError
from s2l_ray.formats import row as limits
from s2l_ray.formats.row import BadRow, NumberedRows, not_utf8
from s2l_ray.input_files import BYTE_ORDER_MARK, InputFile, open_input, shown

COLUMNS = ("question", "answer")


def read_pairs(file: InputFile) -> NumberedRows:
    """Yield the rows, numbered by the physical line of the question.

    Raises:
        DataError: not UTF-8, or a line is too long.
    """
    for number, question, answer in _pairs(file):
        if answer.strip():
            texts = (line.decode().rstrip("\r\n") for line in (question, answer))
            yield number, dict(zip(COLUMNS, texts, strict=True))
        else:
            yield number, BadRow("no_answer: nothing stands behind this question; expected its answer on the next line")


def copy_pairs(file: InputFile, rows: Sequence[int], sink: BinaryIO) -> int:
    """Write the bytes of both lines of each chosen row."""
    wanted = set(rows)
    written = 0
    for number, *lines in _pairs(file) if rows else ():
        if number in wanted:
            sink.write(b"".join(line.removesuffix(b"\n") + b"\n" for line in lines))
            written += 1
        if number == rows[-1]:
            break
    return written


def _pairs(file: InputFile) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the number of each question's line, it, and the line below; blank lines between pairs are no row."""
    with open_input(file) as stream:
        lines = enumerate(_lines(file, stream))
        for number, question in lines:
            if question.strip():
                _, answer = next(lines, (number, b""))
                yield number, question, answer


def _lines(file: InputFile, stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file, each of them UTF-8."""
    offset = 0
    for number in itertools.count(1):
        line = stream.readline(limits.MAX_ROW_BYTES + 1)
        if not line:
            return
        if len(line) > limits.MAX_ROW_BYTES:
            raise DataError(
                f"{shown(file.name)}:{number}: the line is longer than {limits.MAX_ROW_BYTES} bytes. Expected a "
                "question and its answer by turns, a line each; leave the file out with a pattern."
            )
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(file, number, offset + error.start, line[error.start]) from error
        offset += len(line)
        yield line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
