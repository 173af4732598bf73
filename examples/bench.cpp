// awq bench: tokens per second, and how much of what the memory allows that is.
#include <cstdio>
#include <nlohmann/json.hpp>
#include "examples/command.h"

namespace {

std::string number(const nlohmann::ordered_json& value, int digits) {
    if (!value.is_number()) return "-";
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", digits, value.get<double>());
    return text;
}

void print_markdown(const nlohmann::ordered_json& json) {
    std::printf("%s, %s; a plain read of its memory: %s GB/s; loaded in %s s\n\n", json["backend"].get<std::string>().c_str(),
                json["device"].get<std::string>().c_str(), number(json["bandwidth"].get<double>() / 1e9, 0).c_str(),
                number(json["load_seconds"], 2).c_str());
    if (json.contains("kernels")) {
        for (const auto& [run, rows] : json["kernels"].items()) {
            std::printf("A run of %s:\n\n| op | kernel | sizes | nodes | us | %% of run | GB/s | %% of limit |\n", run.c_str());
            std::printf("| --- | --- | --- | --- | --- | --- | --- | --- |\n");
            for (const auto& row : rows)
                std::printf("| %s | %d | %s | %s | %s | %s |\n", row["kernel"].get<std::string>().c_str(), row["nodes"].get<int>(),
                            number(row["microseconds"], 1).c_str(), number(row["percent_of_run"], 1).c_str(),
                            number(row["gb_per_second"], 1).c_str(), number(row["percent_of_limit"], 0).c_str());
            std::printf("\n");
        }
        return;
    }
    std::printf("| model | size | params | backend | test | t/s | GB/s | %% of limit |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for (const auto& row : json["rows"])
        std::printf("| %s | %.2f GiB | %.2f B | %s | %s | %s ± %s | %s | %s |\n", json["model"].get<std::string>().c_str(),
                    json["size"].get<double>() / (1 << 30), json["params"].get<double>() / 1e9, json["backend"].get<std::string>().c_str(),
                    row["test"].get<std::string>().c_str(), number(row["tokens_per_second"], 2).c_str(), number(row["sd"], 2).c_str(),
                    number(row["gb_per_second"], 1).c_str(), number(row["percent_of_limit"], 0).c_str());
}

}  // namespace

void add_bench(CLI::App& app, Run& run) {
    CLI::App* command = app.add_subcommand("bench", "measure speed");
    struct Options {
        command::ModelOptions model;
        std::string shape, output = "md";
        std::vector<int64_t> prompt = {512}, generate = {128}, batch = {1}, depth = {0};
        int64_t repeat = 5;
        bool kernels = false;
    };
    auto o = std::make_shared<Options>();
    o->model.add(*command, false);
    auto* shape = command->add_option("--shape", o->shape, "a well-known shape with random weights; an unknown name lists them")->option_text("NAME");
    shape->excludes(command->get_option("--model"));
    auto list = [&](const char* name, std::vector<int64_t>& values, int64_t low, const char* what) {
        command->add_option(name, values, what)->option_text("N,..")->delimiter(',')->check(command::at_least(low))->default_str(std::to_string(values[0]));
    };
    list("-p,--prompt", o->prompt, 0, "prompt lengths; 0: none");
    list("-n,--predict", o->generate, 0, "tokens to generate; 0: none");
    list("-b,--batch", o->batch, 1, "sequences generated at once");
    list("-d,--depth", o->depth, 0, "tokens already in the context");
    command->add_option("-r,--repeat", o->repeat, "repeats of each test")->option_text("N")->check(command::at_least(1))->capture_default_str();
    command->add_option("-o,--output", o->output, "md or json")->option_text("FORMAT")->check(CLI::IsMember({"md", "json"}))->capture_default_str();
    command->add_flag("--kernels", o->kernels, "time every kernel at the model's sizes instead");
    command->callback([o, &run] {
        if (o->shape.empty() && o->model.model.empty()) throw CLI::RequiredError("--model or --shape");
        run = [o] {
            nlohmann::ordered_json request = {{"prompt", o->prompt}, {"generate", o->generate}, {"batch", o->batch},
                                              {"depth", o->depth},   {"repeat", o->repeat},     {"kernels", o->kernels}};
            if (!o->shape.empty()) request["shape"] = o->shape;
            awq_options options = o->model.get();
            char* text = nullptr;
            awq::check(awq_bench(&options, request.dump().c_str(), &text));
            std::string json = awq::take(text);
            if (o->output == "json") std::printf("%s\n", json.c_str());
            else print_markdown(nlohmann::ordered_json::parse(json));
            return 0;
        };
    });
}
