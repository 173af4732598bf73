// awq verify: are a checkpoint's tensors what they were, and are they sound?
#include <cstdio>
#include <nlohmann/json.hpp>
#include "examples/command.h"

using Json = nlohmann::ordered_json;

void add_verify(CLI::App& app, Run& run) {
    CLI::App* command = app.add_subcommand("verify", "fingerprint every tensor, look for damage");
    struct Options {
        std::string model;
        bool write = false, json = false;
    };
    auto o = std::make_shared<Options>();
    command->add_option("-m,--model", o->model, "model directory, or org/name[@revision] in the Hugging Face cache")->option_text("MODEL")->required();
    command->add_flag("--write", o->write, "store the fingerprints beside the weights, for later runs to compare with");
    command->add_flag("--json", o->json, "as JSON");
    command->callback([o, &run] {
        run = [o] {
            char* text = nullptr;
            awq::check(awq_verify(o->model.c_str(), o->write, command::show_progress, nullptr, &text));
            std::string report = awq::take(text);
            auto json = Json::parse(report);
            if (o->json) {
                std::printf("%s\n", report.c_str());
            } else {
                auto line = [](const Json& name, const std::string& text) { std::printf("%s: %s\n", name.get<std::string>().c_str(), text.c_str()); };
                for (const auto& tensor : json["tensors"])
                    std::printf("%s  %s\n", tensor["fingerprint"].get<std::string>().c_str(), tensor["name"].get<std::string>().c_str());
                for (const auto& finding : json["findings"])
                    line(finding["tensor"], finding["problem"].get<std::string>() + ", " + finding["count"].dump() + " of " + finding["of"].dump());
                for (const auto& mismatch : json["mismatches"]) line(mismatch["tensor"], "is not what its stored fingerprint says");
                for (const auto& name : json["missing"]) line(name, "has a stored fingerprint, but is not there");
                for (const auto& name : json["added"]) line(name, "has no stored fingerprint");
            }
            if (!json["ok"].get<bool>()) return command::fail(o->model + ": is not sound; the lines above say where");
            return 0;
        };
    });
}
