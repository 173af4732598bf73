"""Damage to safetensors files, indexes, tensors, and to what kind of file lies where."""
import json, os, struct
from fixture import *

FILE = "model.safetensors"
Q = "model.layers.0.mlp.down_proj"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 123456\n" % ("0" * 64)


def header_text(text, data=b""):
    return lambda d: d.write(FILE, join_safetensors(None, data, text))


def entry(edit):
    """One entry of the real file changed."""
    def spoil(d):
        d.header(lambda header: edit(header[Q + ".qweight"]))
    return spoil


def set_entry(**members):
    return entry(lambda e: e.update(members))


def sizes():
    yield "file of no bytes", lambda d: d.write(FILE, b""), ["has 0 bytes", "at least 8"]
    yield "file of 7 bytes", lambda d: d.write(FILE, b"1234567"), ["has 7 bytes"]
    yield "file of 8 zeros", lambda d: d.write(FILE, bytes(8)), ["header: not valid JSON"]
    for name, size in {"2^64-1": 2**64 - 1, "2^63": 2**63, "2^64-8": 2**64 - 8, "2^32": 2**32, "100 MB and one": 100000001}.items():
        yield "header length " + name, (lambda size: lambda d: d.write(FILE, struct.pack("<Q", size) + d.read(FILE)[8:]))(size), \
            ["header of %d bytes" % size, "100000000 expected"]
    yield "header length past the end", lambda d: d.write(FILE, struct.pack("<Q", len(d.read(FILE)) - 7) + d.read(FILE)[8:]), \
        ["follow its length"]
    yield "header length of exactly the file", lambda d: d.write(FILE, struct.pack("<Q", len(d.read(FILE)) - 8) + d.read(FILE)[8:]), \
        ["header: "]
    for change in (-1, 1, -64, 64):
        yield "header length off by %d" % change, (lambda change: lambda d: d.write(
            FILE, struct.pack("<Q", struct.unpack("<Q", d.read(FILE)[:8])[0] + change) + d.read(FILE)[8:]))(change), [FILE]
    for eighth in range(1, 8):
        yield "cut at %d/8" % eighth, (lambda k: lambda d: d.write(FILE, d.read(FILE)[:len(d.read(FILE)) * k // 8]))(eighth), [FILE, "the file has"]
    for cut in (1, 2, 4095):
        yield "cut by %d bytes" % cut, (lambda cut: lambda d: d.write(FILE, d.read(FILE)[:-cut]))(cut), [FILE, "the file has"]
    yield "cut in the header", lambda d: d.write(FILE, d.read(FILE)[:300]), ["follow its length"]
    yield "bytes behind the end", lambda d: d.write(FILE, d.read(FILE) + b"\0"), ["the tensors end at byte"]
    yield "zeros in place of the header", lambda d: d.write(FILE, d.read(FILE)[:8] + bytes(512) + d.read(FILE)[520:]), ["header: "]
    yield "pickle in place of the file", lambda d: d.write(FILE, b"PK\x03\x04" + bytes(1000)), ["header of"]
    yield "GGUF in place of the file", lambda d: d.write(FILE, read("tests/data/fuzz/gguf/llama")), ["header of"]
    yield "HTML in place of the file", lambda d: d.write(FILE, "<!DOCTYPE html><html><body>Access denied</body></html>" * 20), ["header of"]
    yield "gzip of the file", lambda d: d.write(FILE, gzip.compress(d.read(FILE))), [FILE]


def texts():
    one = '{"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}'
    bad = {"nothing": "", "an open brace": "{", "a list": "[]", "a string": '"x"', "a number": "7", "null": "null", "text behind": '{"a": %s} x' % one,
           "a second value": "{}{}", "a trailing comma": '{"a": %s,}' % one, "a comment": "// x\n{}", "single quotes": "{'a': 1}",
           "NaN": '{"__metadata__": {"a": NaN}}', "a byte order mark": b"\xef\xbb\xbf{}", "NUL padding": b"{}\0\0\0\0\0\0",
           "a lone surrogate": '{"a\\ud800": %s}' % one, "a raw control byte": b'{"a\x01": ' + one.encode() + b"}",
           "bytes that are no UTF-8": b'{"a\xff": ' + one.encode() + b"}", "an overlong encoding": b'{"a\xc0\xaf": ' + one.encode() + b"}",
           "UTF-16": "{}".encode("utf-16"), "an unknown escape": '{"a\\x41": %s}' % one, "a leading zero": '{"a": {"dtype": "F16", "shape": [01], "data_offsets": [0, 2]}}',
           "a plus sign": '{"a": {"dtype": "F16", "shape": [+1], "data_offsets": [0, 2]}}', "an open string": '{"a',
           "129 nested lists": '{"__metadata__": {"a": %s}}' % ("[" * 129 + "]" * 129), "a million nested lists": "[" * 1000000,
           "a million nested objects": '{"a":' * 1000000}
    for name, text in bad.items():
        yield "header is or has " + name, header_text(text, b"\0\0"), [FILE, "header"]
    twin = '{"a": %s, "%s": %s}'
    yield "twin keys", header_text(twin % (one, "a", one), b"\0\0"), ['"a" stands twice']
    yield "twin keys, one escaped", header_text(twin % (one, "\\u0061", one), b"\0\0"), ['"a" stands twice']
    yield "twin keys in an entry", header_text('{"a": {"dtype": "F16", "dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}', b"\0\0"), ["stands twice"]
    yield "twin __metadata__", header_text('{"__metadata__": {}, "__metadata__": {}}'), ["stands twice"]
    yield "twin keys in __metadata__", header_text('{"__metadata__": {"a": "1", "a": "2"}}'), ["stands twice"]
    for name, value in {"a number": "{\"a\": 1}", "null": "{\"a\": null}", "an object": "{\"a\": {}}", "a list": "{\"a\": []}"}.items():
        yield "__metadata__ holds " + name, header_text('{"__metadata__": %s}' % value), ["__metadata__", "a string expected"]
    for value in ("1", "null", "[]", '"x"', "true"):
        yield "__metadata__ is " + value, header_text('{"__metadata__": %s}' % value), ["__metadata__", "an object of strings expected"]
    yield "50,000 tensors of one place", header_text("{%s}" % ", ".join('"t%d": %s' % (i, one) for i in range(50000)), b"\0\0"), ["inside of another tensor"]
    yield "a name of 1 MB", header_text('{"%s": {"dtype": "F16", "shape": [2], "data_offsets": [0, 2]}}' % ("n" * 1000000), b"\0\0"), ["bytes expected for F16 [2]"]
    yield "a name of control bytes", header_text('{"a\\n\\u001b[31m\\u0007": {"dtype": "F16", "shape": [2], "data_offsets": [0, 2]}}', b"\0\0"), ["bytes expected for F16 [2]"]


def entries():
    for value in (None, 1, "x", [], True):
        yield "entry is %s" % json.dumps(value), (lambda v: lambda d: d.header(lambda h: h.__setitem__(Q + ".qweight", v)))(value), [Q + ".qweight", "an object with dtype, shape and data_offsets expected"]
    for key in ("dtype", "shape", "data_offsets"):
        yield "entry lacks " + key, entry((lambda key: lambda e: e.pop(key) and None)(key)), [Q + ".qweight", key + " is missing"]
        for value in (None, True, 7, "x", {}, 1.5):
            if not (key == "dtype" and value == "x"):
                yield "%s is %s" % (key, json.dumps(value)), set_entry(**{key: value}), [Q + ".qweight", key]
    for dtype in ("i32", "I33", "INT32", "float16", "F17", "", " I32", "I32 ", "I32\u0000", "Q4_0", "BF", "F8", "\u0399\u0033\u0032", "x" * 5000):
        yield "dtype %.12r" % dtype, set_entry(dtype=dtype), [Q + ".qweight", "dtype"]
    for dtype, bits in (("I64", 64), ("U8", 8), ("F4", 4), ("F6_E2M3", 6), ("C64", 64)):
        yield "dtype %s over the same bytes" % dtype, set_entry(dtype=dtype), [Q + ".qweight", "expected"]
    for shape in ([-1, 32], [512.0, 32], ["512", 32], [True, 32], [None], [[512], 32], [{}], [512, -32], [1e3, 32], [2**64, 32]):
        yield "shape %s" % json.dumps(shape), set_entry(shape=shape), [Q + ".qweight", "shape"]
    for shape in ([2**63, 2], [2**32, 2**32], [2**64 - 1, 2], [2**62], [3, 2**62, 3], [2**60, 0, 2**60, 2**60], [512, 32, 2], [511, 32], [512, 33], [], [0], [16385]):
        yield "shape %s" % json.dumps(shape), set_entry(shape=shape), [Q + ".qweight", "expected"]
    yield "shape of 5000 ones", set_entry(shape=[1] * 5000), [Q + ".qweight", "dimensions"]
    yield "shape of 4 bits, odd", lambda d: d.write(FILE, make_safetensors({"a": ("F4", [3], b"\0\0")})), ["whole bytes expected"]
    for offsets in ([], [0], [0, 1, 2], [-1, 5], [0.0, 5], ["0", 5], [None, 5], [True, 5], [[0], 5], [2**64, 5], [5, 2**64]):
        yield "data_offsets %s" % json.dumps(offsets), set_entry(data_offsets=offsets), [Q + ".qweight", "data_offsets"]
    for name, edit in {
        "turned round": lambda e: e.update(data_offsets=e["data_offsets"][::-1]),
        "past the end": lambda e: e.update(data_offsets=[x + (1 << 40) for x in e["data_offsets"]]),
        "wrapping": lambda e: e.update(data_offsets=[2**64 - 65536, 2**64 - 1]),
        "moved by one": lambda e: e.update(data_offsets=[x + 1 for x in e["data_offsets"]]),
        "moved back by one": lambda e: e.update(data_offsets=[x - 1 for x in e["data_offsets"]]),
        "one too long": lambda e: e.update(data_offsets=[e["data_offsets"][0], e["data_offsets"][1] + 1]),
        "one too short": lambda e: e.update(data_offsets=[e["data_offsets"][0], e["data_offsets"][1] - 1]),
        "empty": lambda e: e.update(data_offsets=[e["data_offsets"][0]] * 2),
    }.items():
        yield "data_offsets " + name, entry((lambda edit: lambda e: edit(e))(edit)), [FILE]
    yield "two tensors on one range", lambda d: d.header(lambda h: h.__setitem__("alias", dict(h[Q + ".qweight"])) ), ["inside of another tensor"]
    yield "a hole", lambda d: d.header(lambda h: h.pop(Q + ".qweight") and None), [FILE, "where the tensor before ends"]
    yield "all tensors gone, the data there", lambda d: d.header(lambda h: h.clear()), ["the tensors end at byte 0"]


def tensors():
    def edit(change):
        return lambda d: d.tensors(change)

    def change(name, dtype=None, shape=None, content=None):
        def apply(t):
            old = t[name]
            t[name] = (dtype or old[0], shape or old[1], old[2] if content is None else content(old[2]))
        return edit(apply)
    yield "no tensors at all", lambda d: d.write(FILE, join_safetensors(None, b"", "{}")), ["expected"]
    for suffix in ("qweight", "qzeros", "scales"):
        name = Q + "." + suffix
        yield suffix + " missing", edit((lambda name: lambda t: t.pop(name) and None)(name)), [Q]
        yield suffix + " misspelt", edit((lambda name: lambda t: t.update({name + "s": t.pop(name)}))(name)), [Q]
        yield suffix + " as F32", edit((lambda name: lambda t: t.update({name: ("F32" if t[name][0] == "I32" else "I16", t[name][1], t[name][2])}))(name)), [Q, "expected"]
        yield suffix + " turned", edit((lambda name: lambda t: t.update({name: (t[name][0], t[name][1][::-1], t[name][2])}))(name)), [Q, "expected"]
        yield suffix + " flat", edit((lambda name: lambda t: t.update({name: (t[name][0], [t[name][1][0] * t[name][1][1]], t[name][2])}))(name)), [Q, "expected"]
        yield suffix + " of three dimensions", edit((lambda name: lambda t: t.update({name: (t[name][0], t[name][1] + [1], t[name][2])}))(name)), [Q, "expected"]
        yield suffix + " a row short", edit((lambda name: lambda t: t.update({name: (t[name][0], [t[name][1][0] - 1, t[name][1][1]], t[name][2][:len(t[name][2]) // t[name][1][0] * (t[name][1][0] - 1)])}))(name)), [Q, "expected"]
        yield suffix + " empty", edit((lambda name: lambda t: t.update({name: (t[name][0], [0, t[name][1][1]], b"")}))(name)), [Q, "expected"]
    for value, bits in {"NaN": 0x7e00, "infinity": 0x7c00, "-infinity": 0xfc00, "a signalling NaN": 0x7d01}.items():
        put = (lambda bits: lambda old: old[:34] + struct.pack("<H", bits) + old[36:])(bits)
        for name in (Q + ".scales", "model.norm.weight", "model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"):
            yield "%s in %s" % (value, name), change(name, content=put), [name, "is NaN or infinite"]
    for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight", "model.embed_tokens.weight"):
        yield name + " missing", edit((lambda name: lambda t: t.pop(name) and None)(name)), [name]
        yield name + " as integers", change(name, dtype="I16"), [name, "expected"]
    yield "a layer too many", edit(lambda t: t.update({k.replace("layers.0.", "layers.2."): v for k, v in t.items() if "layers.0." in k})), ["model.layers.2", "expected"]
    yield "a layer missing", edit(lambda t: {k: v for k, v in t.items() if "layers.1." not in k}), ["model.layers.1"]
    yield "plain and packed weights together", edit(lambda t: t.update({Q + ".weight": ("F16", [256, 512], bytes(256 * 512 * 2))})), [Q, "two formats"]
    yield "bias of another size", edit(lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": ("F16", [8], bytes(16))})), ["q_proj.bias", "expected"]


def shards(d):
    """model.safetensors as two shards and an index"""
    tensors = tensors_of(d.read(FILE))
    names, map_ = list(tensors), {}
    for i, part in enumerate((names[:len(names) // 2], names[len(names) // 2:])):
        file = "model-0000%d-of-00002.safetensors" % (i + 1)
        d.write(file, make_safetensors({name: tensors[name] for name in part}))
        map_.update({name: file for name in part})
    d.remove(FILE)
    d.write("model.safetensors.index.json", json.dumps({"metadata": {"total_size": 1}, "weight_map": map_}))
    return map_


def indexes():
    INDEX = "model.safetensors.index.json"

    def spoil(edit):
        def apply(d):
            shards(d)
            edit(d)
        return apply

    def point(name):
        return spoil(lambda d: d.json(INDEX, lambda i: i["weight_map"].__setitem__("model.norm.weight", name)))
    for name in ("../model.safetensors", "/etc/passwd", "/dev/zero", "a/b.safetensors", "a\\b.safetensors", ".hidden.safetensors", "..", ".", "", "model.bin",
                 "model.safetensors\u0000", "x" * 300 + ".safetensors", "model-00001-of-00002.safetensors/", "~/m.safetensors/..", "C:\\m.safetensors",
                 "http://localhost/m.safetensors", "..\u2215m.safetensors/x", "model.SAFETENSORS", "\u0000.safetensors", "%2e%2e/m.safetensors"):
        yield "index points to %.24r" % name, point(name), [INDEX, "model.norm.weight", "a plain file name that ends in .safetensors expected"]
    for value in (None, 7, True, [], {}):
        yield "index points to %s" % json.dumps(value), point(value), [INDEX, "model.norm.weight", "a file name expected"]
    yield "index points to a shard that is not there", point("model-00003-of-00002.safetensors"), ["model-00003-of-00002.safetensors", "cannot be opened"]
    yield "index points to the wrong shard", point("model-00001-of-00002.safetensors"), ["model.norm.weight", "not there"]
    yield "index names a tensor no shard has", spoil(lambda d: d.json(INDEX, lambda i: i["weight_map"].__setitem__("ghost", "model-00001-of-00002.safetensors"))), ["ghost", "not there"]
    yield "a tensor in two shards", spoil(lambda d: d.tensors(lambda t: t.__setitem__("model.norm.weight", ("F16", [256], bytes(512))), "model-00001-of-00002.safetensors") or
                                          d.tensors(lambda t: t.__setitem__("model.norm.weight", ("F16", [256], bytes(512))), "model-00002-of-00002.safetensors")), ["model.norm.weight", "too"]
    for value in (None, [], "x", 7, {}):
        yield "weight_map is %s" % json.dumps(value), spoil((lambda v: lambda d: d.json(INDEX, lambda i: i.__setitem__("weight_map", v)))(value)), [INDEX, "weight_map"]
    yield "weight_map missing", spoil(lambda d: d.json(INDEX, lambda i: i.pop("weight_map") and None)), [INDEX, "weight_map: is missing"]
    for name, content in {"empty": "", "a list": "[]", "twin keys": '{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}', "escaped twin keys": '{"weight_map": {"a": "a.safetensors", "\\u0061": "b.safetensors"}}',
                          "deep": "[" * 200 + "]" * 200, "an LFS pointer": LFS, "a byte order mark": b"\xef\xbb\xbf{}", "no JSON": "x"}.items():
        yield "index is or has " + name, spoil((lambda c: lambda d: d.write(INDEX, c))(content)), [INDEX]
    for i in (1, 2):
        file = "model-0000%d-of-00002.safetensors" % i
        yield "shard %d missing" % i, spoil((lambda f: lambda d: d.remove(f))(file)), [file, "cannot be opened"]
        yield "shard %d empty" % i, spoil((lambda f: lambda d: d.write(f, b""))(file)), [file, "has 0 bytes"]
        yield "shard %d an LFS pointer" % i, spoil((lambda f: lambda d: d.write(f, LFS))(file)), [file, "Git LFS pointer"]
        yield "shard %d cut" % i, spoil((lambda f: lambda d: d.write(f, d.read(f)[:-100]))(file)), [file, "the file has"]
        yield "shard %d a directory" % i, spoil((lambda f: lambda d: (d.remove(f), os.mkdir(d.file(f))))(file)), [file, "is no regular file"]
        yield "shard %d a pipe" % i, spoil((lambda f: lambda d: (d.remove(f), os.mkfifo(d.file(f))))(file)), [file, "is no regular file"]


def places():
    """Something else where a file should be."""
    files = {"config.json": GENERATE, "generation_config.json": GENERATE, FILE: GENERATE, "tokenizer.json": TOKENIZE, "tokenizer_config.json": CHAT}
    for file, command in files.items():
        def put(make, file=file):
            def spoil(d):
                if os.path.lexists(d.file(file)):
                    d.remove(file)
                make(d.file(file))
            return spoil
        yield file + " is a directory", put(os.mkdir), [file, "is no regular file"], command
        yield file + " is a pipe", put(os.mkfifo), [file, "is no regular file"], command
        yield file + " is a link to nowhere", put(lambda path: os.symlink("nowhere", path)), [file, "cannot be opened"], command
        yield file + " is a link to itself", put(lambda path: os.symlink(path, path)), [file, "cannot be opened"], command
        yield file + " is /dev/zero", put(lambda path: os.symlink("/dev/zero", path)), [file, "is no regular file"], command
        yield file + " is /dev/full", put(lambda path: os.symlink("/dev/full", path)), [file, "is no regular file"], command
        yield file + " is an LFS pointer", (lambda f: lambda d: d.write(f, LFS))(file), [file, "LFS pointer"], command
        yield file + " is empty", (lambda f: lambda d: d.write(f, ""))(file), [file], command
        yield file + " is NUL bytes", (lambda f: lambda d: d.write(f, bytes(4096)))(file), [file], command
        if file != FILE:
            for name, content in {"UTF-16": "{}".encode("utf-16"), "Latin-1": b'{"a": "\xe9"}', "a list": "[]", "null": "null", "cut": '{"a": ', "deep": '{"a": ' + "[" * 100000 + "]" * 100000 + "}",
                                  "behind a byte order mark": b"\xef\xbb\xbf{}", "with a comment": "{} // x", "with twin keys": '{"version": "1.0", "version": "1.0"}',
                                  "with a lone surrogate": '{"a": "\\udc00"}', "with NaN": '{"a": NaN}', "with a number beyond doubles": '{"a": 1e999}', "50 million digits": '{"a": ' + "1" * 5000000 + "}"}.items():
                yield "%s: JSON %s" % (file, name), (lambda f, c: lambda d: d.write(f, c))(file, content), [file], command
    for file in ("config.json", FILE):
        yield file + " missing", (lambda f: lambda d: d.remove(f))(file), [file if file != FILE else "no weights"], GENERATE
    yield "tokenizer.json missing", lambda d: d.remove("tokenizer.json"), ["tokenizer.json", "is not there"], CHAT
    yield "config.json of 20 MiB", lambda d: d.write("config.json", '{"a": "%s"}' % ("x" * (20 << 20))), ["config.json", "at most"], GENERATE


def cases():
    for group in (sizes, texts, entries, tensors, indexes):
        for name, spoil, parts in group():
            yield Case("weights: " + name, spoil, GENERATE, parts)
    for name, spoil, parts, command in places():
        stdin = '{"text": "the inn"}\n' if command is TOKENIZE else REQUEST
        yield Case("files: " + name, spoil, command, parts, stdin=stdin)
    for command in (INSPECT, VERIFY, LOGITS, CHAT):
        yield Case("weights: cut, by " + " ".join(command[:2]), lambda d: d.write(FILE, d.read(FILE)[:-64]), command, [FILE, "the file has"])
    zero = lambda old: bytes(len(old))
    yield Case("verify: scales of zeros", lambda d: d.tensors(lambda t: t.update({Q + ".scales": (t[Q + ".scales"][0], t[Q + ".scales"][1], zero(t[Q + ".scales"][2]))})), VERIFY, ["is not sound"])
    for value, bits in {"NaN": 0x7e00, "infinity": 0x7c00}.items():
        yield Case("verify: %s in a scale" % value, (lambda bits: lambda d: d.tensors(lambda t: t.update({Q + ".scales": (t[Q + ".scales"][0], t[Q + ".scales"][1], struct.pack("<H", bits) + t[Q + ".scales"][2][2:])})))(bits), VERIFY, ["is not sound"])
    overflow = lambda d: d.tensors(lambda t: t.update({"model.layers.1.post_attention_layernorm.weight": ("F32", [256], struct.pack("<f", 3e38) * 256)}))
    yield Case("finite: a norm that overflows", overflow, CHAT, ["NaN", "--check-finite"])
    yield Case("finite: a norm that overflows, looked for", overflow, CHAT + ["--check-finite"], ["model.layers.1.", "norm"])
    yield Case("finite: a norm that overflows, by the reference backend", overflow, CHAT + ["--check-finite", "--backend", "reference"], ["model.layers.1.", "norm"])
    yield Case("finite: a norm that overflows, without fusing", overflow, CHAT + ["--check-finite", "--no-fuse"], ["model.layers.1.post_attention_layernorm"])
    yield Case("no directory there", lambda d: None, ["eval", "generate", "-m", "{}/nowhere"], ["nowhere", "no such directory"])
    yield Case("a file for a directory", lambda d: None, ["eval", "generate", "-m", "{}/config.json"], ["config.json"])
    yield Case("a model name that leads out", lambda d: None, ["inspect", "-m", "../../etc/x@main"], ["no such directory"])
