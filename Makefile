# kith: one page that builds, tests and runs everything. `make help` says what there is.
.DEFAULT_GOAL := all
#
# VARIANT=release (default) | asan | tsan | emulated   each has its own tree below build/
# ARCH=aarch64 CC=aarch64-linux-gnu-gcc AR=aarch64-linux-gnu-ar   builds for ARM, below build/arm64
# V=1 shows the commands.

VARIANT ?= release
PORT ?= 6379
DIR ?= data
V ?= 0
JOBS ?= $(shell nproc)
Q := $(if $(filter 1,$(V)),,@)
say = $(if $(filter 1,$(V)),,@printf '  %-8s %s\n' '$(1)' '$(2)')

MACHINE := $(shell uname -m)
ARCH := $(MACHINE)
FOREIGN := $(filter-out $(MACHINE),$(ARCH))

ROOMS := base protocol storage index engine replication server
BUILD := build$(FOREIGN:%=/$(ARCH:aarch64=arm64))$(patsubst %,/%,$(filter-out release,$(VARIANT)))
OBJ := $(BUILD)/obj
BIN := $(BUILD)/bin
TESTBIN := $(BUILD)/tests
VENV := build/venv
PYTHON := $(VENV)/bin/python

CC ?= gcc
CSTD := -std=gnu11 -D_GNU_SOURCE
WARN := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror
OPT_release := -O3
OPT_asan := -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
OPT_tsan := -O1 -fno-omit-frame-pointer -fsanitize=thread
# Instruction sets beyond AVX2 as SIMDe makes them of AVX2, for their tests on machines without them
# (tools/check-isas.sh). Only the kernels and what chooses among them are compiled for it.
OPT_emulated := -O1 -DKITH_EMULATED_ISAS=1
# Kernels under a sanitizer, or a text takes seconds: addresses are checked in all of them, undefined
# behaviour and arrays on the stack in the scalar ones (the sources are the same; checked, a tile does
# not stay in registers, and all takes four times as long); the engine's are left out of the race
# detector, which sees what hands them their memory.
KERNEL_OPT = $(KERNEL_OPT_$(VARIANT)_$(if $(filter scalar,$(1)),scalar,vector)) $(if $(filter engine/%,$(2)),$(KERNEL_OPT_$(VARIANT)_engine))
KERNEL_OPT_asan_scalar := -O2
KERNEL_OPT_asan_vector := -O2 -fno-sanitize=undefined --param asan-stack=0
KERNEL_OPT_tsan_engine := -O3 -fno-sanitize=thread
CFLAGS := $(CSTD) -g $(OPT_$(VARIANT)) $(WARN) -I. -pthread -ffp-contract=off
LDFLAGS := -pthread $(filter -fsanitize%,$(OPT_$(VARIANT)))

# --- what each room may link: its own library and those below it (docs/design.md, "The rooms") ---
DEPS_base :=
DEPS_protocol := base
DEPS_storage := base
DEPS_index := base
DEPS_engine := base
DEPS_replication := storage protocol base
DEPS_server := replication engine index storage protocol base
SYS_base := -lxxhash -lm
SYS_protocol := -lhiredis $(SYS_base)
SYS_storage := -llmdb $(SYS_base)
SYS_index := $(SYS_base)
SYS_engine := -lutf8proc $(SYS_base)
SYS_replication := $(SYS_storage) $(SYS_protocol)
SYS_server := -levent_core $(SYS_storage) $(SYS_protocol) $(SYS_engine)
# Remote models: of kith-engine alone, and of what has all of server/ in it.
SYS_remote := -lcurl -ljansson
SYS_kith_engine := $(SYS_remote)
SYS_server_remote_api_test := -ljansson
DEPS_tools := engine base
SYS_tools := -ljansson -lhiredis $(SYS_engine)

KERNEL_CHECK := -DKITH_ISA=scalar -DKITH_ISA_scalar=1

# --- sources: kith_*.c is a program, *_kernels.c is compiled once per instruction set -----------
SRC := $(wildcard $(addsuffix /*.c,$(ROOMS)))
PROGRAM_SRC := $(wildcard server/kith_*.c tools/kith_*.c)
KERNEL_SRC := $(filter %_kernels.c,$(SRC))
PLAIN_SRC := $(filter-out $(PROGRAM_SRC) $(KERNEL_SRC),$(SRC))
TOOL_SRC := $(filter-out $(PROGRAM_SRC),$(wildcard tools/*.c))
HEADERS := $(wildcard $(addsuffix /*.h,$(ROOMS) tools tests/unit tests/fuzz bench))

ifeq ($(ARCH),x86_64)
ISAS := scalar avx2 avx512
# Those that differ from AVX-512 in products alone.
ISAS_product := avx512bf16 amx
else
ISAS := scalar neon
endif
ISA_scalar := -fno-tree-vectorize
ISA_avx2 := -mavx2 -mfma -mf16c -mbmi2
ISA_avx512_native := $(ISA_avx2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mprefer-vector-width=512
ISA_avx512 := $(if $(filter emulated,$(VARIANT)),$(ISA_avx2) -Wno-psabi,$(ISA_avx512_native))
native = $(if $(filter emulated,$(VARIANT)),,$(1))
ISA_avx512bf16 := $(ISA_avx512) $(call native,-mavx512bf16) -DKITH_ISA_avx512=1
ISA_amx := $(ISA_avx512bf16) $(call native,-mamx-tile -mamx-int8) -DKITH_ISA_avx512bf16=1
ISA_neon := -march=armv8.2-a+dotprod+fp16

isas_of = $(ISAS) $(if $(filter engine/product_kernels.c,$(1)),$(ISAS_product))
kernel_objects = $(foreach k,$(filter $(1)/%,$(KERNEL_SRC)),$(foreach i,$(call isas_of,$(k)),$(OBJ)/$(k:.c=.$(i).o)))
room_objects = $(patsubst %.c,$(OBJ)/%.o,$(filter $(1)/%,$(PLAIN_SRC))) $(call kernel_objects,$(1))
libs = $(foreach r,$(1),$(OBJ)/lib$(r).a)
room_libs = $(call libs,$(1) $(DEPS_$(1)))
# The release build's libraries behind objects of this tree: of two members that define the same
# tables the linker takes the one that came first.
ifeq ($(VARIANT),emulated)
ISAS := avx512
emulated_objects = $(patsubst %.c,$(OBJ)/%.o,$(filter $(1:%=%/kernels.c),$(PLAIN_SRC))) $(foreach r,$(1),$(call kernel_objects,$(r)))
room_libs = $(call emulated_objects,$(1) $(DEPS_$(1))) $(patsubst %,build/obj/lib%.a,$(1) $(DEPS_$(1)))
endif

PROGRAMS := $(foreach p,$(PROGRAM_SRC),$(BIN)/$(subst _,-,$(notdir $(p:.c=))))
UNIT_SRC := $(wildcard tests/unit/*_test.c)
UNIT := $(patsubst tests/unit/%.c,$(TESTBIN)/%,$(UNIT_SRC))
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
REPLAY := $(patsubst tests/fuzz/%.c,$(TESTBIN)/replay_%,$(FUZZ_SRC))
FUZZERS := $(patsubst tests/fuzz/%.c,build/fuzz/%,$(FUZZ_SRC))
BENCH_SRC := $(wildcard bench/*.c)
BENCHES := $(foreach p,$(BENCH_SRC),$(BIN)/$(subst _,-,$(notdir $(p:.c=))))

.PHONY: all programs deps deps-test model models run test test-quick check check-long check-arm64 \
	check-isas bench bench-vsets fuzz lint format clean help install docs units

all: deps
	@$(MAKE) --no-print-directory -j$(JOBS) programs
programs: $(PROGRAMS)

# --- what people type ---------------------------------------------------------------------------
help:
	@sed -n 's/^#: //p' Makefile

#: make            install what is missing, build everything into build/bin
#: make run        the same, then fetch the default model, start a server with a sample corpus
#:                 PORT=6379 DIR=data
run: deps
	@$(MAKE) --no-print-directory -j$(JOBS) programs
	@BIN='$(BIN)' tools/model.sh q8_0
	@exec env PORT='$(PORT)' DIR='$(DIR)' tools/run.sh

#: make test       every test: unit, integration, crash, fuzz corpora; ends with a count
#:                 VARIANT=asan | tsan runs them under a sanitizer
test: deps deps-test
	@$(MAKE) --no-print-directory -j$(JOBS) programs units
	@BIN='$(BIN)' tools/model.sh f32 f16 q8_0
	@VARIANT='$(VARIANT)' tools/test.sh

#: make check-long the long versions: thousands of kills and damaged files
check-long: deps deps-test
	@$(MAKE) --no-print-directory -j$(JOBS) programs units
	@BIN='$(BIN)' tools/model.sh f32 f16 q8_0
	@KITH_LONG=1 VARIANT='$(VARIANT)' tools/test.sh

#: make check-arm64  builds for 64-bit ARM and runs the unit tests under emulation (minutes)
check-arm64: deps
	@$(MAKE) --no-print-directory -j$(JOBS) programs
	@BIN='$(BIN)' tools/model.sh q8_0
	@JOBS='$(JOBS)' tools/check-arm64.sh

#: make check-isas  runs the kernels of instruction sets that this processor may lack (AVX-512 and
#:                 later), emulated, under the unit tests that depend on them (minutes)
check-isas: deps deps-test
	@$(MAKE) --no-print-directory -j$(JOBS) programs
	@BIN='$(BIN)' tools/model.sh f32 f16 q8_0
	@JOBS='$(JOBS)' tools/check-isas.sh

#: make bench      the figures of the README, beside their peers, as tables, CSV and PNG
bench: deps deps-test
	@$(MAKE) --no-print-directory -j$(JOBS) programs $(BENCHES)
	@BIN='$(BIN)' tools/model.sh f32 f16 q8_0
	@tools/bench.sh

#: make bench-vsets  vector sets beside hnswlib, faiss, usearch and Redis (KITH_REDIS: a redis-server
#:                 that has them), with their goals; ARGS=--quick, ARGS="--n 1000000 --only memory"
ARGS ?=
bench-vsets: deps
	@tools/deps.sh bench
	@$(MAKE) --no-print-directory -j$(JOBS) programs $(BIN)/bench-vsets-load $(BIN)/peer-hnswlib
	@BIN='$(BIN)' tools/model.sh q8_0
	@tools/bench.sh vsets $(ARGS)

#: make fuzz       libFuzzer on every parser of outside bytes, FUZZ_SECONDS=60 each
FUZZ_SECONDS ?= 60
fuzz: deps deps-test $(FUZZERS)
	@tools/fuzz.sh $(FUZZ_SECONDS) $(FUZZERS)

#: make lint       format, warnings as errors, headers that stand alone, rooms that keep their walls
lint: deps deps-test
	@$(MAKE) --no-print-directory -j$(JOBS) programs
	@CC='$(CC)' CFLAGS='$(CSTD) $(WARN) -I. $(KERNEL_CHECK)' tools/lint.sh

#: make format     clang-format over every source
format:
	@clang-format -i $$(git ls-files --cached --others --exclude-standard '*.c' '*.h')

#: make docs       docs/commands.md and docs/configuration.md from the tables
docs: programs
	@$(BIN)/kith-docs commands > docs/commands.md
	@$(BIN)/kith-docs configuration > docs/configuration.md

#: make model      fetch and convert the default model, all-MiniLM-L6-v2
model: deps
	@$(MAKE) --no-print-directory -j$(JOBS) programs
	@BIN='$(BIN)' tools/model.sh q8_0

#: make deps       install the packages a build needs (Debian); elsewhere print them
deps:
	@tools/deps.sh build
deps-test:
	@tools/deps.sh test

#: make install    programs and man pages below PREFIX=/usr/local
PREFIX ?= /usr/local
install: programs
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 755 $(filter-out %/kith-docs %/kith-sample,$(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin
	install -m 644 docs/*.1 $(DESTDIR)$(PREFIX)/share/man/man1

#: make clean      remove build/ (the fetched model stays in ~/.cache/kith)
clean:
	rm -rf build

units: $(UNIT) $(REPLAY)

# --- rules --------------------------------------------------------------------------------------
$(OBJ)/%.o: %.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -MMD -MP -c $< -o $@

define KERNEL_RULE
$(OBJ)/%_kernels.$(1).o: %_kernels.c
	$$(call say,CC $(1),$$<)
	$(Q)mkdir -p $$(@D)
	$(Q)$(CC) $(CFLAGS) $(ISA_$(1)) $$(call KERNEL_OPT,$(1),$$<) -ffp-contract=fast -DKITH_ISA=$(1) -DKITH_ISA_$(1)=1 -MMD -MP -c $$< -o $$@
endef
$(foreach i,$(ISAS) $(ISAS_product),$(eval $(call KERNEL_RULE,$(i))))

define ROOM_RULE
$(OBJ)/lib$(1).a: $(call room_objects,$(1))
	$$(call say,AR,$$@)
	$(Q)rm -f $$@ && $(AR) rcs $$@ $$^
endef
$(foreach r,$(ROOMS),$(eval $(call ROOM_RULE,$(r))))
# What tools share, for their tests.
$(OBJ)/libtools.a: $(patsubst %.c,$(OBJ)/%.o,$(TOOL_SRC))
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

# Programs stand on the roof and may link every room.
define PROGRAM_RULE
$(BIN)/$(subst _,-,$(notdir $(1:.c=))): $(OBJ)/$(1:.c=.o) $(if $(filter tools/%,$(1)),$(patsubst %.c,$(OBJ)/%.o,$(TOOL_SRC))) $(call room_libs,server)
	$$(call say,LINK,$$@)
	$(Q)mkdir -p $$(@D)
	$(Q)$(CC) $(LDFLAGS) -o $$@ $$^ $(if $(filter tools/%,$(1)),$(SYS_tools)) $(SYS_$(notdir $(1:.c=))) $(SYS_server)
endef
$(foreach p,$(PROGRAM_SRC) $(BENCH_SRC),$(eval $(call PROGRAM_RULE,$(p))))

# A peer is compiled for this very machine, as its users would.
$(BIN)/peer-hnswlib: bench/peer_hnswlib.cpp
	$(call say,CXX,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CXX) -std=c++17 -O3 -march=native -o $@ $<

# A unit test links what its room may know and nothing else: room_module_test.c.
define UNIT_RULE
$(TESTBIN)/$(1): $(OBJ)/tests/unit/$(1).o $(call room_libs,$(firstword $(subst _, ,$(1))))
	$$(call say,LINK,$$@)
	$(Q)mkdir -p $$(@D)
	$(Q)$(CC) $(LDFLAGS) -o $$@ $$^ -lcmocka $(SYS_$(1)) $(SYS_$(firstword $(subst _, ,$(1))))
endef
$(foreach t,$(UNIT_SRC),$(eval $(call UNIT_RULE,$(notdir $(t:.c=)))))

# A fuzzer is fuzz_room_what.c with its corpus in tests/fuzz/corpus/room_what/. `make test` replays
# the corpus with an ordinary main; `make fuzz` runs libFuzzer under ASan and UBSan.
fuzz_room = $(word 2,$(subst _, ,$(1)))
fuzz_libraries = $(SYS_$(call fuzz_room,$(1))) $(if $(filter server,$(call fuzz_room,$(1))),$(SYS_remote))
define FUZZ_RULE
$(TESTBIN)/replay_$(1): $(OBJ)/tests/fuzz/$(1).o $(OBJ)/tests/fuzz/replay.o $(call room_libs,$(call fuzz_room,$(1)))
	$$(call say,LINK,$$@)
	$(Q)mkdir -p $$(@D)
	$(Q)$(CC) $(LDFLAGS) -o $$@ $$^ $(call fuzz_libraries,$(1))
build/fuzz/$(1): tests/fuzz/$(1).c $(filter $(call fuzz_room,$(1))/% $(foreach d,$(DEPS_$(call fuzz_room,$(1))),$(d)/%),$(PLAIN_SRC) $(TOOL_SRC) $(KERNEL_SRC)) $(HEADERS)
	$$(call say,FUZZ,$$@)
	$(Q)mkdir -p $$(@D)
	$(Q)tools/build-fuzzer.sh $$@ $$(filter %.c,$$^) -- $(CSTD) -I. $(call fuzz_libraries,$(1))
endef
$(foreach f,$(FUZZ_SRC),$(eval $(call FUZZ_RULE,$(notdir $(f:.c=)))))

-include $(shell find $(OBJ) -name '*.d' 2>/dev/null)
