#!/usr/bin/env bash
# What is to be known from an NVIDIA GPU, in stages; `make gpu` runs all of them.
#
#   bash bench/gpu.sh STAGE…
#
#   check      versions, kernels against float64
#   kernels    GPU tests of the kernels; their speed, with the plot
#   identity   tokens of the engine against Hugging Face: runners, schedules, CUDA graphs, amateurs
#   model      SmolLM2, and its tokens
#   smoke      `divserve serve` with all defaults, asked by the openai client
#   speed      1.5B and 8B: guided ÷ plain, plain ÷ stock, amateurs, look-back, first start
#   identity2, speed2   slower ones: torch.compile, look-back beside graphs
#   report     docs/performance.md and the plots, from bench/results.csv
#   all        check to speed, then report: meant to take at most 20 minutes on an H100
#
# Every step has a time limit, and a failing one does not stop the next; the exit status is 1 if one
# has failed. Environment:
#
#   OUT         folder for summary.txt (one line a step), all.log, results.csv and plots
#   COMMIT      commit for results.csv, where git's folder is missing
#   MODEL_OUT   folder of the prepared SmolLM2
#   PYTHON      the interpreter
#   REHEARSE=1  the same steps without a GPU, with tiny models: do the commands work? Saves nothing.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/out/gpu}
MODEL_OUT=${MODEL_OUT:-.models/smollm2-135m-instruct}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export PYTHONPATH=$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 TOKENIZERS_PARALLELISM=false OUT
export DIVSERVE_COMMIT=${COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}
export VLLM_LOGGING_LEVEL=${VLLM_LOGGING_LEVEL:-ERROR}

began=$SECONDS failed=0
if [ -n "${REHEARSE:-}" ]; then
  small=tiny large=tiny graphs=(--dtype float32) pairs=(--pairs 1 --pairs 2) few=(--tokens 8 --rounds 1)
  save=(--no-save) record=()
elif nvidia-smi >/dev/null 2>&1; then
  small=1.5b large=8b graphs=(--mode graphs) few=(--tokens 128 --rounds 3) save=() record=(--record)
  pairs=(--pairs 1 --pairs 8 --pairs 32 --pairs 64)
else
  echo "bench/gpu.sh needs an NVIDIA GPU, and nvidia-smi finds none (REHEARSE=1 tries the commands without)." >&2
  exit 1
fi

step() { # step NAME SECONDS COMMAND…
  local name=$1 limit=$2 start=$SECONDS rc
  shift 2
  printf '\n=== %s: %s\n' "$name" "$*" >>"$OUT/all.log"
  timeout -k 10 "$limit" "$@" >"$OUT/step.log" 2>&1
  rc=$?
  cat "$OUT/step.log" >>"$OUT/all.log"
  grep -vE '^\(?(INFO|DEBUG|WARNING|EngineCore|APIServer|Worker)\b|^ *$' "$OUT/step.log" | tail -n 24 | cut -c1-200
  [ "$rc" -eq 124 ] && echo "!! $name did not end within $limit s"
  [ "$rc" -eq 0 ] || failed=1
  echo "--- $name: exit $rc, $((SECONDS - start)) s (in all $((SECONDS - began)) s)" | tee -a "$OUT/summary.txt"
  # Now, for whatever runs this script may end it before the stage does.
  cp bench/results.csv docs/*.svg docs/performance.md "$OUT/" 2>/dev/null
  return $rc
}

# Plugins of other projects may be installed, and their warnings are not ours to mend.
tests() { # tests NAME SECONDS PROCESSES MARKS PATH…
  local name=$1 limit=$2 processes=()
  "$PYTHON" -c 'import xdist' 2>/dev/null && processes=(-n "$3")
  step "$name" "$limit" "$PYTHON" -m pytest -q -m "gpu and $4" "${@:5}" "${processes[@]}" -o addopts= \
    --import-mode=importlib -p no:cacheprovider -W default --tb=short
}
bench() { # bench NAME SECONDS ARGUMENT…
  local name=$1 limit=$2
  shift 2
  step "bench.$name $*" "$limit" "$PYTHON" -m "bench.$name" "$@"
}

for stage in "$@"; do
  [ "$stage" = all ] && set -- check kernels identity model smoke speed report && break
done
for stage in "$@"; do
  case $stage in
  check)
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | tee -a "$OUT/summary.txt"
    # A launch whose blocks cannot meet would hang: the rest then runs with the other way of launching.
    if ! step doctor 120 "$PYTHON" -m divserve doctor && [ -z "${DIVSERVE_TRITON:-}" ]; then
      export DIVSERVE_TRITON=phased
      step "doctor, phased" 120 "$PYTHON" -m divserve doctor && echo "!! One launch fails: the rest is phased" | tee -a "$OUT/summary.txt"
    fi ;;
  kernels)
    tests "tests of the kernels" 240 6 "not long" tests/kernels tests/engine/test_telemetry.py
    bench kernels 240 "${save[@]}" ||
      bench kernels 120 --no-compile "${save[@]}"
    bench plot_kernels 60 ;;
  identity) tests "identity" 330 4 "not long" tests/engine ;;
  identity2) tests "identity, long" 560 3 long tests/engine ;;
  model)
    step "SmolLM2" 150 "$PYTHON" -m divserve prepare-model --out "$MODEL_OUT"
    mkdir -p .models # The tests look for it there.
    [ -e .models/smollm2-135m-instruct ] || ln -s "$(realpath "$MODEL_OUT")" .models/smollm2-135m-instruct
    tests "SmolLM2's tokens" 150 1 "not long" tests/smollm2 ;;
  smoke) bench smoke 240 "$MODEL_OUT" --look-back --amateur drop:4 ||
    bench smoke 150 "$MODEL_OUT" --look-back --amateur drop:4 --enforce-eager ;;
  speed) # What matters most comes first.
    bench lockstep 150 "${save[@]}" --size "$small" "${graphs[@]}" "${pairs[@]}" "${few[@]}"
    bench lockstep 200 "${save[@]}" --size "$large" "${graphs[@]}" "${pairs[@]}" "${few[@]}"
    bench two_models 90 "${save[@]}" --only contrast --size "$small" "${graphs[@]}" "${few[@]}"
    bench look_back 90 --only itl --size "$small" "${graphs[@]}" --rounds 3 "${record[@]}"
    bench step_overhead 50 "${save[@]}" --size "$small" "${graphs[@]}"
    bench sampling 60 "${record[@]}"
    bench first_start 200 --rounds 1 --serve "$MODEL_OUT" "${record[@]}" ;;
  speed2)
    bench lockstep 300 "${save[@]}" --size "$small" --mode compile "${pairs[@]}" "${few[@]}"
    bench menu 200 "${save[@]}" --size "$small" "${graphs[@]}"
    bench speculation 250 --size "$small" "${graphs[@]}" "${few[@]}" "${record[@]}" ;;
  report) bench performance 60 ;;
  *)
    echo "bench/gpu.sh: no stage $stage" >&2
    failed=1 ;;
  esac
done
echo "== $OUT"
cat "$OUT/summary.txt"
exit $failed
