"""Damage to config.json, generation_config.json and quantisation settings: each field with values that are not its own."""
import json
from fixture import *

NOT_INTEGERS = ["4", 4.0, 4.5, True, [], [4], {}, -1, 0, 2**63, 2**64, 10**30, -2**63, 1e300]


def field(path, value, file="config.json"):
    def spoil(d):
        def edit(config):
            at = config
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value
        d.json(file, edit)
    return spoil


def shown(value):
    return json.dumps(value)[:24]


def config():
    integers = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size", "max_position_embeddings"]
    for name in integers:
        for value in NOT_INTEGERS:
            yield "%s is %s" % (name, shown(value)), field([name], value), ["config.json", name, "expected"]
    for name, value in (("hidden_size", 257), ("hidden_size", 512), ("intermediate_size", 511), ("num_attention_heads", 7), ("num_attention_heads", 16),
                        ("num_key_value_heads", 3), ("num_key_value_heads", 16), ("vocab_size", 385), ("vocab_size", 1), ("num_hidden_layers", 1),
                        ("num_hidden_layers", 3), ("num_hidden_layers", 100000), ("head_dim", 33), ("head_dim", 64), ("hidden_size", 2**31), ("vocab_size", 2**31 - 1)):
        yield "%s is %d" % (name, value), field([name], value), ["known here" if isinstance(value, dict) and "model_type" in value else "expected"]
    for name in ("rms_norm_eps", "rope_theta"):
        for value in ("1e-5", True, [], {}, -1, -1e-5):
            yield "%s is %s" % (name, shown(value)), field([name], value), ["config.json", name, "expected"]
    yield "rope_theta is 0", field(["rope_theta"], 0), ["rope_theta", "expected"]
    for value in ("nonsense", "", 7, [], {}, True, "silu\u0000", "x" * 100000):
        yield "hidden_act is %s" % shown(value), field(["hidden_act"], value), ["config.json", "hidden_act", "expected"]
    for value in ("nonsense", "", 7, [], {}, None, True, "../llama", "LLAMA\u0000", "x" * 100000):
        yield "model_type is %s" % shown(value), field(["model_type"], value), ["config.json", "model_type"]
    for name in ("tie_word_embeddings",):
        for value in ("true", 1, 0, [], {}):
            yield "%s is %s" % (name, shown(value)), field([name], value), ["config.json", name, "expected"]
    for value in ("linear", 7, [], True):
        yield "rope_scaling is %s" % shown(value), field(["rope_scaling"], value), ["rope_scaling", "expected"]
    for value in ({"type": "nonsense", "factor": 2.0}, {"type": "linear"}, {"type": "linear", "factor": "2"}, {"type": "linear", "factor": 0}, {"type": "linear", "factor": -1.0},
                  {"type": 7}, {"rope_type": "llama3", "factor": 8.0}, {"rope_type": "yarn"}, {"rope_type": "longrope"}, {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
                  {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
                  {"rope_type": "yarn", "factor": 1e300}, {"rope_type": "dynamic", "factor": []}, {"factor": 2.0, "rope_type": {}}):
        yield "rope_scaling is %s" % json.dumps(value)[:60], field(["rope_scaling"], value), ["config.json", "expected"]
    for value in ("2", [-1], ["2"], [[]], {}, 2.0, -5, 2**40, True):
        yield "eos_token_id is %s" % shown(value), field(["eos_token_id"], value, "generation_config.json"), ["generation_config.json", "eos_token_id"]
    for name, values in {"temperature": ("1", -1, [], 1e300, True), "top_p": (2, -0.1, "0.9", {}), "top_k": (-1, 1.5, "50", [], 2**63), "repetition_penalty": (0, -1, "1", []), "do_sample": ("true", 1, [])}.items():
        for value in values:
            yield "%s is %s" % (name, shown(value)), field([name], value, "generation_config.json"), ["generation_config.json", name, "expected"]


def quantization():
    def q(**members):
        return lambda d: d.json("config.json", lambda c: c["quantization_config"].update(members))
    for value in (3, 8, 2, 0, -4, 4.0, "4", None, [], True, 2**40):
        yield "bits is %s" % shown(value), q(bits=value), ["config.json", "bits", "expected"]
    for value in (0, -2, 3, 48, 100000, 32.0, "32", None, [], True, 2**63, 2**64, 2**31):
        yield "group_size is %s" % shown(value), q(group_size=value), ["group_size"]
    for value in ("nonsense", "", 7, None, [], True, "GEMM\u0000"):
        yield "version is %s" % shown(value), q(version=value), ["config.json", "version", "expected"]
    for value in (7, [], True, {}):
        yield "quant_method is %s" % shown(value), q(quant_method=value), ["config.json", "quant_method"]
    yield "quant_method is nothing", lambda d: d.json("config.json", lambda c: c["quantization_config"].pop("quant_method") and None), ["quant_method", "expected"]
    yield "quant_method is unknown", q(quant_method="bitsandbytes"), ["config.json", "expected"]
    yield "quant_method is compressed-tensors", q(quant_method="compressed-tensors"), ["config_groups"]
    for value in (7, True, {}, [7], [None], [["a"]]):
        yield "modules_to_not_convert is %s" % shown(value), q(modules_to_not_convert=value), ["config.json", "modules_to_not_convert", "expected"]
    for value in ("true", 1, [], None):
        yield "zero_point is %s" % shown(value), q(zero_point=value), ["config.json", "zero_point", "expected"]
    for value in ("x", 7, [], True):
        yield "quantization_config is %s" % shown(value), field(["quantization_config"], value), ["config.json", "quantization_config", "expected"]
    yield "quantization_config is gone", lambda d: d.json("config.json", lambda c: c.pop("quantization_config") and None), ["quantization_config", "expected"]
    for value in ("x", 7, [], True, {"hidden_size": 256}):
        yield "modules_to_fuse is %s" % shown(value), q(modules_to_fuse=value, do_fuse=True, fuse_max_seq_len=64), ["modules_to_fuse", "expected"]
    yield "do_fuse without a length", q(do_fuse=True), ["fuse_max_seq_len", "expected"]
    for value in ("64", -1, 1.5, [], 2**63):
        yield "fuse_max_seq_len is %s" % shown(value), q(do_fuse=True, fuse_max_seq_len=value), ["fuse_max_seq_len", "expected"]
    for value in ({}, {"version": 3}, {"version": "2"}, {"version": 2, "max_input_len": 0}, {"version": 2, "max_batch_size": "8"}, [], 7):
        yield "exllama_config is %s" % shown(value), q(version="exllama", exllama_config=value), ["exllama_config", "expected"]
    yield "a million modules not to convert", q(modules_to_not_convert=["m%d" % i for i in range(300000)]), ["config.json", "modules_to_not_convert", "expected"]
    yield "a name that looks like a regular expression bomb", q(modules_to_not_convert=["(a+)+" * 200 + "$", "lm_head"]), None


def other_models():
    """The fields only some models have, on models of those families."""
    table = [
        ("mixtral-gemm", "num_local_experts", (0, -1, 3, 100000, 8.0, "8")), ("mixtral-gemm", "num_experts_per_tok", (0, -1, 100, 2.0, "2")),
        ("mixtral-gemm", "sliding_window", ("x", -1, 0, 1.5, [])), ("gemma3-gemm", "sliding_window", ("x", -1, 1.5, [])),
        ("gemma3-gemm", "sliding_window_pattern", ("x", -1, 1.5, [])), ("gemma3-gemm", "query_pre_attn_scalar", ("x", -1, [])),
        ("gemma3-gemm", "head_dim", (33, 0, -8, "32", 128)), ("gptj-gemm", "rotary_dim", ("x", -1, 3, 1000, 8.5)), ("gptj-gemm", "n_layer", (0, "2", 100, 1)),
        ("gptj-gemm", "n_embd", (0, "256", 255)), ("gptj-gemm", "n_head", (0, 3, "8")), ("falcon-new-gemm", "num_kv_heads", (0, 3, "2")),
        ("falcon-new-gemm", "new_decoder_architecture", (1, "true", [])), ("falcon-new-gemm", "alibi", (1, "x")), ("cohere-gemm", "logit_scale", ("x", [], True)),
        ("cohere-gemm", "layer_norm_eps", ("x", -1, [])), ("phi3-longrope", "original_max_position_embeddings", (0, -1, "x", 1.5)),
        ("phi3-longrope", "rope_scaling", ("x", {"type": "longrope"}, {"type": "longrope", "short_factor": ["x"], "long_factor": [1]}, {"type": "su", "short_factor": [], "long_factor": []})),
        ("qwen3-gemm", "head_dim", (0, 33, "32", 1 << 20)), ("qwen3-gemm", "max_window_layers", ("x", -1)),
        ("llava-gemm", "vision_feature_layer", (100, -100, "x", 1.5, [])), ("llava-gemm", "vision_feature_select_strategy", ("x", 7)),
        ("llava-gemm", "image_token_index", (-1, "x", 2**40)), ("llava-gemm", "text_config", ("x", 7, [], {"model_type": "llava"}, {"model_type": "nonsense"})),
        ("llava-gemm", "vision_config", ("x", 7, [])), ("llava-gemm", "projector_hidden_act", ("x", 7)),
        ("llama-yarn-rope", "rope_scaling", ({"type": "yarn"}, {"type": "yarn", "factor": 0}, {"type": "yarn", "factor": 4.0, "beta_fast": "x"}, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0})),
    ]
    for model, name, values in table:
        for value in values:
            yield model, "%s: %s is %s" % (model, name, json.dumps(value)[:50]), field([name], value), ["known here" if isinstance(value, dict) and "model_type" in value else "expected"]
    for name, value in (("image_size", 0), ("patch_size", 0), ("patch_size", 1000), ("hidden_size", 63), ("num_attention_heads", 5), ("num_hidden_layers", 0), ("num_hidden_layers", 9), ("hidden_act", "x"), ("image_size", 100000)):
        yield "llava-gemm", "llava-gemm: vision_config.%s is %s" % (name, shown(value)), field(["vision_config", name], value), ["expected"]
    for edit in ({"num_bits": 8}, {"num_bits": "4"}, {"type": "float"}, {"strategy": "tensor"}, {"group_size": 64}, {"group_size": 0}, {"symmetric": "x"}):
        def spoil(d, edit=edit):
            d.json("config.json", lambda c: list(c["quantization_config"]["config_groups"].values())[0]["weights"].update(edit))
        yield "llama-ct-asym-g128", "compressed-tensors: %s" % json.dumps(edit), spoil, ["expected"]
    for edit in ({"bits": 8}, {"bits": "4"}, {"group_size": 64}, {"desc_act": "x"}, {"sym": 7}, {"checkpoint_format": "x"}):
        yield "llama-gptq-actorder-g32", "gptq: %s" % json.dumps(edit), (lambda edit: lambda d: d.json("config.json", lambda c: c["quantization_config"].update(edit)))(edit), ["expected"]
    for value in (-1, 8, 2**31 - 1):
        def spoil(d, value=value):
            for file in os.listdir(d.path):
                if file.endswith(".safetensors"):
                    def edit(t):
                        for name in t:
                            if name.endswith("g_idx"):
                                t[name] = (t[name][0], t[name][1], struct.pack("<i", value) + t[name][2][4:])
                                break
                    d.tensors(edit, file)
        yield "llama-gptq-actorder-g32", "gptq: g_idx of %d" % value, spoil, ["g_idx", "expected"]


def cases():
    for group in (config, quantization):
        for name, spoil, parts in group():
            yield Case("config: " + name, spoil, GENERATE, parts)
    for model, name, spoil, parts in other_models():
        yield Case("config: " + name, spoil, GENERATE, parts, model=model)
    for command in (INSPECT, CHAT):
        yield Case("config: bits 3, by " + command[0], lambda d: d.json("config.json", lambda c: c["quantization_config"].update(bits=3)), command, ["config.json", "bits", "expected"])
    deep = lambda d: d.write("fuse.json", "[" * 2000000 + "]" * 2000000)
    yield Case("options: a fusion mapping of two million lists", deep, INSPECT + ["--modules-to-fuse", "{}/fuse.json"], [""])
    yield Case("options: a fusion mapping that is no JSON", lambda d: d.write("fuse.json", "{"), INSPECT + ["--modules-to-fuse", "{}/fuse.json"], ["fuse.json"])
    yield Case("options: a context beyond what memory can hold", lambda d: None, GENERATE + ["-c", "9000000000000"], ["context"])
