"""CSV: a header, then a record per row. Values are text; a record may run over several lines within quotation marks."""

import csv
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from s2l_ray.errors import DataError
from s2l_ray.formats import row as limits
from s2l_ray.formats.row import BadRow, NumberedRows, check_names, not_utf8
from s2l_ray.input_files import BYTE_ORDER_MARK, InputFile, open_input, shown

_DELIMITERS = ",;\t"
"""What spreadsheets write, in the order of preference: the one that parts the header most."""


class _Record(NamedTuple):
    line: int
    """Of its beginning, from 0."""
    fields: list[str] | BadRow
    text: bytes
    """As it stands in the file, with its end of line."""


def read_csv(file: InputFile) -> NumberedRows:
    """Yield every record behind the header, numbered by the line it begins on.

    Raises:
        DataError: not UTF-8, two columns of one name, or a quotation that does not end.
    """
    records = _records(file)
    names = _names(file, records)
    for line, fields, _ in records:
        if isinstance(fields, BadRow):
            yield line, fields
        elif len(fields) != len(names):
            yield line, BadRow(f"wrong_field_count: found {len(fields)} fields, the header has {len(names)}")
        else:
            yield line, dict(zip(names, fields, strict=True))


def csv_columns(file: InputFile) -> tuple[str, ...]:
    """Return the names of the header; none where the file is blank.

    Raises:
        DataError: not UTF-8, two columns of one name, or a quotation that does not end.
    """
    return _names(file, _records(file))


def csv_delimiter(file: InputFile) -> str:
    """Return what parts the fields of the header."""
    with open_input(file) as stream:
        return _Lines(file, stream).delimiter()


def copy_csv(file: InputFile, rows: Sequence[int], sink: BinaryIO) -> int:
    """Write the bytes of the header and of each chosen record."""
    wanted = set(rows)
    records = _records(file)
    header = next(records, None)
    if header is None:
        return 0
    end = b"\r\n" if header.text.endswith(b"\r\n") else b"\n"
    sink.write(header.text)
    written = 0
    for record in records:
        if record.line in wanted:
            sink.write(record.text if record.text.endswith(b"\n") else record.text + end)
            written += 1
            if written == len(rows):
                break
    return written


def _names(file: InputFile, records: Iterator[_Record]) -> tuple[str, ...]:
    header = next(records, None)
    if header is None:
        return ()
    if isinstance(header.fields, BadRow):
        raise DataError(f"{shown(file.name)}:{header.line + 1}: the header is {header.fields.reason}. Mend it there.")
    check_names(file, header.fields)
    return tuple(header.fields)


def _records(file: InputFile) -> Iterator[_Record]:
    """Yield the header and every record that is not blank."""
    csv.field_size_limit(limits.MAX_ROW_BYTES)
    with open_input(file) as stream:
        lines = _Lines(file, stream)
        reader = csv.reader(lines, delimiter=lines.delimiter(), strict=True)
        while True:
            lines.begin_record()
            fields: list[str] | BadRow
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if lines.has_ended:
                    raise DataError(
                        f"{shown(file.name)}:{lines.record_line + 1}: the file ends within a quotation that begins in "
                        "this record. Close it, or double the quotation marks that belong to a text."
                    ) from error
                fields = BadRow(f"malformed_csv: {shown(str(error), 200)}")
            if fields:
                yield _Record(lines.record_line, fields, lines.record)


class _Lines:
    """The lines of a file as text, which remembers the bytes of those that make up the current record."""

    def __init__(self, file: InputFile, stream: BinaryIO) -> None:
        self._file, self._stream = file, stream
        self._line = self._offset = self._record_offset = 0
        self._taken: list[bytes] = []
        self._first: bytes | None = self._stream.readline(limits.MAX_ROW_BYTES + 1)
        self.record_line = 0
        self.has_ended = False

    @property
    def record(self) -> bytes:
        """The bytes of the current record."""
        return b"".join(self._taken)

    def delimiter(self) -> str:
        """Return what parts the fields of the first line.

        Raises:
            DataError: a carriage return within it ends no line that we know of.
        """
        first = (self._first or b"").decode(errors="replace")
        try:
            return max(_DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
        except csv.Error as error:
            raise DataError(
                f"{shown(self._file.name)}:1: lines seem to end with a carriage return alone. Expected a line feed, "
                "with or without one before it; convert the file, and put texts of several lines in quotation marks."
            ) from error

    def begin_record(self) -> None:
        """Forget the lines of the last record."""
        self._taken, self.record_line, self._record_offset = [], self._line, self._offset

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self._first is not None:
            line, self._first = self._first, None
        else:
            line = self._stream.readline(limits.MAX_ROW_BYTES + 1)
        if not line:
            self.has_ended = True
            raise StopIteration
        self._taken.append(line)
        number, offset = self._line, self._offset
        self._line, self._offset = number + 1, offset + len(line)
        if self._offset - self._record_offset > limits.MAX_ROW_BYTES:
            raise DataError(
                f"{shown(self._file.name)}:{self.record_line + 1}: the record that begins here is longer than "
                f"{limits.MAX_ROW_BYTES} bytes. A quotation mark may not be closed; mend it there."
            )
        if number == 0:
            line = line.removeprefix(BYTE_ORDER_MARK)
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(self._file, number + 1, offset + error.start, line[error.start]) from error
