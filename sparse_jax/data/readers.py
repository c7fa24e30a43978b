"""One reader per file format: `read(path, field)` streams the documents of one file.

Every reader holds at most one document, line or row group in memory, and raises
`InputError` naming the file and the place for anything it cannot read.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sparse_jax.types import InputError

UNREADABLE = (OSError, EOFError, zlib.error)
"""What reading a file may raise; gzip raises all of them."""


def read_text(
    path: str, separator: str | None = None, limit: int | None = None
) -> Iterator[str]:
    """A text file (.gz too) is one document, verbatim, or `separator` stands between.

    What surrounds a separated document, line breaks above all, is not part of it. Of a
    longer file the first `limit` bytes are read, to the last whole character.
    """
    try:
        with open_file(path) as file:
            content = file.read(-1 if limit is None else limit)
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    text = _decode(content, path, cut=limit is not None and len(content) == limit)
    if separator is None:
        yield text
    else:
        yield from (document.strip() for document in text.split(separator))


def read_jsonl(path: str, field: str = "text") -> Iterator[str]:
    """One document per line (.gz too): the `field` of the line's JSON object."""
    try:
        with open_file(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json_field(line, field, f"{path}:{number}")
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def read_parquet(path: str, field: str = "text") -> Iterator[str]:
    """One document per row of the column `field`, read row group by row group."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise _missing(path, field, names)
            kind = file.schema_arrow.field(field).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise InputError(
                    f"{path}: column {field!r} must hold strings, found {kind}: name "
                    "another field"
                )
            for group in range(file.num_row_groups):
                for text in file.read_row_group(group, columns=[field])[field]:
                    yield text.as_py() or ""
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error


def read_array_record(path: str, field: str = "text") -> Iterator[str]:
    """One document per record: a JSON object with `field`, or else plain text."""
    import grain

    try:
        with grain.sources.ArrayRecordDataSource(path) as source:
            for index in range(len(source)):
                where = f"{path}: record {index}"
                record = source[index]
                if record.lstrip()[:1] == b"{" and _is_json(record):
                    yield _json_field(record, field, where)
                else:
                    hint = "; for tf.train.Example records use tfds:DIRECTORY:SPLIT"
                    yield _decode(record, where, hint)
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise unreadable(path, error) from error


def read_tfds(path: str, field: str = "text") -> Iterator[str]:
    """One document per example of a prepared TFDS data set; nothing is downloaded."""
    builder, split = _tfds_builder(path)
    features = list(getattr(builder.info.features, "keys", list)())
    if field not in features:
        raise _missing(path, field, features)
    if split not in builder.info.splits:
        raise InputError(
            f"{path} names split {split!r}, found {sorted(builder.info.splits)}: "
            "choose one of those"
        )
    try:
        source = builder.as_data_source(split=split)
        # Without the other features an image beside the text is never decoded.
        for index in range(len(source)):
            value = source[index][field]
            where = f"{path}: example {index}"
            text = value.decode() if isinstance(value, bytes) else value
            yield whole_text(text, where)
    except (OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error


READERS: Mapping[str, Callable[[str, str], Iterator[str]]] = {
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "array_record": read_array_record,
    "tfds": read_tfds,
}


def tfds_identity(path: str) -> str:
    """Name, version, directory, split and size of what `read_tfds` would read."""
    builder, split = _tfds_builder(path)
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    return f"{builder.info.full_name} {builder.data_dir} {split} {sizes}"


def _tfds_builder(path: str) -> tuple[Any, str]:
    """The builder and the split of `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`."""
    import tensorflow_datasets as tfds

    name, *rest = path.removeprefix("tfds:").split(":")
    version = rest.pop(0) if rest and re.fullmatch(r"\d+\.[\d.*]+", rest[0]) else None
    split = rest.pop(0) if rest else "train"
    if rest or not name:
        raise InputError(f"{path} must look like tfds:NAME[/CONFIG][:VERSION][:SPLIT]")
    try:
        if (Path(name) / "dataset_info.json").is_file():
            return tfds.builder_from_directory(name), split
        builder = tfds.builder(f"{name}:{version}" if version else name)
    except Exception as error:  # tfds raises many kinds, some from its own imports
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{path} is not a prepared TFDS data set ({reason}): prepare it with "
            "download_and_prepare(file_format='array_record'), or name its directory"
        ) from error
    if not Path(builder.data_dir).is_dir():
        raise InputError(
            f"{path} is not prepared: expected it in {builder.data_dir}; run "
            "download_and_prepare(file_format='array_record'), or set TFDS_DATA_DIR"
        )
    return builder, split


def open_file(path: str):
    """Opens a file, also a compressed one, for reading bytes."""
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _is_json(record: bytes) -> bool:
    try:
        json.loads(record)
    except ValueError:
        return False
    return True


def parse_json(content: bytes, where: str) -> Any:
    """The value of a line, or of a file, of JSON."""
    text = _decode(content, where)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of 5000 digits
        shown = content[:40].decode(errors="replace").strip()
        raise InputError(
            f"{where}: expected one JSON object per line, found {shown!r} ({error}): "
            "repair the line, or set format"
        ) from error


def _json_field(line: bytes, field: str, where: str) -> str:
    value = parse_json(line, where)
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: expected a JSON object, found a {type(value).__name__}: put the "
            f"text into the field {field!r} of an object"
        )
    if field not in value:
        raise _missing(where, field, list(value))
    text = value[field]
    if not isinstance(text, str | None):
        raise InputError(
            f"{where}: field {field!r} must be a string, found "
            f"{type(text).__name__}: name another field"
        )
    return whole_text(text or "", where)


def _decode(content: bytes, where: str, hint: str = "", cut: bool = False) -> str:
    """UTF-8 text; `cut`: the last character may be incomplete, and is left out."""
    zero = content.find(b"\0")
    if zero >= 0:
        raise InputError(
            f"{where}: expected text, found a zero byte at offset {zero} (a binary "
            f"file?): name a text file{hint}"
        )
    try:
        return codecs.utf_8_decode(content, "strict", not cut)[0]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: expected UTF-8 text, found byte {content[error.start]:#04x} at "
            f"offset {error.start}: convert it to UTF-8{hint}"
        ) from error


def whole_text(text: str, where: str) -> str:
    """The text; JSON can spell half of a surrogate pair, which is no character at all.

    Raises:
      InputError: it holds such a half.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: expected Unicode text, found the lone surrogate "
            f"{text[error.start]!a} at character {error.start}: remove it"
        ) from error
    return text


def _missing(where: str, field: str, found: list[str]) -> InputError:
    return InputError(
        f"{where}: field {field!r} is missing, found {sorted(found)}: set field"
    )


def unreadable(path: str, error: Exception) -> InputError:
    """The sentence for a file that cannot be read."""
    reason = str(error).strip().split("\n")[0]
    return InputError(f"{path} cannot be read ({reason}): check the file")
