"""Damage to a GGUF file on its way into a directory."""
import os, struct
from fixture import *

FILE = "tiny.gguf"


def string(text):
    text = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(text)) + text


def gguf(keys=b"", key_count=0, tensors=b"", tensor_count=0, version=3, magic=b"GGUF", data=b""):
    return magic + struct.pack("<IQQ", version, tensor_count, key_count) + keys + tensors + data


def key(name, kind, content):
    return string(name) + struct.pack("<I", kind) + content


def made():
    big = 2**64 - 1
    yield "empty", b"", []
    yield "the magic alone", b"GGUF", []
    yield "another magic", gguf(magic=b"GGML"), ["GGUF"]
    for version in (0, 1, 4, 2**31, 0x03000000):
        yield "version %d" % version, gguf(version=version), []
    for count in (1, 2**20 + 1, 2**32, 2**63, big):
        yield "%d keys of none" % count, gguf(key_count=count), ["keys"]
        yield "%d tensors of none" % count, gguf(tensor_count=count), []
    for length in (2**20, 2**32, 2**63, big):
        yield "a key's name of %d bytes" % length, gguf(struct.pack("<Q", length) + bytes(40), 1), []
        yield "a string of %d bytes" % length, gguf(key("a", 8, struct.pack("<Q", length) + bytes(40)), 1), []
        for kind, name in ((0, "u8"), (8, "string"), (10, "u64"), (9, "array")):
            yield "an array of %d %s" % (length, name), gguf(key("a", 9, struct.pack("<IQ", kind, length) + bytes(40)), 1), []
    for kind in (13, 255, 2**31):
        yield "a key of kind %d" % kind, gguf(key("a", kind, bytes(40)), 1), ["kind"]
        yield "an array of kind %d" % kind, gguf(key("a", 9, struct.pack("<IQ", kind, 1) + bytes(40)), 1), ["kind"]
    yield "a bool of 2", gguf(key("a", 7, b"\2") + bytes(20), 1), []
    yield "a key without a name", gguf(key("", 0, bytes(40)), 1), ["name"]
    yield "twin keys", gguf(key("a", 0, b"\1") + key("a", 0, b"\1") + bytes(20), 2), ["twice"]
    yield "arrays in arrays", gguf(key("a", 9, struct.pack("<IQ", 9, 1) * 50 + bytes(40)), 1), ["nested"]
    for alignment in (0, 3, 2**31, 5):
        yield "alignment %d" % alignment, gguf(key("general.alignment", 4, struct.pack("<I", alignment)) + bytes(40), 1), ["general.alignment"]
    yield "alignment of a string", gguf(key("general.alignment", 8, string("32")) + bytes(40), 1), ["general.alignment"]

    def tensor(name="a", dims=(32,), kind=0, offset=0):
        return string(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset)
    for dims in ((), (1,) * 5, (2**63,), (2**32, 2**32), (2**16,) * 4, (big,), (31,)):
        yield "a tensor of shape %s" % (dims,), gguf(tensors=tensor(dims=dims, kind=2), tensor_count=1, data=bytes(500)), []
    for kind in (4, 5, 36, 41, 255, 2**31):
        yield "a tensor of type %d" % kind, gguf(tensors=tensor(kind=kind), tensor_count=1, data=bytes(500)), ["type"]
    for offset in (1, 31, 2**20, 2**63, big - 31):
        yield "a tensor at offset %d" % offset, gguf(tensors=tensor(offset=offset), tensor_count=1, data=bytes(500)), ["offset"]
    yield "two tensors of one name", gguf(tensors=tensor() + tensor(offset=128), tensor_count=2, data=bytes(500)), ["twice"]
    yield "two tensors on one place", gguf(tensors=tensor("a") + tensor("b"), tensor_count=2, data=bytes(500)), ["inside"]
    yield "no architecture", gguf(key("a", 0, b"\1") + bytes(40), 1), ["general.architecture"]
    yield "an unknown architecture", gguf(key("general.architecture", 8, string("nonsense")) + bytes(40), 1), ["general.architecture"]
    yield "LFS pointer", b"version https://git-lfs.github.com/spec/v1\n", ["GGUF"]


def cases():
    for name, content, parts in made():
        yield Case("gguf: " + name, (lambda c: lambda d: d.write(FILE, c))(content), IMPORT, [FILE] + parts, model=FILE)
    for part in range(1, 40):
        yield Case("gguf: cut at %d/40" % part, (lambda p: lambda d: d.write(FILE, d.read(FILE)[:len(d.read(FILE)) * p // 40]))(part), IMPORT, [FILE], model=FILE)
    for what, make in {"a directory": os.mkdir, "a pipe": os.mkfifo, "a link to nowhere": lambda p: os.symlink("nowhere", p)}.items():
        yield Case("gguf: " + what, (lambda m: lambda d: (d.remove(FILE), m(d.file(FILE))))(make), IMPORT, [FILE], model=FILE)
    yield Case("gguf: the directory is there", lambda d: (os.mkdir(d.file("out")), d.write("out/x", "x")), IMPORT, ["out"], model=FILE)
    yield Case("gguf: the directory is somebody's own", lambda d: (os.mkdir(d.file("out")), d.write("out/x", "x")), IMPORT + ["--overwrite"], ["out"], model=FILE)
    yield Case("gguf: a file where the directory should be", lambda d: d.write("out", "x"), IMPORT, ["out"], model=FILE)
    yield Case("gguf: no place for the directory", lambda d: None, ["import", "{}/tiny.gguf", "{}/nowhere/out"], ["nowhere"], model=FILE)
