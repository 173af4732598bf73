"""Damage to pictures shown to a model that takes them."""
import struct, zlib
from fixture import *

PICTURE = ["chat", "-t", "1", "-n", "2", "--temp", "0", "-p", "the inn", "--image", "{}/picture", "-m", "{}"]


def chunk(kind, content, crc=None):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) if crc is None else crc)


def png(width, height, rows=None, depth=8, color=2, interlace=0, compression=0, extra=b"", end=True):
    data = zlib.compress(rows if rows is not None else b"".join(b"\0" + bytes(width * 3) for _ in range(height)))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, compression, 0, interlace)) + extra +
            chunk(b"IDAT", data) + (chunk(b"IEND", b"") if end else b""))


def pictures():
    jpeg, sound = read("tests/data/images/tall.jpg"), read("tests/data/images/wide-alpha.png")
    yield "empty", b"", []
    yield "one byte", b"\x89", ["is no PNG or JPEG file"]
    yield "text", b"hello", ["is no PNG or JPEG file"]
    yield "GIF", b"GIF89a" + bytes(100), ["is no PNG or JPEG file"]
    yield "BMP", b"BM" + bytes(100), ["is no PNG or JPEG file"]
    yield "WebP", b"RIFF\x10\0\0\0WEBPVP8 " + bytes(100), ["is no PNG or JPEG file"]
    yield "an LFS pointer", b"version https://git-lfs.github.com/spec/v1\n", ["is no PNG or JPEG file"]
    yield "PNG: the signature alone", sound[:8], []
    for eighth in range(1, 8):
        yield "PNG cut at %d/8" % eighth, sound[:len(sound) * eighth // 8], []
    yield "JPEG cut at the header", jpeg[:20], []
    yield "JPEG: the first bytes alone", jpeg[:4], []
    for name, (width, height) in {"65,536 on a side": (65536, 1), "a wide 4 billion": (2**32 - 1, 1), "a square of 2 billion": (2**31 - 1, 2**31 - 1), "70 megapixels": (8400, 8400), "0 wide": (0, 5), "0 high": (5, 0), "2^31 wide": (2**31, 1)}.items():
        yield "PNG header of " + name, png(width, height, b"\0" * 100), []
    yield "PNG of 60 megapixels without its rows", png(8000, 7900, b"\0" * 100), []
    yield "PNG of 60 megapixels, cut rows", png(8000, 7900, bytes(24001 * 100)), []
    yield "PNG: a zip bomb of 200 MB for one row", png(4, 1, bytes(200 << 20)), []
    yield "PNG of an unknown depth", png(4, 4, depth=3), []
    yield "PNG of an unknown colour type", png(4, 4, color=5), []
    yield "PNG of an unknown interlacing", png(4, 4, interlace=7), []
    yield "PNG of an unknown compression", png(4, 4, compression=9), []
    yield "PNG: a palette that is missing", png(4, 4, b"\0\1\2\3\4" * 4, color=3), []
    yield "PNG: palette of 300", png(4, 4, b"\0\1\2\3\4" * 4, color=3, extra=chunk(b"PLTE", bytes(900))), []
    yield "PNG: palette of a length that is no multiple of 3", png(4, 4, b"\0\1\2\3\4" * 4, color=3, extra=chunk(b"PLTE", bytes(7))), []
    yield "PNG: a chunk of 2 GB", sound[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + bytes(10), []
    yield "PNG: a chunk of 4 GB", sound[:33] + struct.pack(">I", 2**32 - 1) + b"tEXt" + bytes(10), []
    yield "PNG: an unknown critical chunk", png(4, 4, extra=chunk(b"ABCD", b"x")), []
    yield "PNG: IHDR twice", png(4, 4, extra=chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))), []
    yield "PNG: filter 9", png(4, 4, b"".join(b"\x09" + bytes(12) for _ in range(4))), []
    yield "PNG: data that is no zlib stream", sound[:33] + chunk(b"IDAT", b"\xff" * 100) + chunk(b"IEND", b""), []
    yield "PNG without IDAT", sound[:33] + chunk(b"IEND", b""), []
    yield "JPEG: height 0", jpeg_sides(jpeg, 0, 16), []
    yield "JPEG of 4 gigapixels", jpeg_sides(jpeg, 65535, 65535), ["pixels; expected at most"]
    yield "JPEG of 60 megapixels without its data", jpeg_sides(jpeg, 7900, 8000)[:400], []
    yield "JPEG: segment of length 0", jpeg[:2] + b"\xff\xe0\0\0" + jpeg[2:], []
    yield "JPEG: segment of length 1", jpeg[:2] + b"\xff\xe1\0\1" + jpeg[2:], []
    yield "JPEG of 100,000 scans", jpeg[:-2] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 100000, []
    yield "21 MiB", sound + bytes(21 << 20), ["bytes; expected at most 20971520"]


def jpeg_sides(jpeg, height, width):
    at = next(i for i in range(len(jpeg)) if jpeg[i] == 0xff and jpeg[i + 1] in (0xc0, 0xc1, 0xc2))
    return jpeg[:at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9:]


def cases():
    for name, content, parts in pictures():
        if parts is None:
            continue
        yield Case("pictures: " + name, (lambda c: lambda d: d.write("picture", c))(content), PICTURE, ["picture"] + parts, model="llava-gemm")
    for name, make in {"a directory": os.mkdir, "a pipe": os.mkfifo, "a link to nowhere": lambda p: os.symlink("nowhere", p), "/dev/zero": lambda p: os.symlink("/dev/zero", p)}.items():
        yield Case("pictures: " + name, (lambda make: lambda d: make(d.file("picture")))(make), PICTURE, ["picture"], model="llava-gemm")
    yield Case("pictures: nothing there", lambda d: None, PICTURE, ["picture"], model="llava-gemm")
    yield Case("pictures: a model that takes none", lambda d: d.write("picture", read("tests/data/images/tall.jpg")), PICTURE, [""])
    for name, value in {"size": "x", "image_mean": [1], "image_std": [0, 0, 0], "resample": 9, "do_resize": "x", "rescale_factor": "x", "crop_size": {"height": 0}, "image_processor_type": "X"}.items():
        yield Case("pictures: preprocessor_config.json: %s" % name, (lambda n, v: lambda d: (d.write("picture", read("tests/data/images/tall.jpg")), d.write("preprocessor_config.json", json.dumps({n: v}))))(name, value), PICTURE, ["preprocessor_config.json", name], model="llava-gemm")
    for name, content in {"empty": "", "a list": "[]", "deep": "[" * 1000, "twin keys": '{"size": 56, "size": 56}'}.items():
        yield Case("pictures: preprocessor_config.json: " + name, (lambda c: lambda d: (d.write("picture", read("tests/data/images/tall.jpg")), d.write("preprocessor_config.json", c)))(content), PICTURE, ["preprocessor_config.json"], model="llava-gemm")
