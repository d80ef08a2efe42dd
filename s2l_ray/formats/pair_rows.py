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
    for number, lines in _pairs(file):
        question, answer = (line.decode().rstrip("\r\n") for line in (*lines, b"")[:2])
        if len(lines) == 2:
            yield number, {"question": question, "answer": answer}
        else:
            yield number, BadRow("no_answer: the file ends behind this question; expected its answer on the next line")


def copy_pairs(file: InputFile, rows: Sequence[int], sink: BinaryIO) -> int:
    """Write the bytes of both lines of each chosen row."""
    wanted = set(rows)
    written = 0
    for number, lines in _pairs(file) if rows else ():
        if number in wanted:
            sink.write(b"".join(line.removesuffix(b"\n") + b"\n" for line in lines))
            written += 1
        if number == rows[-1]:
            break
    return written


def _pairs(file: InputFile) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the number of each first line, and the lines; blank lines at the end of the file are no row."""
    with open_input(file) as stream:
        lines = _lines(file, stream)
        for number in itertools.count(0, 2):
            pair = list(itertools.islice(lines, 2))
            if not pair:
                return
            if any(line.strip() for line in pair):
                yield number, pair


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
