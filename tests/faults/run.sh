#!/bin/sh
# The program while memory ends, disks break or fill up and somebody kills it: always success or "error: ...", never a
# crash, never half a result. run.sh BUILD; with AWQ_SOAK set, more of each. Of a build with AddressSanitizer, which sees
# leaks too, malloc is left alone.
set -u
build=$1
awq=$build/awq
preload=$PWD/$build/tests/faults.so
calls="malloc mmap open read write fsync rename"
asan=$(ldd "$awq" | awk '/libasan/ { print $3 }')
[ -n "$asan" ] && preload=$asan:$preload calls=${calls#malloc }
work=$(mktemp -d "${TMPDIR:-/tmp}/awq-faults-XXXXXX")
trap 'rm -rf "$work"' EXIT
failed=0 runs=0 refused=0
bad() { echo "faults: $*: $(head -c 300 "$work/err")" >&2; failed=$((failed + 1)); }

mkdir "$work/model" "$work/out"
for file in tests/data/models/qwen2-tied/*.gz; do gzip -dc "$file" > "$work/model/$(basename "$file" .gz)"; done
rm "$work/model/golden.safetensors"
cp tests/data/fuzz/gguf/llama "$work/tiny.gguf"
python3 -c 'import sys, json; sys.path.insert(0, "tests/damage"); import fixture; print(json.dumps(fixture.tokenizer()))' > "$work/model/tokenizer.json"
echo '{"chat_template": "{{ messages[0].content }}"}' > "$work/model/tokenizer_config.json"
request='{"ids": [1, 5, 9], "n": 3}'
mkdir "$work/seeing"
for file in tests/data/models/llava-gemm/*.gz; do gzip -dc "$file" > "$work/seeing/$(basename "$file" .gz)"; done
rm "$work/seeing/golden.safetensors"
python3 - "$work/seeing" <<'PYTHON'
import sys, json
sys.path.insert(0, "tests/damage")
import fixture
image = json.load(open(sys.argv[1] + "/config.json"))["image_token_index"]
tokenizer = fixture.tokenizer(400)
tokenizer["added_tokens"].append(dict(tokenizer["added_tokens"][0], id=image, content="<word%d>" % image))
json.dump(tokenizer, open(sys.argv[1] + "/tokenizer.json", "w"))
json.dump({"chat_template": fixture.CHATML}, open(sys.argv[1] + "/tokenizer_config.json", "w"))
PYTHON
pictures=tests/data/images/formats

chat() { "$@" "$awq" chat -m "$work/model" -t 2 -p "the inn" -n 3 > "$work/text" 2> "$work/err"; }
look() { "$@" "$awq" chat -m "$work/seeing" -t 2 -p "the inn" -n 3 --image $pictures/420-progressive.jpg --image $pictures/rgba16-interlaced.png > "$work/text" 2> "$work/err"; }
inspect() { "$@" "$awq" inspect -m "$work/model" > /dev/null 2> "$work/err"; }
tokenize() { echo '{"text": "the inn"}' | "$@" "$awq" eval tokenize -m "$work/model" > /dev/null 2> "$work/err"; }
load() { echo "$request" | "$@" "$awq" eval generate -m "$work/model" -t 2 > "$work/text" 2> "$work/err"; }
import() { "$@" "$awq" import "$work/tiny.gguf" "$work/out/model" --overwrite > /dev/null 2> "$work/err"; }
verify() { "$@" "$awq" verify -m "$work/model" --write > /dev/null 2> "$work/err"; }

# after NAME STATUS: what must hold whatever went wrong
after() {
    runs=$((runs + 1))
    if [ "$2" -eq 1 ]; then
        refused=$((refused + 1))
        grep -q '^error: ' "$work/err" || bad "$1: status 1 without a message"
    elif [ "$2" -ne 0 ]; then
        bad "$1: status $2"
    fi
    ls "$work"/out/*.tmp-* "$work"/model/*.tmp-* > /dev/null 2>&1 && bad "$1: a temporary is left" && rm -rf "$work"/out/*.tmp-* "$work"/model/*.tmp-*
    whole "$1"
}
# What stands at the results' names is whole.
whole() {
    if [ -e "$work/out/model" ]; then
        "$awq" inspect -m "$work/out/model" > /dev/null 2> "$work/err" || bad "$1: the imported directory is damaged"
    fi
    if [ -e "$work/model/awq.fingerprints.json" ]; then
        "$awq" verify -m "$work/model" > /dev/null 2> "$work/err" || bad "$1: the fingerprints are damaged"
    fi
}

for task in chat look inspect tokenize load; do
    $task || bad "$task without faults"
done
answer=$(cat "$work/text")
import; [ $? -eq 0 ] || bad "import without faults"
rm -rf "$work/out/model"

steps="1 2 3 5 9 17 40 101 307 1009"
[ -n "${AWQ_SOAK:-}" ] && steps="1 2 3 4 5 6 7 8 9 10 11 13 15 17 20 23 27 31 37 43 50 60 71 85 101 130 170 220 307 500 800 1009 2003 4001 8009"
for call in $calls; do
    for every in $steps; do
        for task in load chat look inspect tokenize import verify; do
            $task env LD_PRELOAD="$preload" FAULT_CALL=$call FAULT_EVERY="$every"
            status=$?
            after "$task, every ${every}th $call" $status
            [ $task = load ] && [ $status -eq 0 ] && [ "$(cat "$work/text")" != "$answer" ] && ! grep -q '"error"' "$work/text" && bad "another answer: every ${every}th $call"
            [ $call != malloc ] && [ $call != mmap ] || [ $every -lt 1009 ] || break
        done
    done
done

# A file may not grow beyond so many blocks of 512 bytes: as a full disk.
for blocks in 1 2 8 40; do
    rm -rf "$work/out/model"
    (ulimit -f $blocks; import); after "import, files of $blocks blocks" $?
done

# Killed at any moment: old or new at the result's name (a temporary may stay beside it).
rounds=50
[ -n "${AWQ_SOAK:-}" ] && rounds=200
import > /dev/null 2>&1
for i in $(seq $rounds); do
    for task in import verify; do
        $task timeout -s KILL "0.0$((i * 7919 % 90 + 10))" > /dev/null 2>&1
        whole "$task, killed"
        rm -rf "$work"/out/*.tmp-* "$work"/model/*.tmp-*
        runs=$((runs + 1))
    done
done
echo "faults: $runs runs, $refused ended in an error, $failed failed"
[ $failed -eq 0 ]
