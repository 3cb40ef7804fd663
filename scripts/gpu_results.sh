#!/usr/bin/env bash
# Trains and evaluates every GPU row of docs/results.md, and writes the table: bash scripts/gpu_results.sh OUT
# LEARNREG_DATA names the data. About 2 hours on one GPU; SMALL=1 tries the whole script on a CPU in minutes.
set -euo pipefail

out=${1:?give a folder for the runs and the table}
: "${LEARNREG_DATA:?set LEARNREG_DATA to the folder that holds hippocampus/ and brain/}"
cd "$(dirname "$0")/.."
mkdir -p "$out"
out=$(cd "$out" && pwd)

if [ "${SMALL:-}" ]; then
    device=cpu
    size=(trainer.limit_train_batches=2 trainer.max_epochs=1 trainer.check_val_every_n_epoch=1 data.batch_size=1
        data.validation_pairs=1)
    hippocampus_block=197:200 brain_block=11:14 refine=2 wide='network.channels=[8,8,8,8]' many=()
    brain=('data.space.spacing=4.0' 'data.space.shape=[48,48,48]')
else
    device=cuda
    size=(trainer.max_time=00:00:30:00 trainer.max_epochs=10000)
    hippocampus_block=160:200 brain_block=11:14 refine=10 wide='network.channels=[32,64,128,192]' many=(data.batch_size=8)
    brain=()
fi

train() { # name, then overrides
    local name=$1
    shift
    python train.py hydra.run.dir="$out/$name" report_pairs=0 "${size[@]}" "$@"
}

score() { # name, data, block, then options
    local name=$1 data=$2 block=$3
    shift 3
    learnreg evaluate "$LEARNREG_DATA/$data" --block "$block" --device "$device" \
        --checkpoint "$out/$name/checkpoints/best.ckpt" -o "$out/$name/evaluation" "$@"
}

cube=(--shape 64 64 64)
train hippocampus experiment=hippocampus "$wide" "${many[@]}"
score hippocampus hippocampus "$hippocampus_block" "${cube[@]}" --refine "$refine" --method deformable
train hippocampus_images experiment=hippocampus_images "$wide" "${many[@]}"
score hippocampus_images hippocampus "$hippocampus_block" "${cube[@]}" --refine $((3 * refine))
train brain experiment=brain "${brain[@]}"
score brain brain "$brain_block" --refine "$refine" --method brain

{
    echo "Device: $device; $(python -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")'); $(date -u +%F)"
    for name in hippocampus hippocampus_images brain; do
        printf '\n### %s\n\n' "$name"
        cat "$out/$name/evaluation/table.md"
    done
} >"$out/results.md"
cat "$out/results.md"
