#!/bin/bash
# All that is measured and proved on a GPU, in one command: `make measure-cuda`, or measure.sh BUILD_DIR OUT_DIR [PART ...].
# Parts, in this order: tests (golden models, determinism, budgets), sweep (every op), others (both, and some figures, with the
# kernels of GPUs before and after Hopper), matmul, decode, prefill, kernels, load, memcheck, racecheck, initcheck. OUT_DIR/report.md
# has the tables of docs/performance.md, OUT_DIR/PART.log the rest. A part that fails or takes longer than LIMIT seconds (600)
# is told at the end; the others go on.
set -u
cd "$(dirname "$0")/../../.."
build=$1 out=$2
shift 2
[ $# -gt 0 ] || set -- tests sweep others matmul decode prefill kernels load memcheck racecheck initcheck
limit=${LIMIT:-600} failed=""
awq=$build/awq
mkdir -p "$out"
report=$out/report.md

say() { printf '%s\n' "$@" | tee -a "$report"; }
# part NAME COMMAND...: runs it, with its output in a log. table and tests put into the report what of it belongs there.
part() {
    local name=$1 status=0 begin
    shift
    begin=$(date +%s)
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
    say "" "## $name: exit status $status after $(($(date +%s) - begin)) s" ""
    [ "$status" = 0 ] || failed="$failed $name"
}
table() { part "$@"; grep '^|\|^cuda\|^A run\|^error\|^$' "$out/$1.log" | tee -a "$report"; }
tests() { part "$@"; grep 'exit status\|test cases\|assertions\|SUMMARY\|ERROR:\|^error' "$out/$1.log" | tee -a "$report"; }
bench() { "$awq" bench --backend cuda "$@" && echo; }
load() {
    directory=$(mktemp -d "${TMPDIR:-/tmp}/awq-load-XXXXXX")
    trap 'rm -rf "$directory"' EXIT
    "$build/tests/tools/random_checkpoint" llama3-8b "$directory/model" || return 1
    # The first may read the disk, the second finds the file in the page cache.
    for i in 1 2 3; do bench -m "$directory/model" -p 0 -n 8 -r 1 || return 1; done
}
export -f bench load
export awq build

"$awq" bench --backend cuda --shape smollm2-135m -p 1 -n 0 -r 1 >/dev/null || exit 1    # no device: the reason is told
: >"$report"
say "$(git log -1 --format='%h %s' 2>/dev/null)" ""
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader | tee -a "$report"
for one in "$@"; do
    case $one in
    tests) tests tests env AWQ_TEST_ON=cuda "$build/tests/run" -tc='engine*,determinism*,memory budget*,*random weights*' ;;
    sweep | memcheck | racecheck | initcheck)
        tests "$one" env SECONDS_EACH=$((limit - 20)) tests/sanitize_cuda.sh "$build" "${one/sweep/plain}" ;;
    others)
        for arch in 80 120; do
            export AWQ_CUDA_ARCH=$arch
            tests others-$arch env AWQ_TEST_ON=cuda "$build/tests/run" -tc='ops*,*cuda*,every*,engine*,determinism*'
            part others-matmul-$arch "$build/backends/cuda/lab/bench_matmul" table && cat "$out/others-matmul-$arch.log" >>"$report"
            table others-models-$arch bash -c 'bench --shape llama3-8b -p 512,2048 -n 128; bench --shape llama3-8b -p 0 -n 128 -d 4096; bench --shape llama3-8b -p 0 -n 128 -d 16 -b 4,16,64; bench --shape mixtral-8x7b -p 512 -n 128'
            tests others-sanitizers-$arch env SECONDS_EACH=$(((limit - 20) / 2)) tests/sanitize_cuda.sh "$build" memcheck racecheck
            unset AWQ_CUDA_ARCH
        done ;;
    matmul) part matmul "$build/backends/cuda/lab/bench_matmul" table && cat "$out/matmul.log" >>"$report" ;;
    decode)
        table decode-1 bash -c 'for s in llama3-8b mistral-7b mixtral-8x7b; do bench --shape $s -p 0 -n 128; done; bench --shape llama3-8b -p 0 -n 128 -d 4096; bench --shape llama3-8b -p 0 -n 128 --head-bits 8'
        table decode-batch bash -c 'bench --shape llama3-8b -p 0 -n 128 -d 16 -b 2,4,8,16,32,64' ;;
    prefill) table prefill bash -c 'for s in llama3-8b mistral-7b mixtral-8x7b; do bench --shape $s -p 512,2048 -n 0; done' ;;
    kernels) table kernels bash -c 'bench --shape llama3-8b --kernels -p 512 -b 1,16 -d 0,4096' ;;
    load) table load bash -c load ;;
    *) echo "error: $one: is no part; see the head of $0" >&2; exit 2 ;;
    esac
done
say "" "failed:${failed:- nothing}"
[ -z "$failed" ]
