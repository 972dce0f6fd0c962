"""Put a trained student into the package as `clip3dreid.load("body_student")`.

    python tools/ship_student.py RUN [--out src/clip3dreid/model/assets/body_student]

RUN is a folder of `clip3dreid train +experiment=body_student`. Its README, the card that says what the student is
worth, is written by hand and stays; the list of checksums is made anew.
"""

import argparse
import hashlib
from pathlib import Path

import clip3dreid

ASSETS = Path(__file__).parents[1] / "src/clip3dreid/model/assets/body_student"
FILES = ("config.json", "model.safetensors")
MOST_BYTES = 10_000_000


def main() -> None:
    """Write weights, configuration and checksums."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    out: Path = arguments.out
    clip3dreid.load(arguments.run).save_pretrained(out)
    size = sum((out / name).stat().st_size for name in FILES)
    if size > MOST_BYTES:
        raise SystemExit(f"{out} has {size:,} bytes, more than the {MOST_BYTES:,} that are shipped")
    sums = [f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES]
    (out / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    print(f"{out}: {size:,} bytes")


if __name__ == "__main__":
    main()
