#!/bin/sh
# The sweep of ops and the tests of the CUDA backend on a GPU: plain, then under compute-sanitizer's memcheck, racecheck and
# initcheck. Usage: tests/sanitize_cuda.sh BUILD_DIR [TOOL ...]; "plain" is a tool as well. SECONDS_EACH bounds each run (600).
set -euf    # no file names from the patterns of test cases
build=$1
shift
[ $# -gt 0 ] || set -- plain memcheck racecheck initcheck
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
failed=0
for tool in "$@"; do
    run="$build/tests/run -tc=ops*,*cuda*,every*"
    [ "$tool" = plain ] || [ -x "$sanitizer" ] || { echo "error: $tool: compute-sanitizer was not found in PATH or /usr/local/cuda/bin"; exit 1; }
    # A test asks for more memory than there is: that a call of the runtime fails is not what is looked for.
    quiet="" && [ "$tool" = memcheck ] && quiet="--report-api-errors no"
    [ "$tool" = plain ] || run="$sanitizer --tool $tool $quiet --error-exitcode 9 --print-limit 10 $run"
    # Of threads that copy and launch at the same time initcheck loses track: it reports other bytes in each run (docs/performance.md).
    [ "$tool" = initcheck ] && run="taskset -c $(taskset -cp $$ | sed 's/.*[ ,-]//') $run"
    begin=$(date +%s) status=0
    AWQ_TEST_ON=cuda timeout "${SECONDS_EACH:-600}" $run >"$build/sanitize-$tool.log" 2>&1 || status=$?
    grep -q "no CUDA device" "$build/sanitize-$tool.log" && { echo "error: $tool: no CUDA device"; exit 1; }
    echo "$tool: exit status $status after $(($(date +%s) - begin)) s: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|test cases' "$build/sanitize-$tool.log" | tr '\n' ' ')"
    [ "$status" = 0 ] || { failed=1; tail -40 "$build/sanitize-$tool.log"; }
done
exit $failed
