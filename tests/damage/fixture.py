"""What the damage sweep works with: sound model directories, editors for their files, and a run of the program.

A case is a sound directory with one thing wrong (or merely unusual), a command, and what must come of it:
refused(...) - exit status 1 and one short error line that holds all of the given parts - or accepted() - exit status 0 and
the sound directory's own answer.
"""
import gzip, json, os, resource, shutil, signal, struct, subprocess, tempfile, time

LIMIT_SECONDS, LIMIT_BYTES, LIMIT_LINES = 10, 2 << 30, 5
REQUEST = '{"ids": [1, 5, 9, 17], "n": 4}\n'
CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def unpack(name, to):
    """tests/data/models/NAME without its expected results."""
    source = os.path.join("tests/data/models", name)
    os.makedirs(to, exist_ok=True)
    for file in os.listdir(source):
        if file != "golden.safetensors.gz":
            with gzip.open(os.path.join(source, file)) as packed:
                write(os.path.join(to, file[:-3]), packed.read())


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, content):
    if os.path.islink(path):
        os.remove(path)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


# ---- safetensors

def split_safetensors(content):
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:8 + size]), content[8 + size:]


def join_safetensors(header, data, text=None):
    text = (json.dumps(header) if text is None else text)
    text = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(text)) + text + data


def tensors_of(content):
    """name -> (dtype, shape, bytes)"""
    header, data = split_safetensors(content)
    return {name: (entry["dtype"], entry["shape"], data[entry["data_offsets"][0]:entry["data_offsets"][1]])
            for name, entry in header.items() if name != "__metadata__"}


def make_safetensors(tensors, metadata=None):
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return join_safetensors(header, data)


# ---- tokenizer

def byte_letters():
    """GPT-2's printable stand-ins of the 256 bytes."""
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    letters, extra = {}, 256
    for b in range(256):
        if b in plain:
            letters[b] = chr(b)
        else:
            letters[b] = chr(extra)
            extra += 1
    return letters


def tokenizer(vocab_size=384, specials=("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")):
    vocab = {special: i for i, special in enumerate(specials)}
    for letter in byte_letters().values():
        vocab[letter] = len(vocab)
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("a", "n")]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    while len(vocab) < vocab_size:
        vocab["<word%d>" % len(vocab)] = len(vocab)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": i, "content": special, "single_word": False, "lstrip": False, "rstrip": False,
                              "normalized": False, "special": True} for i, special in enumerate(specials)],
            "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None, "decoder": dict(byte_level),
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": vocab, "merges": ["%s %s" % pair for pair in merges]}}


# ---- sound directories, made once

class Models:
    def __init__(self, work):
        self.work, self.made = work, {}

    def path(self, name):
        if name not in self.made:
            to = os.path.join(self.work, "sound", name)
            if name == "tiny.gguf":
                os.makedirs(to)
                shutil.copy("tests/data/fuzz/gguf/llama", os.path.join(to, "tiny.gguf"))
            else:
                unpack(name, to)
                config = json.loads(read(os.path.join(to, "config.json")))
                rows = config.get("vocab_size") or config["text_config"]["vocab_size"]
                write(os.path.join(to, "tokenizer.json"), json.dumps(tokenizer(rows)))
                write(os.path.join(to, "tokenizer_config.json"), json.dumps({"bos_token": "<s>", "eos_token": "</s>",
                                                                              "chat_template": CHATML}))
            self.made[name] = to
        return self.made[name]


class Directory:
    """A copy that a case may spoil; editors of its files."""

    def __init__(self, path):
        self.path = path

    def file(self, name):
        return os.path.join(self.path, name)

    def read(self, name):
        return read(self.file(name))

    def write(self, name, content):
        write(self.file(name), content)

    def remove(self, name):
        os.remove(self.file(name))

    def json(self, name, edit):
        value = json.loads(self.read(name))
        value = edit(value) or value
        self.write(name, json.dumps(value))

    def tensors(self, edit, name="model.safetensors"):
        tensors = tensors_of(self.read(name))
        tensors = edit(tensors) or tensors
        self.write(name, make_safetensors(tensors))

    def header(self, edit, name="model.safetensors"):
        header, data = split_safetensors(self.read(name))
        result = edit(header)
        self.write(name, join_safetensors(header, data, result if isinstance(result, (str, bytes)) else None))


class Case:
    def __init__(self, name, spoil, command, parts=None, model="qwen2-tied", stdin=REQUEST, answer=None):
        self.name, self.spoil, self.command, self.model, self.stdin = name, spoil, command, model, stdin
        self.parts = parts      # None: accepted, with the sound directory's answer
        self.answer = answer    # a part of stdout, where a command answers errors line by line


GENERATE = ["eval", "generate", "-t", "1", "-m", "{}"]
LOGITS = ["eval", "logits", "-t", "1", "-m", "{}"]
INSPECT = ["inspect", "-m", "{}"]
VERIFY = ["verify", "-m", "{}"]
TOKENIZE = ["eval", "tokenize", "-m", "{}"]
RENDER = ["eval", "render", "-m", "{}"]
CHAT = ["chat", "-t", "1", "-n", "4", "--temp", "0", "-p", "the inn", "-m", "{}"]
IMPORT = ["import", "{}/tiny.gguf", "{}/out"]


class Outcome:
    pass


def run(awq, command, directory, stdin):
    argv = [awq] + [part.replace("{}", directory) for part in command]
    outcome = Outcome()
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source.write(stdin if isinstance(stdin, bytes) else stdin.encode())
        source.seek(0)
        start = time.monotonic()
        process = subprocess.Popen(argv, stdin=source, stdout=out, stderr=err)
        timer = None
        deadline = start + LIMIT_SECONDS * float(os.environ.get("AWQ_DAMAGE_PATIENCE", "1"))
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                process.send_signal(signal.SIGKILL)
                _, status, usage = os.wait4(process.pid, 0)
                break
            time.sleep(0.002)
        process.returncode = 0    # waited for
        outcome.seconds = time.monotonic() - start
        outcome.bytes = usage.ru_maxrss * 1024
        outcome.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        outcome.status = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + outcome.signal
        out.seek(0)
        err.seek(0)
        outcome.out, outcome.err = out.read(1 << 20), err.read(1 << 20).decode(errors="replace")
    return outcome


def complaint(case, outcome, sound):
    """What is wrong with the outcome; None if nothing."""
    if outcome.seconds > LIMIT_SECONDS * float(os.environ.get("AWQ_DAMAGE_PATIENCE", "1")):
        return "took %.1f s" % outcome.seconds
    if outcome.signal:
        return "signal %d" % outcome.signal
    if outcome.bytes > LIMIT_BYTES:
        return "%d MiB of memory" % (outcome.bytes >> 20)
    errors = [line for line in outcome.err.splitlines() if not line.startswith("warning: ")]
    if case.answer is not None:
        text = outcome.out.decode(errors="replace")
        if outcome.status != 0 or case.answer not in text:
            return "status %d, answer %.300r, %.300r" % (outcome.status, text, outcome.err)
        return None
    if case.parts is None:
        if outcome.status != 0:
            return "refused: %.400r" % outcome.err
        if outcome.out != sound.out:
            return "another answer: %.200r" % outcome.out
        return None
    if outcome.status != 1:
        return "status %d, %.200r %.300r" % (outcome.status, outcome.out, outcome.err)
    if len(errors) != 1 or not errors[0].startswith("error: ") or len(outcome.err.splitlines()) > LIMIT_LINES:
        return "not one error line: %.600r" % outcome.err
    if len(errors[0]) > 1500 or any(ord(c) < 32 for c in errors[0]):
        return "a message not fit to print: %.300r" % errors[0]
    missing = [part for part in case.parts if part not in errors[0]]
    if missing:
        return "the message lacks %r: %s" % (missing, errors[0])
    return None
