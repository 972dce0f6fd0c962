"""What a million crops cost an extraction before the first is decoded: listing, file states, shards, batches.

    python benchmarks/bookkeeping.py [--crops 1000000] [--folder FOLDER]

Makes a folder of hard links to a few tiny files (the state of a link is asked for like a file's own), and a table of
the same paths, and does in processes of their own what `clip3dreid extract` does with either up to the first batch.
Steps are in processor seconds; memory is the highest of the process, above what it took once everything was imported.
A second go finds the folder of shards begun.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LINKS = 60_000
"""Of one file: ext4 allows 65,000."""
FACTS = {
    "fingerprint": "bookkeeping",
    "source": "bookkeeping",
    "flip": False,
    "vectors": {"embedding": 512},
    "groups": {},
    "height": 256,
    "width": 128,
}


def make(folder, crops):
    import polars as pl

    (folder / "crops").mkdir(parents=True)
    names = []
    for row in range(crops):
        if row % LINKS == 0:
            original = folder / f"original{row}.jpg"
            original.write_bytes(b"no picture")
        if row % 1000 == 0:
            place = f"person{row // 1000:06d}"
            (folder / "crops" / place).mkdir()
        name = f"{place}/camera{row % 7}_{row:09d}.jpg"
        os.link(original, folder / "crops" / name)
        names.append(name)
    table = pl.DataFrame({"path": names}).with_columns(person=pl.col("path").str.slice(0, 12))
    table.write_parquet(folder / "crops" / "table.parquet")


def work(place, shards, quick=True):
    """Do what `search.extraction.extract` does before the first batch, and say what each step took."""
    from clip3dreid.data.crops import CropBatches, cut_between_pictures
    from clip3dreid.data.images import TestView
    from clip3dreid.data.listing import list_pictures
    from clip3dreid.io.files import identify
    from clip3dreid.search.settings import ExtractSettings
    from clip3dreid.search.shard_writer import ShardWriter

    before, steps, start = memory(), {}, time.process_time()

    def step(name):
        nonlocal start
        steps[name], start = time.process_time() - start, time.process_time()

    listing = list_pictures(place)
    step("listing")
    identities = identify(listing.root, listing.table["path"], missing_ok=True)
    step("file states")
    notes = {"model": "none", "root": str(listing.root)}
    writer = ShardWriter(shards, listing.table, identities, FACTS, ExtractSettings(), notes=notes)
    step("shards")
    batches = [
        batch
        for rows in map(writer.rows, writer.missing())
        for batch in cut_between_pictures(listing.table["path"], rows, 64)
    ]
    crops = CropBatches.of(listing, batches, TestView(256, 128), skip=True)
    step("batches")
    print(
        json.dumps(
            {"crops": len(listing.table), "batches": len(crops), "steps": steps, "mib": memory() - before}
        )
    )


def memory():
    """MiB that the process took at its highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--crops", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to make the links; kept, and used again")
    parser.add_argument("--work", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "links"
        if not folder.exists():
            make(folder, options.crops)
        for what, place in (("table", folder / "crops" / "table.parquet"), ("folder", folder / "crops")):
            shards = Path(temporary) / what
            for go in ("first", "second"):
                command = [sys.executable, __file__, "--work", str(place), str(shards)]
                said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in said["steps"].items())
                total = sum(said["steps"].values())
                print(
                    f"{what}, {go} go: {said['crops']:,} crops {total:.1f} s ({steps}), {said['mib']:.0f} MiB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
