"""The layout of packed files: exact bytes, every refusal, and C++ of the same mind."""

import pathlib
import shutil
import struct
import subprocess
import zlib

import numpy as np
import pytest

from sparse_jax.io import packed_layout, packed_parse
from sparse_jax.io.packed_layout import ALIGNMENT, DTYPES, PAGE, Record
from sparse_jax.types import InputError
from tests.io.packed_files import index_of, make, mend, mutate

ROOT = pathlib.Path(__file__).parents[2]


def parse(content: bytes, *, verify: bool = True) -> list[Record]:
    return packed_parse.parse(np.frombuffer(content, np.uint8), verify=verify)


def refusal(content: bytes) -> str:
    with pytest.raises(InputError) as caught:
        parse(content)
    return str(caught.value)


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {
        f"of.{name}": (100 * rng.random((3, 5))).astype(dtype)
        for name, dtype in DTYPES.items()
    }
    return made | {
        "scalar": np.array(3.0, np.float32),
        "empty": np.zeros((0, 7), np.uint8),
        "line": np.arange(64, dtype=np.uint8),  # exactly one alignment
    }


@pytest.fixture(scope="module")
def content() -> bytes:
    return make(arrays(), {"config.json": b"{}", "tokenizer.json": b"abc"})


def test_arrays_come_back_bit_for_bit_and_aligned(content):
    records = {record.name: record for record in parse(content)}
    assert list(records) == ["config.json", "tokenizer.json", *arrays()]
    for name, expected in arrays().items():
        (found,) = records[name].arrays
        assert records[name].format == "array" and records[name].shape == expected.shape
        assert found.offset % ALIGNMENT == 0 and found.dtype == expected.dtype.name
        data = content[found.offset : found.end]
        assert data == expected.tobytes()
    (found,) = records["tokenizer.json"].arrays
    assert records["tokenizer.json"].format == "file"
    assert content[found.offset : found.end] == b"abc"


def test_the_bytes_of_the_smallest_file():
    """The document's example, byte for byte: others read this layout."""
    made = make({"x": np.array([1, 2], np.uint16)})
    index = b"\x01x\x05array\x01" + struct.pack("<Q", 2)
    index += b"\x01\x06values\x02\x01" + struct.pack("<Q", 2)
    index += struct.pack("<QQI", 4096, 4, zlib.crc32(b"\1\0\2\0"))
    fields = struct.pack("<QQQII", 4160 + len(index), 4160, len(index), 0, 1)
    fields = fields[:24] + struct.pack("<I", zlib.crc32(index)) + fields[28:]
    page = (b"SJPACKED" + struct.pack("<II", 2, 0) + fields).ljust(4096, b"\0")
    page = page[:12] + struct.pack("<I", zlib.crc32(page)) + page[16:]
    assert made == page + b"\1\0\2\0".ljust(64, b"\0") + index


def test_no_flipped_bit_goes_unnoticed():
    made = make({"x": np.arange(3, dtype=np.int8), "y": np.ones((1, 2), np.float32)})
    rng = np.random.default_rng(0)
    places = {*range(64), *range(PAGE, len(made)), *rng.integers(0, PAGE, 100).tolist()}
    for place in places:
        bad = bytearray(made)
        bad[place] ^= 1 << (place % 8)
        with pytest.raises(InputError):
            parse(bytes(bad))
    parse(made)


def test_every_cut_and_every_addition_is_noticed():
    made = make({"x": np.arange(3, dtype=np.int8)})
    for size in [*range(70), *range(PAGE - 2, len(made))]:
        refusal(made[:size])
    assert "its header says" in refusal(made + b"\0")


def patched(content: bytes, place: int, kind: str, *values: int) -> bytes:
    """Numbers put into the header or, counted from its start, the index; mended."""
    data = bytearray(content)
    struct.pack_into(f"<{kind}", data, place, *values)
    return mend(bytes(data))


def test_what_is_said_of_other_files(content):
    for other in (b"", b"{}", b"SJPACKEd" + bytes(5000), b"GGUF" + bytes(4096)):
        assert "not a packed file (it does not start with" in refusal(other)
    for version in (1, 3):
        other = patched(content, 8, "I", version)
        start = f"packed file of version {version}, but this program reads version 2"
        assert refusal(other).startswith(start)
    assert "within the header" in refusal(content[:100])
    broken = bytearray(content)
    broken[PAGE] ^= 1
    assert "checksum of config.json, bytes, does not match" in refusal(bytes(broken))
    parse(bytes(broken), verify=False)
    broken = bytearray(content)
    broken[PAGE + 2] = 1  # {} is two bytes long
    assert "config.json, bytes, does not end in zeros" in refusal(bytes(broken))
    for place, part in ((20, "header"), (index_of(content)[0] + 3, "index")):
        broken = bytearray(content)
        broken[place] ^= 1
        assert f"checksum of its {part} does not match" in refusal(bytes(broken))
    for sentence in map(refusal, (content[:-1], content[:200], other)):
        assert "\n" not in sentence and len(sentence) < 200


def text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


def sizes(*values: int) -> bytes:
    return struct.pack(f"<B{len(values)}Q", len(values), *values)


def array(name="values", code=0, shape=(3, 5), offset=PAGE, nbytes=15) -> bytes:
    crc32 = zlib.crc32(bytes(nbytes % 1000))
    numbers = struct.pack("<QQI", offset, nbytes, crc32)
    return text(name) + bytes([code]) + sizes(*shape) + numbers


def entry(*found: bytes, name="x", kind="array", shape=(3, 5)) -> bytes:
    return (
        text(name) + text(kind) + sizes(*shape) + bytes([len(found)]) + b"".join(found)
    )


def with_index(index: bytes, n_records: int = 1) -> bytes:
    """A file of 64 zeros as data."""
    header = packed_layout.encode_header(PAGE + ALIGNMENT, index, n_records)
    return header + bytes(ALIGNMENT) + index


BAD_INDEX = [
    (entry(array(), kind="file"), "x is not the file that it says it is"),
    (entry(array(shape=(5, 3))), "x is not the array that it says it is"),
    (entry(array("a"), array("b", offset=4160, nbytes=0, shape=(0,))), "x is not the"),
    (entry(array(), kind="n16_int8", shape=(15,)), "x is no matrix"),
    (entry(array(), kind="n16_int8", shape=(0, 5)), "x is no matrix"),
    (entry(array(), kind="n16_int8", shape=(2**31, 5)), "x is no matrix"),
    (entry(), "x has no arrays"),
    (entry(array(), array(shape=(0, 0), offset=4160, nbytes=0)), "x has two arrays"),
    (entry(array(offset=PAGE + 64)), "x has an array at byte 4160"),
    (entry(array(offset=PAGE + 1)), "x has an array at byte 4097"),
    (entry(array(offset=0)), "x has an array at byte 0"),
    (entry(array(offset=2**64 - 64)), f"x has an array at byte {2**64 - 64}"),
    (entry(array(shape=(65,), nbytes=65), shape=(65,)), "x has an array at byte 4096"),
    (entry(array(nbytes=16)), "x has an array of 16 bytes"),
    (entry(array(code=4)), "x has an array of 15 bytes"),
    (entry(array(shape=(2**40, 0), nbytes=0)), "x has an array of 0 bytes"),
    (entry(array(shape=(2**40,) * 4, nbytes=0)), "x has an array of 0 bytes"),
    (entry(array(shape=(2**41, 1))), f"x has a dimension of {2**41}"),
    (entry(array(code=9)), "x has an array of the unknown dtype 9"),
    (entry(array(), shape=(1,) * 5), "x has 5 dimensions"),
    (entry(array(), name="a b"), "record 0 has a name that is not allowed"),
    (entry(array(), name=""), "record 0 has a name that is not allowed"),
    (entry(array("../x")), "x has a name that is not allowed"),
    (entry(array(), kind="é"), "x has a name that is not allowed"),
    (entry(array())[:-1], "the index ends within x"),
    (entry(array()) + b"\0", "the index goes on after its last record"),
    (
        entry(array(shape=(0, 5), nbytes=0), shape=(0, 5)),
        "does not follow the last arr",
    ),
    (b"", "the index ends within record 0"),
]


@pytest.mark.parametrize(
    ("index", "sentence"), BAD_INDEX, ids=[sentence for _, sentence in BAD_INDEX]
)
def test_an_index_that_does_not_fit_is_refused(index, sentence):
    assert sentence in refusal(with_index(index))


def test_the_index_that_the_bad_ones_are_made_of():
    parse(with_index(entry(array())))
    parse(with_index(entry(array(), kind="n16_int8", shape=(2**31 - 1, 1))))
    twice = entry(array()) + entry(array(shape=(0,), nbytes=0, offset=4160), shape=(0,))
    assert "the name 'x' occurs twice" in refusal(with_index(twice, 2))
    assert "index ends within record 1" in refusal(
        with_index(entry(array()), 2**32 - 1)
    )
    assert "goes on after its last" in refusal(with_index(entry(array()), 0))


def test_what_cannot_be_stored_is_a_bug():
    for tensors in ({"a b": np.ones(1, np.int8)}, {"": np.ones(1, np.int8)}):
        with pytest.raises(ValueError, match=r"cannot be (a name|stored)"):
            make(tensors)
    for values in (np.ones(1), np.ones((1,) * 5, np.int8), np.ones(1, bool)):
        with pytest.raises(ValueError, match="cannot be stored in a packed file"):
            make({"x": values})
    with pytest.raises(ValueError, match="is in the file already"):
        make({"x": np.ones(1, np.int8)}, {"x": b""})


@pytest.fixture(scope="session")
def verdict(tmp_path_factory):
    """Files -> what the C++ parser says of each."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("verdict") / "verdict"
    kernels = ROOT / "sparse_jax/kernels/cpu"
    sources = [kernels / "packed_file.cc", kernels / "crc32.cc"]
    sources.append(ROOT / "fuzz/verdict.cc")
    flags = ["-std=c++17", "-O1", "-Wall", "-Werror", f"-I{kernels}"]
    subprocess.run([compiler, *flags, *sources, "-o", program], check=True)

    def run(files: list[bytes]) -> list[str]:
        given = b"".join(struct.pack("<Q", len(file)) + file for file in files)
        done = subprocess.run([program], input=given, capture_output=True, check=True)
        return done.stdout.decode("latin-1").splitlines()

    return run


def told(content: bytes) -> str:
    """Python's verdict, printed as `fuzz/verdict.cc` prints that of C++."""
    try:
        records = parse(content)
    except InputError as error:
        return str(error)

    def shape(values) -> str:
        return "[" + "".join(f"{value}," for value in values) + "]"

    words = ["ok"]
    for record in records:
        words += [record.name, record.format, shape(record.shape)]
        for found in record.arrays:
            words += [found.name, list(DTYPES).index(found.dtype), shape(found.shape)]
            words += [found.offset, found.nbytes, found.crc32]
    return " ".join(map(str, words))


def test_c_plus_plus_is_of_the_same_mind(verdict, content):
    rng = np.random.default_rng(0)
    small = make({"x": np.arange(130, dtype=np.int8), "y": np.ones((2, 3), np.uint32)})
    files = [content, small, *(with_index(index) for index, _ in BAD_INDEX)]
    for number in range(3000):
        bad = mutate(rng, small if number % 3 else content, content)
        files.append(mend(bad) if number % 2 else bad)
    expected = [told(file) for file in files]
    assert verdict(files) == expected
    kinds = {line.split("(")[-1][:20] for line in expected}
    # The damages reach all parts of the parser, and some are harmless.
    assert len(kinds) > 25 and sum(line.startswith("ok") for line in expected) > 200
