"""The whole recipe, one step after the other; what is there already is not made again.

python -m nano                      (about 80 minutes on two free cores)
python -m nano --tokens 1e6 --minutes 5     (to see it work)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, help="folders of Python files to learn from")
    parser.add_argument("--work", type=Path, default=Path("nano/work"))
    parser.add_argument("--folder", type=Path, default=Path("src/perilune/nano_checkpoint"))
    parser.add_argument("--tokens", default="45e6")
    parser.add_argument("--minutes", default="72")
    options = parser.parse_args()
    work = ["--work", str(options.work)]
    folders = options.folders or [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    if not (options.work / "corpus.msgpack").exists():
        _step("nano.corpus", *work, *map(str, folders))
    if not (options.work / "tokenizer" / "tiktoken.model").exists():
        _step("nano.merges", *work)
    _step("nano.train", *work, "--tokens", options.tokens, "--minutes", options.minutes)
    checkpoint = ["--folder", str(options.folder)]
    figures = options.work / "figures.json"
    _step("nano.publish", *work, *checkpoint)
    _step("nano.evaluate", *work, "--checkpoint", str(options.folder), "--out", str(figures))
    _step("nano.publish", *work, *checkpoint, "--card-only", "--figures", str(figures))


def _step(module: str, *arguments: str) -> None:
    print(f"== {module}", flush=True)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    main()
