#!/usr/bin/env bash
# The 128 px run on one H100-class GPU, in two commands of ten minutes on the same machine:
#
#     OUT=DIR tools/mini/gpu_run.sh first     autoencoder 4 min, pool, UNet to minute 9
#     OUT=DIR tools/mini/gpu_run.sh second    UNet to minute 9, export into $OUT
#
# State stays on the machine's disk in between, and $OUT receives what a later machine could go on
# from. Carried in .mini-gpu/ (gpu_pack.sh).
set -euo pipefail
start=$(date +%s)
state=${STATE:-/tmp/mini-work}
device=${DEVICE:-cuda} setting=${SETTING:-gpu128} workers=${WORKERS:-15}
vae_minutes=${VAE_MINUTES:-4} until=${UNTIL:-540}
cd "$(dirname "$0")/../.."
if ls .mini-gpu/wheels/*.whl >/dev/null 2>&1; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target /tmp/site .mini-gpu/wheels/*.whl
    export PYTHONPATH=/tmp/site:.
fi
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$state"
mini=${MINI:-src/dreamtune/assets/mini}
cp -rn .mini-gpu/work/. "$mini/tokenizer" "$mini/text_encoder" "$state/"

if [ "$1" = first ]; then
    python3 -m tools.mini.train_vae --work "$state" --setting "$setting" --device "$device" \
        --minutes "$vae_minutes" --batch "${VAE_BATCH:-256}" --learning-rate 2e-3 --workers "$workers"
    python3 -m tools.mini.pool --work "$state" --setting "$setting" --device "$device" --workers "$workers"
fi
# The learning rate decays over both commands, so the UNet is told the minutes of both together and
# is stopped by the clock of this one.
left=$((until - ($(date +%s) - start)))
python3 -m tools.mini.train_unet --work "$state" --setting "$setting" --device "$device" \
    --minutes "${UNET_MINUTES:-11}" --stop-after "$left"
python3 -m tools.mini.export --work "$state" --setting "$setting" --out "$state/export" --no-clip
cp "$state"/export/mini/unet/*.safetensors "$OUT/"
cp "$state"/export/mini/vae/diffusion_pytorch_model.safetensors "$OUT/vae.safetensors"
cp "$state"/export/mini/vae/config.json "$OUT/vae-config.json"
