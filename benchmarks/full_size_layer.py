"""One expert layer of K2.6's full size: made at random, then a token sent through its eight experts.

Makes about 9.8 GB of files (`perilune checkpoint make`), which are removed again unless --folder names where
to keep them. The token runs in a process of its own, whose peak memory is what is measured: the experts
stay in their files. --quick takes a layer a thousand times smaller.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FULL = ("num_hidden_layers=1", "first_k_dense_replace=0", "vocab_size=1024")
QUICK = (*FULL, "hidden_size=256", "moe_intermediate_size=128", "n_routed_experts=64")
LAYER = 0
TIMES = 5


def make(folder: Path, changes: tuple[str, ...]) -> float:
    """Seconds that `perilune checkpoint make` took."""
    command = [sys.executable, "-m", "perilune", "checkpoint", "make", str(folder), "--shape", "k2.6"]
    command += ["--no-vision", "--no-hashes", *(f"--set={change}" for change in changes)]
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def run(folder: Path) -> dict[str, float]:
    """In the measured process: send a token through the layer."""
    import resource

    import torch

    from perilune.model.checkpoint import Checkpoint
    from perilune.model.config import load_config
    from perilune.model.load import load_moe

    config = load_config(folder)
    with torch.no_grad():
        moe = load_moe(Checkpoint.open(folder), config, LAYER, torch.bfloat16)
        generator = torch.Generator().manual_seed(0)
        seconds = []
        for _ in range(TIMES):
            token = torch.randn(1, config.hidden_size, generator=generator).bfloat16()
            start = time.monotonic()
            out = moe(token)
            seconds.append(time.monotonic() - start)
            assert out.shape == token.shape and torch.isfinite(out).all() and out.abs().max() > 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "experts": config.num_experts_per_tok,
        "first_token_s": round(seconds[0], 3),
        "token_s_p50": round(sorted(seconds)[TIMES // 2], 3),
        "peak_rss_mb": round(peak / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object of numbers on the last line")
    parser.add_argument("--folder", type=Path, help="where the layer is kept, or taken from when it is there")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(run(given.measure)))
        return
    with tempfile.TemporaryDirectory(prefix="perilune-layer-") as temporary:
        folder = given.folder or Path(temporary) / "layer"
        figures = {"make_s": 0.0}
        if not (folder / "config.json").exists():
            figures["make_s"] = round(make(folder, QUICK if given.quick else FULL), 1)
        figures["files_gb"] = round(sum(file.stat().st_size for file in folder.iterdir()) / 1e9, 3)
        child = [sys.executable, __file__, "--measure", str(folder)]
        done = subprocess.run(child, check=True, capture_output=True, text=True)
        figures |= json.loads(done.stdout)
    for name, figure in figures.items():
        print(f"{name:<14} {figure:,}")
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
