#!/usr/bin/env bash
# The 128 px run on one H100-class GPU, in two commands of ten minutes:
#
#     OUT=DIR tools/mini/gpu_run.sh first     autoencoder 4 min, then pool and UNet
#     OUT=DIR tools/mini/gpu_run.sh second    pool and UNet
#
# Each stops at UNTIL seconds and leaves unet/, vae/ and sheet.png in $OUT: 7 files, none over
# 16 MB. The second goes on from the state on the machine's disk or, on a fresh machine, from the
# unet/ and vae/ of the first put into src/dreamtune/assets/mini. The pool is a pure function of its
# shards' numbers and is drawn in the background. Carried in .mini-gpu/ (gpu_pack.sh).
set -euo pipefail
start=$(date +%s)
state=${STATE:-/tmp/mini-work}
device=${DEVICE:-cuda} setting=${SETTING:-gpu128} workers=${WORKERS:-15}
vae_minutes=${VAE_MINUTES:-4} unet_minutes=${UNET_MINUTES:-12} until=${UNTIL:-530}
shards=${SHARDS:-20}  # of the pool, before the UNet begins
cd "$(dirname "$0")/../.."
if ls .mini-gpu/wheels/*.whl >/dev/null 2>&1 && [ "$device" = cuda ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target /tmp/site .mini-gpu/wheels/*.whl
    export PYTHONPATH=/tmp/site:.
fi
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TMPDIR=${TMPDIR:-/tmp}
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
mini=${MINI:-src/dreamtune/assets/mini}
mkdir -p "$OUT" "$state/pool-$setting"
[ -e "$state/masters.npz" ] || cp -r .mini-gpu/work/. "$mini/tokenizer" "$mini/text_encoder" "$state/"
common=(--work "$state" --setting "$setting" --device "$device")
left() { echo $((until - ($(date +%s) - start))); }

going_on=()
if [ "$1" = first ]; then
    python3 -m tools.mini.train_vae "${common[@]}" --minutes "$vae_minutes" \
        --batch "${VAE_BATCH:-256}" --learning-rate 2e-3 --workers "$workers"
else
    [ -e "$state/vae" ] || cp -r "$mini/vae" "$state/"
    going_on=(--weights "$mini/unet" --begun-at "${BEGUN_AT:-3}")
fi
python3 -m tools.mini.pool "${common[@]}" --workers "$workers" &
pool=$!
trap 'kill $pool 2>/dev/null && wait $pool || true' EXIT
drawn() { find "$state/pool-$setting" -name '*.safetensors' | wc -l; }
while kill -0 $pool 2>/dev/null && [ "$(drawn)" -lt "$shards" ]; do sleep 1; done
# The learning rate decays over both commands, so the UNet is told the minutes of both together and
# is stopped by the clock of this one.
python3 -m tools.mini.train_unet "${common[@]}" --minutes "$unet_minutes" --stop-after "$(left)" \
    "${going_on[@]}"
python3 -m tools.mini.export --work "$state" --setting "$setting" --out "$state/export" --no-clip
cp -r "$state/export/mini/unet" "$state/export/mini/vae" "$OUT/"
python3 -m tools.mini.sheet "${common[@]}" --mini "$state/export/mini" --out "$OUT/sheet.png" \
    --count "${SHEET:-64}"
du -ab "$OUT"
