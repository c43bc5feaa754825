"""Pickles as data: what Python 2 and 3 wrote is read as Python reads it, and nothing else is, whatever it says."""

import os
import pickle
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refsnn.datasets import unpickle
from refsnn.errors import UserError

PIXELS = np.arange(60, dtype=np.uint8).reshape(3, 20) * 4       # beyond 127 too
LABELS = [6, 255, 0]
STORED = {b"batch_label": b"batch 1 of 5", b"labels": LABELS, b"data": PIXELS, b"filenames": [b"a.png", b"b.png", b"c"]}


def python2(stored: dict[bytes, Any], by_columns: bool = False) -> bytes:
    """The pickle that Python 2's cPickle makes of a dictionary of text, lists and one table: protocol 2."""
    out, names = [b"\x80\x02}q\x01("], 1

    def remembered() -> bytes:
        nonlocal names
        names += 1
        return b"q" + bytes([names]) if names < 256 else b"r" + struct.pack("<I", names)

    def text(value: bytes) -> bytes:
        length = b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<I", len(value))
        return length + value + remembered()

    def number(value: int) -> bytes:
        if 0 <= value < 256:
            return b"K" + bytes([value])
        return b"M" + struct.pack("<H", value) if 0 <= value < 65536 else b"J" + struct.pack("<i", value)

    def table(values: np.ndarray[Any, Any]) -> bytes:
        shape = b"".join(number(n) for n in values.shape) + b"\x86"
        content = values.tobytes(order="F" if by_columns else "C")
        return (b"cnumpy.core.multiarray\n_reconstruct\nq\xc8cnumpy\nndarray\nq\xc9K\x00\x85U\x01b\x87Rq\xca(K\x01"
                + shape + b"cnumpy\ndtype\nq\xcbU\x02u1K\x00K\x01\x87Rq\xcc(K\x03U\x01|NNN" + 2 * b"J\xff\xff\xff\xff" +
                b"K\x00tb" + (b"\x88" if by_columns else b"\x89") + b"T" + struct.pack("<I", len(content)) + content
                + b"tb")

    for key, value in stored.items():
        out.append(text(key))
        if isinstance(value, list):
            items = [number(one) if isinstance(one, int) else text(one) for one in value]
            for start in range(0, len(items) or 1, 1000):           # as cPickle does, a thousand at a time
                chunk = b"(" + b"".join(items[start:start + 1000]) + b"e"
                out.append((b"]" + remembered() if start == 0 else b"") + chunk)
        else:
            out.append(text(value) if isinstance(value, bytes) else table(value))
    return b"".join(out) + b"u."


def load(folder: Path, program: bytes) -> dict[str, Any]:
    file = folder / "stranger"
    file.write_bytes(program)
    return unpickle.load(file)


def refusal(folder: Path, program: bytes) -> str:
    """What the refusal of a pickle says after the name of the file, which it has to begin with."""
    with pytest.raises(UserError) as caught:
        load(folder, program)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'stranger'}: ")
    assert "\n" not in message
    assert message.endswith("; this is no CIFAR file, or it is damaged")
    return message


def same(got: dict[str, Any], wanted: dict[bytes, Any]) -> bool:
    assert list(got) == [key.decode() for key in wanted]
    return all(np.array_equal(got[key.decode()], value) and type(got[key.decode()]) is type(value)
               for key, value in wanted.items())


# ------------------------------------------------------------------------------------------------------ what is read
@pytest.mark.parametrize("by_columns", [False, True])
def test_the_pickle_of_python_2_is_what_python_reads_it_as(tmp_path: Path, by_columns: bool) -> None:
    program = python2(STORED, by_columns)
    theirs = pickle.loads(program, encoding="bytes")            # noqa: S301  (written above)
    assert np.array_equal(theirs[b"data"], PIXELS)
    assert same(load(tmp_path, program), STORED)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("pixels", [PIXELS, np.asfortranarray(PIXELS), PIXELS[:, ::2]], ids=["C", "F", "view"])
def test_the_pickles_of_python_3_are_read_too(tmp_path: Path, protocol: int, pixels: Any) -> None:
    stored = STORED | {b"data": pixels}
    assert same(load(tmp_path, pickle.dumps(stored, protocol)), stored)
    as_text = {"labels": [1, 70_000, -3, 1 << 40], "data": pixels, "names": ["é", "x" * 300], "none": (None, True, ())}
    read = load(tmp_path, pickle.dumps(as_text, protocol))
    assert np.array_equal(read.pop("data"), as_text.pop("data"))
    assert read == as_text


@given(st.dictionaries(
    st.binary(max_size=5) | st.text(st.characters(codec="utf-8"), max_size=5),
    st.recursive(st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.binary(min_size=1, max_size=300)
                 | st.text(st.characters(codec="utf-8"), max_size=9),
                 lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple)
                 | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), inner, max_size=3), max_leaves=9),
    max_size=4), st.sampled_from([2, 3, 4]))
@settings(max_examples=60, deadline=None)
def test_whatever_is_made_of_built_ins_comes_back(tmp_path_factory: Any, stored: Any, protocol: int) -> None:
    stored.pop(b"", None)       # with protocol 2 Python 3 writes it as a call
    folder = tmp_path_factory.mktemp("p")
    texts = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in stored.items()}
    if len(texts) == len(stored):
        assert load(folder, pickle.dumps(stored, protocol)) == texts


# --------------------------------------------------------------------------------------------------- what is refused
class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.calling = (function, arguments)

    def __reduce__(self) -> Any:
        return self.calling


CALLS = {
    "os.system": Call(os.system, "touch {}"),
    "posixpath.join": Call(os.path.join, "a", "b"),
    "builtins.eval": Call(eval, "open({!r}, 'w')"),
    "builtins.exec": Call(exec, "open({!r}, 'w')"),
    "builtins.getattr": Call(getattr, Call(__import__, "os"), "system"),
    "builtins.bytearray": Call(bytearray, 1 << 60),
    "numpy.load": Call(np.load, "{}"),
    "pathlib": Path("{}"),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_called_and_the_refusal_says_what_was_to_be(tmp_path: Path, name: str, protocol: int) -> None:
    touched = tmp_path / "touched"
    program = pickle.dumps({"data": CALLS[name]}, protocol).replace(b"{}", str(touched).encode())
    message = refusal(tmp_path, program)
    word = name.removeprefix("builtins.") if protocol < 3 else name
    assert word.removeprefix("os.") in message or "instruction" in message
    assert not touched.exists()


@pytest.mark.parametrize(("program", "said"), [
    (b"cos\nsystem\n(S'true'\ntR.", "calls os.system: not an array or built-in"),
    (b"(S'true'\nios\nsystem\n.", "instruction STRING at byte 1"),
    (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "calls os.system: not an array or built-in"),
    (b"cnumpy\nfromfile\n.", "calls numpy.fromfile: not"),
    (b"cevil\x1b[2J\r\nname\n.", "calls evil?[2J?.name: not"),
    (b"c" + b"x" * 10_000 + b"\nname\n.", "a name of more than 200 characters"),
    (b"(o.", "instruction OBJ at byte 1"),
    (b"cnumpy\nndarray\n)\x81.", "instruction NEWOBJ"),
    (b"\x82\x01.", "instruction EXT1"),
    (b"X\x01\x00\x00\x00aQ.", "instruction BINPERSID"),
    (b"I1\n.", "instruction INT"),
    (b"\xff.", "instruction number 255"),
    (b"", "ends early"),
    (b"}", "ends early"),
    (b".", "takes more than it has put down"),
    (b"\x85.", "takes more than it has put down"),
    (b"]e.", "takes more than it has put down"),
    (b"].", "holds list, no dictionary"),
    (b"X\x02\x00\x00\x00\xff\xff.", "no known encoding"),
    (b"h\x07.", "recalls 7, which was never stored"),
    (b"}(K\x01K\x02u.", "has int for a key"),
    (b"}(U\x01au.", "a key without a value"),
    (b"}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85Rs.", "an array without content"),
    (b"}K\x01a.", "has dict where list belongs"),
    (b"T\xff\xff\xff\xff.", "ends early: 4,294,967,295 bytes wanted"),
    (b"\x8b\xff\xff\xff\x7f.", "instruction LONG4"),
    (b"\x8e" + b"\xff" * 8 + b".", "instruction BINBYTES8"),
    (b"\x96" + b"\xff" * 8 + b".", "instruction BYTEARRAY8"),
])
def test_a_program_that_is_no_data_is_refused_by_name(tmp_path: Path, program: bytes, said: str) -> None:
    assert said in refusal(tmp_path, program)


@pytest.mark.parametrize(("array", "said"), [
    (np.array([[None, 1]]), "not of uint8"),
    (np.array([[1.5]]), "not of uint8"),
    (np.array([["a"]]), "not of uint8"),
    (np.zeros((2, 2), [("a", "u1")]), "not of uint8"),
    (np.zeros(4, np.uint8), "no table"),
    (np.zeros((2, 2, 2), np.uint8), "no table"),
    (np.zeros((0, 2), np.uint8), ""),
    (np.datetime64("2020"), "calls numpy"),
    (np.uint8(3), "calls numpy"),
])
@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_other_than_tables_of_bytes_are_refused(tmp_path: Path, array: Any, said: str, protocol: int) -> None:
    assert said in refusal(tmp_path, pickle.dumps({"data": array}, protocol))


GOOD = python2({b"data": PIXELS})


@pytest.mark.parametrize(("old", "new", "said"), [
    (b"K\x03K\x14\x86", b"K\x03K\x15\x86", "does not fit its 60 bytes"),
    (b"K\x03K\x14\x86", b"K\x03J\xff\xff\xff\xff\x86", "no table"),
    (b"K\x03K\x14\x86", b"K\x03\x88\x86", "no table"),
    (b"K\x03K\x14\x86", b"\x8a\xff" + b"\x7f" * 255 + b"\x8a\xff" + b"\x7f" * 255 + b"\x86", "does not fit"),
    (b"K\x03K\x14\x86", b"K\x03N\x86", "no table"),
    (b"U\x02u1", b"U\x02O8", "not of uint8"),
    (b"U\x02u1", b"U\x02i1", "not of uint8"),
    (b"(K\x03U\x01|NNN", b"(K\x03U\x01|NNh\xc9", "not of uint8"),       # fields
    (b"cnumpy\nndarray\nq\xc9", b"Nq\xc9", "in a way that makes no array"),
    (b"tb\x89T", b"t0\x89T", "instruction POP"),
    (b"tbu.", b"tu.", "a key without a value"),
    (b"U\x01|NNN", b"bU\x01|NNN", "has int where tuple belongs"),
    (b"tbu.", b"0u.", "instruction POP"),
    (b"(K\x01K\x03", b"(K\x03", "unknown version"),
    (GOOD[GOOD.index(b"cnumpy\ndtype"):GOOD.index(b"tb\x89") + 2], b"N", "not of uint8"),
], ids=range(15))
def test_an_array_that_contradicts_itself_is_refused(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    assert GOOD.count(old) == 1
    assert said in refusal(tmp_path, GOOD.replace(old, new))
    assert same(load(tmp_path, GOOD), {b"data": PIXELS})


# -------------------------------------------------------------------------------------------------- time and memory
BOMBS = {
    # ten levels of tuples of the tuple below, a thousand times each: 10^30 if anything walks or copies it
    "laughs": b"\x80\x02)q\x00" + b"".join(b"(" + b"h%c" % i * 1000 + b"tq%c" % (i + 1) for i in range(10)),
    "hash of laughs": b"\x80\x02)q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(200)) + b"}h\xc8Ns",
    "deep": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "a list in itself": b"\x80\x02]q\x00(" + b"h\x00" * 100_000 + b"e}U\x01ah\x00s0",
    "long memory": b"\x80\x02}r\xff\xff\xff\xff" * 10 + b"(",
    "encoded again": (b"\x80\x02](c_codecs\nencode\nq\x01X\x00\x00\x10\x00" + b"a" * (1 << 20)
                      + b"X\x06\x00\x00\x00latin1\x86q\x04R" + b"h\x01h\x04R" * 100_000 + b"e."),
    "all lists": b"]" * 1_000_000 + b".",
    "huge text": b"X\x00\x00\x00\x80abc.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_soon_and_takes_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert unpickle.MAX_INSTRUCTIONS <= 1_000_000
    monkeypatch.setattr(unpickle, "MAX_INSTRUCTIONS", 100_000)      # a tenth of the time, and of the memory
    tracemalloc.start()
    began = time.process_time()
    try:
        refusal(tmp_path, BOMBS[name])
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 5


def test_what_recalls_itself_is_data_like_any_other(tmp_path: Path) -> None:
    read = load(tmp_path, b"\x80\x02}q\x00(U\x01ah\x00U\x01b]q\x01h\x01au.")
    assert list(read) == ["a", "b"]
    assert read["b"][0] is read["b"]


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_bytes_at_random_are_read_or_refused(tmp_path_factory: Any, program: bytes) -> None:
    read_or_refuse(tmp_path_factory, program)


@given(st.sampled_from([2, 3, 4, 5, 0]), st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_pickles_are_read_or_refused(tmp_path_factory: Any, protocol: int, data: Any) -> None:
    program = bytearray(pickle.dumps(STORED, protocol) if protocol else python2(STORED))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(program) - 1))
        change = data.draw(st.sampled_from(["byte", "cut", "insert", "double"]))
        if change == "byte":
            program[at] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del program[at:at + data.draw(st.integers(1, 9))]
        elif change == "insert":
            program[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        else:
            program[at:at] = program[at:at + data.draw(st.integers(1, 40))]
        program = program or bytearray(b".")
    read_or_refuse(tmp_path_factory, bytes(program))


@given(st.lists(st.sampled_from(sorted(unpickle.INSTRUCTIONS)), max_size=30), st.data())
@settings(max_examples=300, deadline=None)
def test_known_instructions_in_any_order_are_read_or_refused(
    tmp_path_factory: Any, codes: list[bytes], data: Any
) -> None:
    names = [b"\n".join(name.encode().rsplit(b".", 1)) + b"\n" for name in unpickle.WORDS]
    arguments = [b"", b"\x00", b"\x01\x00", b"\x01\x00\x00\x00"]
    parts = [code + data.draw(st.sampled_from(names if code == b"c" else arguments)) for code in codes]
    read_or_refuse(tmp_path_factory, b"".join(parts) + b".")


def read_or_refuse(tmp_path_factory: Any, program: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        read, said = load(folder, program), ""
    except UserError as error:
        read, said = {}, str(error)
    assert "\n" not in said
    assert all(type(key) is str for key in read)
