#!/usr/bin/env bash
# What a GPU makes of this package, in at most eight minutes:
#
#   experiments/gpu_check.sh [FOLDER]
#
# Each part writes what it finds into FOLDER (runs/gpu_check) as it goes, so that nothing is lost
# however it ends; a part that takes longer than its share is cut, and the next one begins.
# PYTHON names the interpreter (.venv/bin/python), DATA_DIR a folder with prepared data sets: with it
# the run of MHD learns CIFAR-10, without it digits.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-runs/gpu_check}")
python=${PYTHON:-.venv/bin/python}
mkdir -p "$folder"

"$python" - <<'PY' | tee "$folder/device.txt" || exit 2
import sys
import jax

devices = jax.devices()
if devices[0].platform != "gpu":
    sys.exit(f"error: JAX finds no GPU here, only {devices[0]}; install the extra cuda.")
print(f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
PY

part() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2 began=$SECONDS status
  shift 2
  echo "== $name, at most $seconds s"
  timeout --signal=INT --kill-after=10 "$seconds" "$@" >"$folder/$name.log" 2>&1
  status=$?
  tail -n 12 "$folder/$name.log"
  printf '%s\tstatus %d\t%d s\n' "$name" "$status" "$((SECONDS - began))" | tee -a "$folder/parts.tsv"
}

if [ -n "${DATA_DIR:-}" ]; then
  data=(--dataset=cifar10 "--data_dir=$DATA_DIR" --model=resnet20)
else
  data=(--dataset=digits --model=resnet8)
fi

part rows 130 "$python" -m experiments.benchmark --rows=gpu_small,gpu_resnet34,mhd_overhead \
  --output="$folder/rows.json" --record
part forms 110 "$python" -m experiments.conv_forms --times="$folder/forms.json"
part mhd 60 "$python" -m experiments.train --algorithm=mhd "${data[@]}" --norm=group --num_clients=8 \
  --compute_dtype=bfloat16 --steps=500 --eval_every=250 --workdir="$folder/mhd"
part scaling 60 "$python" -m experiments.scaling --models=lenet5 --num_clients=8,64 \
  --workdir="$folder/scaling"
part tests 100 "$python" -m pytest -n 0 -q tests/models/test_conv.py tests/core/test_client_axis.py \
  tests/algorithms/test_mhd_reference.py
echo "all of it is in $folder"
