"""Everything from artwork to shipped folders, in order; a stage whose output exists is skipped.

    python -m tools.mini.run --work DIR --held-out TABLE.tsv [--setting gpu128 --device cuda]

Minutes are those of a CPU with two cores; the defaults of `gpu128` fit one H100-class GPU.
"""

import argparse
from pathlib import Path

from tools.mini import artwork, export, judge, pool, train_text, train_unet, train_vae
from tools.mini.settings import SETTINGS

VAE_RATE = {"cpu": 1e-3, "cuda": 2e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("tools/mini/work"))
    parser.add_argument("--held-out", type=Path, help="table of emoji never trained on")
    parser.add_argument("--setting", choices=SETTINGS, default="cpu64")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--vae-minutes", type=float, default=65)
    parser.add_argument("--unet-minutes", type=float, default=240)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    options = parser.parse_args()
    work, setting, device = options.work, options.setting, options.device
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "masters.npz").exists():
        artwork.build(work, options.held_out)
    if not (work / "effnet_lite0.safetensors").exists():
        judge.convert(work / "effnet_lite0.safetensors")
    if not (work / "projections.safetensors").exists():
        train_text.prepare(work)
        train_text.train(work, train_text.STEPS)
    if not (work / "vae").exists():
        train_vae.train(
            work,
            SETTINGS[setting],
            options.vae_minutes,
            device,
            batch=32 if device == "cpu" else 256,
            learning_rate=VAE_RATE[device],
            decoder_only=False,
            workers=options.workers,
        )
    pool.fill(work, setting, device, options.workers)
    train_unet.train(work, setting, options.unet_minutes, device)
    export.export_mini(work, setting, work / "export/mini")
    export.export_clip(work, work / "export/clip")


if __name__ == "__main__":
    main()
