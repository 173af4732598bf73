// Model directories: which files count, the index, where the quantisation is told, the local Hugging Face cache.
#include <doctest/doctest.h>
#include <optional>
#include "core/checkpoint/checkpoint.h"
#include "tests/checkpoint_files.h"

using namespace awq;
using namespace awq::test;

namespace {

std::string one_tensor(const std::string& name, uint8_t value = 1) {
    return SafetensorsFile().add<uint8_t>(name, "U8", {1}, {value}).bytes();
}

// The error without the directory before it; "" where it opens.
std::string open_error(const TempDirectory& directory) {
    auto checkpoint = Checkpoint::open(directory.path());
    if (checkpoint.ok()) return "";
    std::string message = checkpoint.status().message(), name = directory.path() + "/";
    CHECK(message.find('\n') == message.npos);
    return message.starts_with(name) ? message.substr(name.size()) : message;
}

// An environment variable while it lives.
class Variable {
public:
    Variable(const char* name, const std::optional<std::string>& value) : name_(name) {
        if (const char* old = getenv(name)) old_ = old;
        set(value);
    }
    ~Variable() { set(old_); }

private:
    void set(const std::optional<std::string>& value) {
        if (value) {
            setenv(name_, value->c_str(), 1);
        } else {
            unsetenv(name_);
        }
    }
    const char* name_;
    std::optional<std::string> old_;
};

}  // namespace

TEST_CASE("checkpoint: a directory of config.json alone opens, without weights") {
    TempDirectory directory;
    directory.write("config.json", "{\"model_type\": \"llama\"}");
    auto checkpoint = Checkpoint::open(directory.path() + "/");
    REQUIRE(checkpoint.ok());
    CHECK((*checkpoint)->config().find("model_type")->string() == "llama");
    CHECK((*checkpoint)->generation_config().is_null());
    CHECK((*checkpoint)->quantization().is_null());
    CHECK((*checkpoint)->quantization_file() == "");
    CHECK_FALSE((*checkpoint)->has_weights());
    CHECK((*checkpoint)->find("a") == nullptr);
    auto missing = [&] { return (*checkpoint)->missing_weights().message().substr(directory.path().size()); };
    const std::string none = "/: no weights: neither model.safetensors nor model.safetensors.index.json is there";
    CHECK(missing() == none);
    directory.write("pytorch_model.bin", "");
    CHECK(missing() == none + " (\"pytorch_model.bin\" is, which is not read: save the model as safetensors)");
    directory.write("model.gguf", "");
    CHECK(missing() == none + " (\"model.gguf\" is: \"awq import\" makes a directory of it)");
    directory.write("adapter.safetensors", "");
    CHECK(missing() == none + " (\"adapter.safetensors\" is, but is not read by another name)");
    for (char c = 'b'; c <= 'z'; c++) directory.write(std::string(1, c) + ".pt", "");  // the first by name is told, in whatever order they come
    CHECK(missing() == none + " (\"adapter.safetensors\" is, but is not read by another name)");
}

TEST_CASE("checkpoint: what is no model directory") {
    TempDirectory directory;
    CHECK(Checkpoint::open(directory.file("none")).status().message() == directory.file("none") + ": no such directory");
    CHECK(open_error(directory) == "config.json: cannot be opened: No such file or directory");
    directory.write("config.json", "[1]");
    CHECK(open_error(directory) == "config.json: an array found; an object expected");
    directory.write("config.json", "{\"a\": 1, \"a\": 2}");
    CHECK(open_error(directory) == "config.json: the key \"a\" stands twice in one object");
    directory.write("config.json", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n");
    CHECK(open_error(directory) ==
          "config.json: is a Git LFS pointer, not the file; \"git lfs pull\" in its repository fetches it");
    CHECK(Checkpoint::open(directory.file("config.json")).status().message() ==
          directory.file("config.json") + ": is a file; a model directory expected");
    directory.write("config.json", "{}");
    directory.write("generation_config.json", "3");
    CHECK(open_error(directory) == "generation_config.json: an integer found; an object expected");
    CHECK(Checkpoint::open(std::string("a\0b", 3)).status().message() == "a\\x00b: a path holds no NUL");
    CHECK(Checkpoint::from_config("[1]").status().message() == "config.json: an array found; an object expected");
    CHECK(Checkpoint::from_config("{\"a\": 1").status().message().find("not valid JSON") != std::string::npos);
    CHECK(Checkpoint::from_config("{\"quantization_config\": 5}").status().message().ends_with("quantization_config: an integer found; an object expected"));
}

TEST_CASE("checkpoint: quantization_config goes before quant_config.json and quantize_config.json") {
    TempDirectory directory;
    directory.write("config.json", "{\"quantization_config\": null}");
    directory.write("quantize_config.json", "{\"bits\": 4}");
    auto checkpoint = Checkpoint::open(directory.path());
    REQUIRE(checkpoint.ok());
    CHECK((*checkpoint)->quantization_file() == "quantize_config.json");
    directory.write("quant_config.json", "{\"w_bit\": 4, \"q_group_size\": 128}");
    checkpoint = Checkpoint::open(directory.path());
    REQUIRE(checkpoint.ok());
    CHECK((*checkpoint)->quantization_file() == "quant_config.json");
    CHECK((*checkpoint)->quantization().has("w_bit"));
    directory.write("config.json", "{\"quantization_config\": {\"quant_method\": \"awq\"}}");
    checkpoint = Checkpoint::open(directory.path());
    REQUIRE(checkpoint.ok());
    CHECK((*checkpoint)->quantization_file() == "config.json");
    CHECK((*checkpoint)->quantization().has("quant_method"));
    directory.write("config.json", "{}");
    directory.write("quant_config.json", "[4]");
    CHECK(open_error(directory) == "quant_config.json: an array found; an object expected");
    directory.write("config.json", "{\"quantization_config\": \"awq\"}");
    CHECK(open_error(directory) == "config.json: quantization_config: a string found; an object expected");
}

TEST_CASE("checkpoint: model.safetensors, and no other file beside it") {
    TempDirectory directory;
    directory.write("config.json", "{}");
    directory.write("model.safetensors", one_tensor("a", 7));
    directory.write("golden.safetensors", "not read");
    directory.write("model.safetensors.index.json", "not read");
    auto opened = Checkpoint::open(directory.path());
    REQUIRE(opened.ok());
    const Checkpoint& checkpoint = **opened;
    REQUIRE(checkpoint.tensors().size() == 1);
    const TensorInfo* a = checkpoint.find("a");
    REQUIRE(a != nullptr);
    CHECK(checkpoint.read(*a)->data[0] == 7);
    CHECK(checkpoint.shard_name(*a) == "model.safetensors");
    CHECK(checkpoint.table_path() == directory.file("model.safetensors"));  // though there is an index
    checkpoint.prefetch(*a);
    uint8_t byte = 0;
    CHECK(checkpoint.read(*a, 0, &byte, 1).ok());
    CHECK(byte == 7);
    directory.write("model.safetensors", "damaged!");
    CHECK(open_error(directory).starts_with("model.safetensors: header of "));
    directory.write("model.safetensors", "version https://git-lfs.github.com/spec/v1\n");
    CHECK(open_error(directory).starts_with("model.safetensors: is a Git LFS pointer"));
}

TEST_CASE("checkpoint: the index") {
    TempDirectory directory;
    directory.write("config.json", "{}");
    directory.write("b.safetensors", one_tensor("x.b"));
    directory.write("a.safetensors",
                    SafetensorsFile().add<uint8_t>("x.a", "U8", {1}, {1}).add<uint8_t>("unlisted", "U8", {1}, {1}).bytes());
    directory.write("c.safetensors", "not listed, not read");
    auto index = [&](const std::string& text) {
        directory.write("model.safetensors.index.json", text);
        return open_error(directory);
    };
    auto map = [&](const std::string& members) {
        return index("{\"metadata\": {\"total_size\": 3}, \"weight_map\": {" + members + "}}");
    };
    const std::string where = "model.safetensors.index.json: ";

    CHECK(map("\"x.b\": \"b.safetensors\", \"x.a\": \"a.safetensors\"") == "");
    auto opened = Checkpoint::open(directory.path());
    REQUIRE(opened.ok());
    CHECK((*opened)->shards().size() == 2);
    CHECK((*opened)->shard_name(*(*opened)->find("x.b")) == "b.safetensors");
    CHECK((*opened)->find("unlisted") != nullptr);
    CHECK((*opened)->table_path() == directory.file("model.safetensors.index.json"));
    CHECK(map("\"x.a\": \"a.safetensors\"") == "");
    CHECK((*Checkpoint::open(directory.path()))->table_path() == directory.file("model.safetensors.index.json"));

    CHECK(index("[]") == where + "an array found; an object expected");
    CHECK(index("{}") == where + "weight_map: is missing");
    CHECK(index("{\"weight_map\": [1]}") == where + "weight_map: an array found; an object expected");
    CHECK(map("") == where + "weight_map: is empty; a file for each tensor expected");
    CHECK(map("\"x.a\": 1") == where + "weight_map: \"x.a\": an integer found; a file name expected");
    CHECK(map("\"x.a\": \"a.safetensors\", \"x.a\": \"b.safetensors\"") == where + "the key \"x.a\" stands twice in one object");
    const std::string long_name(250, 'n');
    for (const std::string& name :
         {std::string("../a.safetensors"), std::string("/etc/a.safetensors"), std::string("d/a.safetensors"),
          std::string("d\\\\a.safetensors"), std::string("a.safetensors\\u0000"), std::string("a\\u0000.safetensors"),
          std::string(".a.safetensors"), std::string(".safetensors"), std::string("a.bin"), std::string(""),
          std::string("a.safetensors "), long_name + ".safetensors"})
        CHECK_MESSAGE(map("\"x.a\": \"" + name + "\"").ends_with("found; a plain file name that ends in .safetensors expected"),
                      name);
    CHECK(map("\"x.a\": \"none.safetensors\"") == "none.safetensors: cannot be opened: No such file or directory");
    CHECK(map("\"x.a\": \"b.safetensors\"") ==
          "b.safetensors: tensor \"x.a\": not there; model.safetensors.index.json says it is");
    CHECK(map("\"x.a\": \"b.safetensors\", \"x.b\": \"a.safetensors\"").find("not there") != std::string::npos);
    CHECK(map("\"x.a\": \"c.safetensors\"").starts_with("c.safetensors: header of "));
    directory.write("d.safetensors", one_tensor("x.a"));
    CHECK(map("\"x.a\": \"a.safetensors\", \"x.d\": \"d.safetensors\"") ==
          "d.safetensors: tensor \"x.a\": stands in a.safetensors too; one file expected");
}

TEST_CASE("checkpoint: more tensors than any model has") {
    TempDirectory directory;
    directory.write("config.json", "{}");
    std::string header = "{";
    for (int i = 0; i < (1 << 19); i++) header += "\"" + std::to_string(i) + "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},";
    directory.write("model.safetensors", raw_safetensors(header + "\"x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", ""));
    CHECK(open_error(directory) == "model.safetensors: 524289 tensors up to here; at most 524288 expected in all");
}

TEST_CASE("model directory: a directory as it is, or a name in the local cache") {
    TempDirectory home;
    const std::string hub = home.file("hub");
    Variable hub_cache("HF_HUB_CACHE", {}), old_cache("HUGGINGFACE_HUB_CACHE", {}), hf_home("HF_HOME", {}),
        xdg("XDG_CACHE_HOME", {});
    Variable user("HOME", home.path());
    const std::string sha = "0123456789abcdef0123456789abcdef01234567", repository = "models--org--My.Model_1/";
    auto fill = [&](const std::string& cache) {
        home.write(cache + repository + "refs/main", sha);
        home.write(cache + repository + "refs/refs/pr/1", sha + "\n");
        home.write(cache + repository + "refs/gone", "ffffffff");
        home.write(cache + repository + "refs/evil", "../../../..");
        home.write(cache + repository + "snapshots/" + sha + "/config.json", "{}");
    };
    fill("hub/");
    auto found = [](const std::string& model) {
        auto directory = resolve_model_directory(model);
        return directory.ok() ? *directory : directory.status().message();
    };
    const std::string snapshot = repository + "snapshots/" + sha;

    CHECK(found(home.path()) == home.path());
    {
        Variable set("HF_HUB_CACHE", hub);
        CHECK(found("org/My.Model_1") == hub + "/" + snapshot);
        CHECK(found("org/My.Model_1@main") == hub + "/" + snapshot);
        CHECK(found("org/My.Model_1@refs/pr/1") == hub + "/" + snapshot);
        CHECK(found("org/My.Model_1@" + sha) == hub + "/" + snapshot);
        const std::string lead = ": no such directory, and not in the local Hugging Face cache: " + hub + "/models--org--";
        CHECK(found("org/other") == "org/other" + lead + "other (from HF_HUB_CACHE) does not exist; nothing is downloaded");
        CHECK(found("org/My.Model_1@v2") ==
              "org/My.Model_1@v2" + lead + "My.Model_1 (from HF_HUB_CACHE) has neither refs/v2 nor snapshots/v2");
        CHECK(found("org/My.Model_1@gone") == "org/My.Model_1@gone" + lead + "My.Model_1/snapshots/ffffffff does not exist");
        CHECK(found("org/My.Model_1@evil").ends_with("refs/evil: \"../../../..\" found; the name of a snapshot expected"));
        const std::string none = ": no such directory, and not the name of a model (org/name[@revision])";
        for (const char* name : {"../org", "/org/My.Model_1", "./My.Model_1", "a/b/c", "org/", "org/..", "org/a b",
                                 "org--My.Model_1", "-a/b", "org/.hidden", "a//b", "~/x", "org/end.", "org/a..b"})
            CHECK_MESSAGE(found(name) == name + none, name);
        CHECK(found("org/" + std::string(97, 'x')) == "org/" + std::string(97, 'x') + none);
        home.write("hub/" + repository + "refs/empty", "\n");
        home.write("hub/" + repository + "refs/long", std::string(5000, 'f'));
        CHECK(found("org/My.Model_1@empty").ends_with("refs/empty: \"\" found; the name of a snapshot expected"));
        CHECK(found("org/My.Model_1@long").ends_with("refs/long: has 5000 bytes; at most 4096 expected"));
        CHECK(found("org/My.Model_1@refs/pr/2").ends_with("has neither refs/refs/pr/2 nor snapshots/refs/pr/2"));
        for (const char* revision : {"", "../main", "/etc", "a//b", ".hidden", "x y", "a/../b"})
            CHECK_MESSAGE(found("org/My.Model_1@" + std::string(revision)).ends_with("found; a branch, tag or commit expected"),
                          revision);
        CHECK(found("") == "model: none given; a directory or org/name[@revision] expected");
        CHECK(found(std::string("a\0b", 3)) == "a\\x00b: a path holds no NUL");
        home.write("m.gguf", "");
        CHECK(found(home.file("m.gguf")) ==
              home.file("m.gguf") + ": is a file; a model directory expected (\"awq import\" makes a directory of a GGUF file)");
    }
    {
        Variable set("HF_HOME", home.path());
        CHECK(found("org/My.Model_1") == hub + "/" + snapshot);
        Variable other("HF_HUB_CACHE", home.file("elsewhere"));  // goes before HF_HOME
        CHECK(found("org/My.Model_1").find("elsewhere") != std::string::npos);
    }
    fill("huggingface/hub/");
    {
        Variable set("XDG_CACHE_HOME", home.path());
        CHECK(found("org/My.Model_1") == home.file("huggingface/hub/" + snapshot));
    }
    {
        Variable set("HF_HUB_CACHE", "~/hub");
        CHECK(found("org/My.Model_1") == hub + "/" + snapshot);
    }
    home.write(repository + "snapshots/v1/config.json", "{}");
    {
        Variable set("HUGGINGFACE_HUB_CACHE", "~");
        CHECK(found("org/My.Model_1@v1") == home.file(repository + "snapshots/v1"));
    }
    {
        Variable set("HF_HOME", "~elsewhere");  // no home of another user's
        CHECK(found("org/My.Model_1").find("~elsewhere/hub/models--org--My.Model_1 (from HF_HOME) does not exist") != std::string::npos);
    }
    CHECK(found("org/My.Model_1").find(home.file(".cache/huggingface/hub/models--org--My.Model_1 does not exist")) !=
          std::string::npos);
    fill(".cache/huggingface/hub/");
    CHECK(found("org/My.Model_1") == home.file(".cache/huggingface/hub/" + snapshot));
}
