"""Damage to tokenizers, chat templates, and the JSON lines of requests."""
import json
from fixture import *

TEXT = '{"text": "the inn at the sea"}\n'


def tokenizers():
    def t(edit):
        return lambda d: d.json("tokenizer.json", edit)

    def put(path, value):
        def edit(json_):
            at = json_
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value
        return t(edit)
    for value in ("2.0", 1, [], {}, True):
        yield "version is %s" % json.dumps(value), put(["version"], value), ["version"]
    for value in (None, 7, "x", [], True):
        yield "model is %s" % json.dumps(value), put(["model"], value), ["model"]
    yield "model is gone", t(lambda j: j.pop("model") and None), ["model"]
    for value in ("WordPiece", "Unigram", "WordLevel", "bpe", "", None, 7, []):
        yield "model.type is %s" % json.dumps(value), put(["model", "type"], value), ["model"]
    for value in (None, 7, "x", [], True, {}):
        yield "model.vocab is %s" % json.dumps(value), put(["model", "vocab"], value), ["model"]
    for value in (-1, 2**31, 2**32, 2**63, 2**64, 10**30, 1.0, 1.5, "7", True, None, [], {}):
        yield "an id of %s" % json.dumps(value), put(["model", "vocab", "the"], value), ["model.vocab", "the"]
    yield "an id twice", put(["model", "vocab", "the"], 7), ["model.vocab", "7"]
    yield "a token twice", lambda d: d.write("tokenizer.json", d.read("tokenizer.json").replace(b'"the": ', b'"in": 999, "the": ', 1)), ["model.vocab"]
    yield "a token twice, once escaped", lambda d: d.write("tokenizer.json", d.read("tokenizer.json").replace(b'"the": ', b'"\\u0069n": 999, "the": ', 1)), ["model.vocab"]
    yield "keys of the document twice", lambda d: d.write("tokenizer.json", d.read("tokenizer.json").replace(b'"truncation"', b'"model": {}, "truncation"', 1)), ["stands twice"]
    for value in (["t h", "x"], ["t h", ""], [" "], ["t h h"], [["t"]], [["t", "h", "e"]], [["t", 7]], [7], [None], {}, "x", 7, None, ["zz yy"], ["t \u0100nothere"], [["t", "zz"]], ["the word"], [["", ""]]):
        yield "merges are %s" % json.dumps(value), put(["model", "merges"], value), ["merges"]
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        for value in (7, [], True):
            yield "model.%s is %s" % (name, json.dumps(value)), put(["model", name], value), ["model"]
    for name in ("byte_fallback", "ignore_merges", "fuse_unk"):
        for value in ("x", 7, []):
            yield "model.%s is %s" % (name, json.dumps(value)), put(["model", name], value), ["model", name]
    for value in (7, [], {}):
        yield "model.unk_token is %s" % json.dumps(value), put(["model", "unk_token"], value), ["unk_token"]
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for value in ({"type": "Nonsense"}, {"type": 7}, {}, [], "x", 7, True, {"type": "Sequence"}, {"type": "Sequence", part + "s": {}}, {"type": "Sequence", part + "s": [{"type": "Nonsense"}]}):
            if not (part == "post_processor" and value == {"type": "Sequence"}):
                yield "%s is %s" % (part, json.dumps(value)), put([part], value), [part]
    nested = {"type": "ByteLevel"}
    for _ in range(50):
        nested = {"type": "Sequence", "pretokenizers": [nested]}
    for name, pattern in {"unbalanced": "(", "a bad range": "[z-a]", "a bad repeat": "a{999999999}", "a bad escape": "\\p{Nonsense}", "an open class": "[a", "a back reference": "(a)\\1", "a lookbehind": "(?<=a*)b",
                          "a recursion": "(?R)", "a million groups": "(" * 1000000, "a million alternatives": "a|" * 1000000, "nested repeats": "((a{1000}){1000}){1000}", "an empty name": "(?<>a)"}.items():
        yield "a pattern with " + name, put(["pre_tokenizer"], {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}), ["pre_tokenizer"]
    for value in ({"type": "Split", "pattern": {"Regex": 7}, "behavior": "Isolated", "invert": False}, {"type": "Split", "pattern": "x", "behavior": "Isolated", "invert": False}, {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Nonsense", "invert": False},
                  {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": "x"}, {"type": "Split"}, {"type": "ByteLevel", "use_regex": "x"}, {"type": "ByteLevel", "add_prefix_space": 7}, {"type": "Metaspace", "replacement": 7}, {"type": "Metaspace", "replacement": "xx", "prepend_scheme": "always"}, {"type": "Metaspace", "prepend_scheme": "nonsense"}):
        yield "pre_tokenizer is %s" % json.dumps(value)[:90], put(["pre_tokenizer"], value), ["pre_tokenizer"]
    for value in ({"type": "Replace"}, {"type": "Replace", "pattern": {"String": 7}, "content": "x"}, {"type": "Replace", "pattern": {"Regex": "("}, "content": "x"}, {"type": "Prepend"}, {"type": "Prepend", "prepend": 7}, {"type": "Precompiled", "precompiled_charsmap": "x"}):
        yield "normalizer is %s" % json.dumps(value), put(["normalizer"], value), ["normalizer"]
    for value in ({"type": "TemplateProcessing"}, {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}], "pair": [], "special_tokens": {}}, {"type": "TemplateProcessing", "single": "x", "pair": [], "special_tokens": {}},
                  {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": ["x"], "tokens": ["<s>"]}}},
                  {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [-1], "tokens": ["<s>"]}}}):
        yield "post_processor is %s" % json.dumps(value)[-110:], put(["post_processor"], value), ["post_processor"]
    for value in ({}, "x", 7, [7], [None], [{}], [{"id": 0}], [{"content": "x"}], [{"id": "0", "content": "<unk>"}], [{"id": -1, "content": "<unk>"}], [{"id": 2**32, "content": "x"}], [{"id": 1.5, "content": "x"}],
                  [{"id": 0, "content": 7}], [{"id": 0, "content": "<unk>", "special": "x"}], [{"id": 0, "content": "<unk>", "lstrip": 7}]):
        yield "added_tokens is %s" % json.dumps(value), put(["added_tokens"], value), ["added_tokens"]


def templates():
    bomb = "{%% for a in range(%d) %%}{%% for b in range(%d) %%}{{ a }}{%% endfor %%}{%% endfor %%}"
    table = {
        "an endless loop": bomb % (100000, 100000), "a loop over a huge range": "{% for a in range(1000000000000) %}{% endfor %}", "a string a billion times": "{{ 'x' * 1000000000 }}",
        "a string of doubled strings": "{% set a = 'xxxxxxxxxxxxxxxx' %}" + "{% set a = a + a %}" * 60 + "{{ a }}", "a list of doubled lists": "{% set a = [1] %}" + "{% set a = a + a %}" * 60 + "{{ a }}",
        "numbers multiplied": "{% set a = 10 %}" + "{% set a = a * a %}" * 60 + "{{ a }}", "a power": "{{ 10 ** 10000000 }}", "a shift by powers": "{{ 2 ** 2 ** 2 ** 2 ** 2 ** 2 }}",
        "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "two macros that call each other": "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
        "100,000 brackets": "{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}", "100,000 lists": "{{ " + "[" * 100000 + "]" * 100000 + " }}", "100,000 nots": "{{ " + "not " * 100000 + "1 }}", "100,000 signs": "{{ " + "-" * 100000 + "1 }}",
        "100,000 ifs": "{% if 1 %}" * 100000, "100,000 loops": "{% for a in [1] %}" * 100000 + "{% endfor %}" * 100000, "100,000 filters": "{{ 'a'" + "|upper" * 1000000 + " }}", "100,000 attributes": "{{ a" + ".b" * 100000 + " }}", "100,000 additions": "{{ 1" + "+ 1" * 1000000 + " }}",
        "an attribute of Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}", "an attribute that is undefined, used": "{{ messages._private.x }}", "an import": "{% import 'os' as os %}{{ os }}", "an include": "{% include '/etc/passwd' %}", "an extends": "{% extends 'x' %}",
        "a tag that is unknown": "{% nonsense %}", "a filter that is unknown": "{{ 1|nonsense }}", "a test that is unknown": "{{ 1 is nonsense }}", "a function that is unknown": "{{ nonsense() }}", "an open brace": "{{", "an open tag": "{% if", "an open string": "{{ 'a", "an open comment": "{# x", "an if without its end": "{% if 1 %}",
        "an end without its if": "{% endif %}", "an else without its if": "{% else %}", "a for without in": "{% for x %}{% endfor %}", "a division by zero": "{{ 1 / 0 }}", "a remainder by zero": "{{ 1 % 0 }}", "an addition of words and numbers": "{{ 'a' + 1 }}", "an iteration over a number": "{% for x in 7 %}{% endfor %}",
        "raise_exception": "{{ raise_exception('no roles') }}", "a wide format": "{{ '%999999999d' % 1 }}", "a wide centre": "{{ 'a'.center(1000000000) }}", "a wide ljust": "{{ 'a'.ljust(1000000000) }}", "a wide indent": "{{ 'a'|indent(1000000000, true) }}", "a join of many": "{{ range(100000)|join('x' * 1000) }}", "a replace that grows": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
        "a date of a wide format": "{{ strftime_now('%Y' * 1000000) }}", "tojson of a wide indent": "{{ [1]|tojson(indent=1000000000) }}", "a huge slice": "{{ ('a' * 1000000)[::-1] * 100 }}", "a dict of a million": "{% for i in range(1000000) %}{% set x = {'a': i} %}{% endfor %}", "a namespace that holds itself": "{% set n = namespace() %}{% set n.n = n %}{{ n }}{{ [n]|tojson }}",
        "batches without end": "{{ range(100000)|batch(1)|list }}" * 100, "a sort of many": "{{ range(100000)|sort|list }}" * 100, "NUL bytes": "{{ '\u0000' }}{{", "a generation tag left open": "{% generation %}x", "a call block of nothing": "{% call f() %}x{% endcall %}", "a loop that recurses": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    }
    for name, template in table.items():
        yield name, template


def lines():
    yield "no JSON", "x\n", '{"error": '
    yield "a list", "[]\n", '{"error": '
    yield "65 levels", '{"text": %s}\n' % ("[" * 65 + "]" * 65), "deeper than 64"
    yield "a million levels", "[" * 1000000 + "\n", '{"error": '
    yield "twin keys", '{"text": "a", "text": "b"}\n', "stands twice"
    yield "escaped twin keys", '{"text": "a", "\\u0074ext": "b"}\n', "stands twice"
    yield "bytes that are no UTF-8", b'{"text": "\xff"}\n', '{"error": '
    yield "a lone surrogate", '{"text": "\\ud800"}\n', '{"error": '
    yield "a NUL byte", b'{"text": "a\0b"}\n', '{"error": '
    yield "a byte order mark", b'\xef\xbb\xbf{"text": "a"}\n', '{"error": '
    yield "a line of 40 MiB", '{"text": "%s"}\n' % ("x" * (40 << 20)), '{"error": '
    yield "text of another type", '{"text": 7}\n', "text: found 7"
    yield "no text", "{}\n", "text: found nothing"
    yield "an option of another type", '{"text": "a", "add_special_tokens": 1}\n', "add_special_tokens"
    yield "a bad line, then a good one", 'x\n{"text": "the"}\n', '{"ids": [262]}'


def id_lines():
    for ids in ("[]", "[-1]", "[384]", "[1.0]", '["1"]', "[null]", "[true]", "7", "null", "{}", "[2147483648]", "[9999999999999999999999]", "[[1]]", "[%s]" % ", ".join(["1"] * 600)):
        yield "ids %s" % ids[:30], '{"ids": %s, "n": 2}\n' % ids, '{"error": '
    for n in ("-1", "0.5", '"2"', "9999999999", "null,", "1e9"):
        yield "n is %s" % n, '{"ids": [1], "n": %s}\n' % n, '{"error": '
    for batch in ("7", "[]", "[7]", "[[]]", '[["x"]]', "[[1], [-1]]"):
        yield "batch is %s" % batch, '{"batch": %s, "n": 2}\n' % batch, '{"error": '
    for pixels in ("7", '"x"', '["x"]', "[[[1]]]", "[]"):
        yield "pixel_values is %s" % pixels, '{"ids": [1], "n": 2, "pixel_values": %s}\n' % pixels, '{"error": '


def perplexities():
    yield "an empty text_file", '{"text_file": ""}\n', 'text_file: found \\"\\"; expected the path of a text'
    yield "a text_file of another type", '{"text_file": 7}\n', "text_file: found 7; expected a string"
    yield "a text_file that is not there", '{"text_file": "/nowhere/text"}\n', "text_file: /nowhere/text: cannot be opened: No such file or directory"
    yield "a text_file without end", '{"text_file": "/dev/zero"}\n', "text_file: /dev/zero: is no regular file"
    yield "an empty text", '{"text_file": "/dev/null"}\n', "text_file: /dev/null: is no regular file"
    yield "a text_file of a NUL", '{"text_file": "a\\u0000b"}\n', "text_file: a\\\\x00b: a path holds no NUL"
    yield "neither a file nor ids", "{}\n", "ids: found nothing; expected a list of token ids"
    yield "too few ids", '{"ids": [1], "ctx": 2}\n', "ids: 1 tokens; expected at least one window of 2"
    for name, value, said in (("ctx", "1", "from 2 to 512"), ("ctx", "513", "from 2 to 512"), ("ctx", "1e2", "from 2 to 512"), ("windows", "0", "from 1 to 2147483647"), ("windows", '"2"', "from 1 to 2147483647")):
        yield "%s of %s" % (name, value), '{"ids": [1, 5, 9, 17], "%s": %s}\n' % (name, value), said


def long_rows():
    """256 components in a row over a long text, or over many tokens"""
    accents = "e\u0301\u1e9b\u0323 " * 120000
    for part, lists, component, text in (("normalizer", "normalizers", {"type": "NFKD"}, accents), ("normalizer", "normalizers", {"type": "Lowercase"}, "A" * (16 << 20)),
                                         ("pre_tokenizer", "pretokenizers", {"type": "Digits", "individual_digits": True}, "1" * (1 << 20)), ("pre_tokenizer", "pretokenizers", {"type": "Whitespace"}, "a" * (16 << 20))):
        yield "256 of %s over %d letters" % (component["type"], len(text)), part, lists, component, TOKENIZE, json.dumps({"text": text}, ensure_ascii=False) + "\n"
    for component in ({"type": "Fuse"}, {"type": "WordPiece", "prefix": "##", "cleanup": True}, {"type": "BPEDecoder", "suffix": "e"}):
        yield "256 of %s over a million tokens" % component["type"], "decoder", "decoders", component, ["eval", "detokenize", "-m", "{}"], json.dumps({"ids": [262] * 1000000}) + "\n"


def crowds():
    """Many added tokens: to be normalized one by one, to be looked for at every place, to cut a text into parts that grow"""
    def added(count, content, **members):
        flags = dict({"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}, **members)
        return lambda j: j["added_tokens"].extend(dict(flags, id=400 + i, content=content(i)) for i in range(count))

    def grow(j):
        added(1, lambda i: "|")(j)
        j["normalizer"] = {"type": "Prepend", "prepend": "a" * 4000}

    def normalize(j):
        added(20000, lambda i: "A" * 800 + str(i), normalized=True)(j)
        j["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * 256}
    yield "20,000 added tokens through 256 components", normalize, "the", None
    yield "1,000 added tokens that begin alike", added(1000, lambda i: "a" * (i + 1) + "b"), "a" * (1 << 20), "added_tokens: gave up after too many steps on this text"
    yield "a text 16 times in the template", lambda j: j.__setitem__("post_processor", {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 16, "pair": [], "special_tokens": {}}), \
        "x" * (16 << 20), "post_processor: 16 times the text's 16777216 tokens; expected at most 16777216 in all"
    yield "a text cut into 500,000 parts that grow", grow, "a|" * 500000, "normalizer: the text grows beyond 67108864 bytes"


def renders():
    for name, request in {"messages of another type": '{"messages": 7}', "a message that is no object": '{"messages": [7]}', "a message of nulls": '{"messages": [null]}', "tools of another type": '{"messages": [], "tools": 7}',
                          "a template of another type": '{"messages": [], "template": 7}', "a time that is none": '{"messages": [], "now": "yesterday"}', "vars of another type": '{"template": "x", "vars": 7}',
                          "extra of another type": '{"messages": [], "extra": 7}', "a flag of another type": '{"messages": [], "add_generation_prompt": 7}'}.items():
        yield name, request + "\n"


def cases():
    for name, spoil, parts in tokenizers():
        yield Case("tokenizer: " + name, spoil, TOKENIZE, ["tokenizer.json"] + parts, stdin=TEXT)
    yield Case("tokenizer: an id past the embedding, by chat", lambda d: d.json("tokenizer.json", lambda j: j["model"]["vocab"].__setitem__("the", 999)), CHAT, ["tokenizer.json"])
    slow = {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False}
    for name, pattern in {"(a|aa)+$": "(a|aa)+$", "(a+)+b": "(a+)+b", "(.*)*x": "(.*)*x", "(a?){50}a{50}": "(a?){50}a{50}", "(?:a+a+)+c": "(?:a+a+)+c"}.items():
        yield Case("tokenizer: the pattern %s on 100,000 letters" % name, (lambda p: lambda d: d.json("tokenizer.json", lambda j: j.__setitem__("pre_tokenizer", dict(slow, pattern={"Regex": p}))))(pattern),
                   TOKENIZE, stdin='{"text": "%s"}\n' % ("a" * 100000), answer="{")
    for name, template in templates():
        yield Case("template: " + name, lambda d: None, RENDER, stdin=json.dumps({"messages": [{"role": "user", "content": "hi"}], "template": template}) + "\n", answer='{"')
        if name in ("an endless loop", "an open tag", "a macro that calls itself", "a string a billion times", "raise_exception", "100,000 brackets"):
            yield Case("template: %s, by chat" % name, (lambda t: lambda d: d.json("tokenizer_config.json", lambda c: c.__setitem__("chat_template", t)))(template), CHAT, [""])
    for value in (7, True, {}, [7], [{"name": "default"}], [{"name": 7, "template": "x"}]):
        yield Case("template: chat_template is %s" % json.dumps(value), (lambda v: lambda d: d.json("tokenizer_config.json", lambda c: c.__setitem__("chat_template", v)))(value), CHAT, ["chat_template"])
    for name in ("bos_token", "eos_token"):
        for value in (7, [], {"content": 7}, True):
            yield Case("tokenizer_config.json: %s is %s" % (name, json.dumps(value)), (lambda n, v: lambda d: d.json("tokenizer_config.json", lambda c: c.__setitem__(n, v)))(name, value), CHAT, [name])
    for name, line, answer in lines():
        yield Case("line: " + name, lambda d: None, TOKENIZE, stdin=line, answer=answer)
    for name, line, answer in id_lines():
        yield Case("line: " + name, lambda d: None, GENERATE, stdin=line, answer=answer)
    for name, line, answer in perplexities():
        yield Case("line: perplexity: " + name, lambda d: None, ["eval", "perplexity", "-t", "1", "-m", "{}"], stdin=line, answer=answer)
    for name, part, lists, component, command, line in long_rows():
        yield Case("tokenizer: " + name, (lambda p, l, c: lambda d: d.json("tokenizer.json", lambda j: j.__setitem__(p, {"type": "Sequence", l: [c] * 256})))(part, lists, component),
                   command, stdin=line, answer=part + ": gave up after too many steps on this text")
    for name, edit, said in (("a Replace to a million letters", lambda j: j.__setitem__("decoder", {"type": "Replace", "pattern": {"String": "t"}, "content": "z" * 1000000}), "decoder: the text grows beyond 67108864 bytes"),
                             ("a token of a million letters", lambda j: (j["model"]["vocab"].pop("<word383>"), j["model"]["vocab"].update({"y" * 1000000: 383})) and None, "decoder: the text grows beyond 67108864 bytes")):
        yield Case("tokenizer: %s, 4,000 times" % name, (lambda e: lambda d: d.json("tokenizer.json", e))(edit), ["eval", "detokenize", "-m", "{}"], stdin=json.dumps({"ids": [262, 383] * 2000}) + "\n", answer=said)
    for name, edit, text, answer in crowds():
        yield Case("tokenizer: " + name, (lambda e: lambda d: d.json("tokenizer.json", lambda j: e(j)))(edit), TOKENIZE, None if answer else ["tokenizer.json", "added_tokens[", "normalizer: gave up after too many steps on this text"],
                   stdin=json.dumps({"text": text}) + "\n", answer=answer)
    for name, line in renders():
        yield Case("line: " + name, lambda d: None, RENDER, stdin=line, answer='{"error": ')
