"""Directories that are sound, though one does not see them every day: each must give the plain directory's answer."""
import json, os, random
from fixture import *
from weight_kinds import FILE, shards


def reordered(d):
    header, data = split_safetensors(d.read(FILE))
    names = sorted(header, key=lambda n: n[::-1])
    entries = {name: {k: header[name][k] for k in sorted(header[name])} for name in names}
    d.write(FILE, join_safetensors(entries, data))


def other_order_of_bytes(d):
    tensors = tensors_of(d.read(FILE))
    names = list(tensors)
    random.Random(7).shuffle(names)
    d.write(FILE, make_safetensors({name: tensors[name] for name in names}))


def with_text(change):
    def spoil(d):
        header, data = split_safetensors(d.read(FILE))
        d.write(FILE, join_safetensors(None, data, change(header)))
    return spoil


def linked(d):
    """As a snapshot in the Hugging Face cache: every file a link to a blob without an ending."""
    os.mkdir(d.file("blobs"))
    for i, name in enumerate(sorted(os.listdir(d.path))):
        if os.path.isfile(d.file(name)):
            os.rename(d.file(name), d.file("blobs/%040x" % i))
            os.symlink("blobs/%040x" % i, d.file(name))


def one_shard(d):
    tensors = tensors_of(d.read(FILE))
    os.rename(d.file(FILE), d.file("model-00001-of-00001.safetensors"))
    d.write("model.safetensors.index.json", json.dumps({"weight_map": {name: "model-00001-of-00001.safetensors" for name in tensors}}))


def cases():
    def tensors(edit):
        return lambda d: d.tensors(edit)

    def config(edit):
        return lambda d: d.json("config.json", edit)
    weights = {
        "keys in another order": reordered, "bytes in another order": other_order_of_bytes, "white space before and after the header": with_text(lambda h: "  \n\t" + json.dumps(h, indent=3) + " \n" * 50),
        "a header padded to a multiple of 4096": with_text(lambda h: json.dumps(h).ljust((len(json.dumps(h)) // 4096 + 1) * 4096)), "data at an odd place": with_text(lambda h: json.dumps(h) + (" " if len(json.dumps(h)) % 2 == 0 else "")),
        "a header of escapes": with_text(lambda h: json.dumps(h).replace("model", "\\u006dodel")), "members of entries that nobody knows": with_text(lambda h: json.dumps({k: dict(v, note=[1, {"x": None}]) if k != "__metadata__" else v for k, v in h.items()})),
        "metadata": lambda d: d.write(FILE, make_safetensors(tensors_of(d.read(FILE)), {"format": "pt", "more": "ä" * 1000})), "empty metadata": lambda d: d.write(FILE, make_safetensors(tensors_of(d.read(FILE)), {})),
        "tensors without elements": tensors(lambda t: t.update({"empty": ("F32", [0], b""), "empty.too": ("I32", [4, 0, 7], b"")})), "a tensor without dimensions": tensors(lambda t: t.update({"scalar": ("F32", [], bytes(4))})),
        "rotary frequencies of old files": tensors(lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", [16], bytes(64))})), "a type that is not computed with": tensors(lambda t: t.update({"extra": ("F8_E8M0", [3], bytes(3))})),
        "tensors nobody asks for": tensors(lambda t: t.update({"extra.weight": ("F64", [2, 2], bytes(32))})), "a name of 10,000 letters": tensors(lambda t: t.update({"x" * 10000: ("U8", [1], b"\0")})), "a name in Greek": tensors(lambda t: t.update({"λόγος": ("U8", [1], b"\0")})),
        "an empty name": tensors(lambda t: t.update({"": ("U8", [1], b"\0")})), "2,000 more tensors": tensors(lambda t: t.update({"extra.%d" % i: ("U8", [1], b"\0") for i in range(2000)})),
        "two shards": lambda d: shards(d) and None, "one listed shard": one_shard, "shards beside a stray one that is damaged": lambda d: (shards(d), d.write("model-00009-of-00009.safetensors", "damaged")),
        "an index of more than it needs": lambda d: (shards(d), d.json("model.safetensors.index.json", lambda i: i.update(more=[1, 2]))), "an index beside the whole file": lambda d: d.write("model.safetensors.index.json", "damaged"),
        "every file a link": linked, "a link to a directory": lambda d: (os.mkdir(d.file("real")), [os.rename(d.file(n), d.file("real/" + n)) for n in os.listdir(d.path) if n != "real"], [os.symlink("real/" + n, d.file(n)) for n in os.listdir(d.file("real"))]) and None,
        "files of every other kind beside": lambda d: [d.write(n, "x") for n in ("README.md", "pytorch_model.bin", "golden.safetensors", "consolidated.safetensors", ".gitattributes", "model.gguf", "tokenizer.model", "adapter_model.safetensors", "optimizer.pt")] and None,
        "a directory beside": lambda d: os.mkdir(d.file("original.safetensors")), "files that may only be read": lambda d: [os.chmod(d.file(n), 0o444) for n in os.listdir(d.path)] and None,
    }
    configs = {
        "unknown fields": config(lambda c: c.update(unknown={"deep": [1, 2, {"x": None}]}, auto_map={"AutoConfig": "x.Y"}, _name_or_path="/nowhere", transformers_version="99.0")), "fields of null": config(lambda c: c.update(rope_scaling=None, head_dim=None, sliding_window=None, pad_token_id=None, layer_types=None)),
        "rope_theta as an integer": config(lambda c: c.update(rope_theta=int(c["rope_theta"]))) , "indentation and line ends of Windows": lambda d: d.write("config.json", json.dumps(json.loads(d.read("config.json")), indent=4).replace("\n", "\r\n")),
        "keys in another order": config(lambda c: dict(sorted(c.items(), reverse=True))), "a config of 1 MB": config(lambda c: c.update(id2label={str(i): "LABEL_%d" % i for i in range(40000)})), "128 nested lists": config(lambda c: c.update(deep=json.loads("[" * 120 + "]" * 120))),
        "the version in capitals": config(lambda c: c["quantization_config"].update(version="GEMM")), "unknown fields of quantization_config": config(lambda c: c["quantization_config"].update(unknown=1, provider="x")), "no backend": config(lambda c: c["quantization_config"].pop("backend", 0) and None),
        "modules_to_not_convert of null": config(lambda c: c["quantization_config"].update(modules_to_not_convert=None)), "quantization of a file of its own": lambda d: (d.write("quant_config.json", json.dumps({"zero_point": True, "q_group_size": json.loads(d.read("config.json"))["quantization_config"]["group_size"], "w_bit": 4, "version": "GEMM"})), d.json("config.json", lambda c: c.pop("quantization_config") and None)) and None,
        "no generation_config.json": lambda d: d.remove("generation_config.json"), "an empty generation_config.json": lambda d: d.write("generation_config.json", "{}"), "a generation_config.json of unknown fields": lambda d: d.write("generation_config.json", '{"x": 1, "eos_token_id": [2, 3], "temperature": 1, "top_p": 1}'),
        "eos_token_id of none": lambda d: d.write("generation_config.json", '{"eos_token_id": null}'), "escapes in keys": lambda d: d.write("config.json", d.read("config.json").replace(b'"hidden_size"', b'"hidden_\\u0073ize"')), "torch_dtype as dtype": config(lambda c: c.update(dtype=c.pop("torch_dtype"))),
        "no torch_dtype": config(lambda c: c.pop("torch_dtype") and None), "architectures of none": config(lambda c: c.pop("architectures") and None), "no tokenizer at all": lambda d: (d.remove("tokenizer.json"), d.remove("tokenizer_config.json")) and None,
    }
    for name, spoil in weights.items():
        yield Case("unusual weights: " + name, spoil, GENERATE)
    for name, spoil in configs.items():
        yield Case("unusual config: " + name, spoil, GENERATE)

    def tokens(edit):
        return lambda d: d.json("tokenizer.json", edit)
    more = {"id": 390, "content": "<pad>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    texts = {
        "an added token past the vocabulary": tokens(lambda t: t["added_tokens"].append(more)), "merges as pairs": tokens(lambda t: t["model"].update(merges=[m.split(" ") for m in t["model"]["merges"]])), "truncation and padding": tokens(lambda t: t.update(truncation={"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}, padding={"strategy": "BatchLongest"})),
        "unknown fields": tokens(lambda t: t.update(more=[1])), "no version": tokens(lambda t: t.pop("version") and None), "model.type of nothing": tokens(lambda t: t["model"].pop("type") and None), "ids in another order": tokens(lambda t: t["model"].update(vocab=dict(sorted(t["model"]["vocab"].items())))),
        "an unk_token that is no token": tokens(lambda t: t["model"].update(unk_token="<nothing>")), "holes in the ids": tokens(lambda t: t["model"]["vocab"].pop("<word380>") and None), "white space": lambda d: d.write("tokenizer.json", json.dumps(json.loads(d.read("tokenizer.json")), indent=8)), "a Sequence of one": tokens(lambda t: t.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [t["pre_tokenizer"]]})),
    }
    for name, spoil in texts.items():
        yield Case("unusual tokenizer: " + name, spoil, CHAT)
    chats = {
        "a template in a file of its own": lambda d: (d.write("chat_template.jinja", CHATML), d.json("tokenizer_config.json", lambda c: c.pop("chat_template") and None)) and None, "a list of templates": lambda d: d.json("tokenizer_config.json", lambda c: c.update(chat_template=[{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}])),
        "special tokens as objects": lambda d: d.json("tokenizer_config.json", lambda c: c.update(bos_token={"__type": "AddedToken", "content": "<s>", "lstrip": False})), "added_tokens_decoder": lambda d: d.json("tokenizer_config.json", lambda c: c.update(added_tokens_decoder={"0": {"content": "<unk>"}}, model_max_length=1000000000000000019884624838656)),
        "special_tokens_map.json": lambda d: d.write("special_tokens_map.json", '{"bos_token": "<s>", "eos_token": {"content": "</s>"}}'),
    }
    for name, spoil in chats.items():
        yield Case("unusual chat: " + name, spoil, CHAT)
    yield Case("unusual command: a path with spaces", lambda d: (os.mkdir(d.file("a b")), [os.rename(d.file(n), d.file("a b/" + n)) for n in os.listdir(d.path) if n != "a b"]) and None, ["eval", "generate", "-t", "1", "-m", "{}/a b"], answer='{"ids": [')
    yield Case("unusual line: 64 levels", lambda d: None, RENDER, stdin='{"template": "{{ a|length }}", "vars": {"a": %s}}\n' % ("[" * 61 + "]" * 61), answer='{"text": "')
    yield Case("unusual line: empty lines between", lambda d: None, TOKENIZE, stdin='\n  \n{"text": "the"}\n\n', answer='{"ids": [262]}')
    yield Case("unusual line: no line end", lambda d: None, TOKENIZE, stdin='{"text": "the"}', answer='{"ids": [262]}')
