"""What do clips bring, and what guidance of them? `python benchmarks/walking.py DATA [--out FOLDER]`.

DATA is a rendered walking world in CCVID's layout, as `clip3dreid synthesize layout=ccvid layout.frames=12
layout.walks=2 height=128 width=64 train_people=64 test_people=96 seed=7 out=DATA` makes it. A ResNet-50 with an
eighth of its channels learns it from scratch, seed by seed, in four ways that see as many frames a step and an epoch:

    frame     single frames; a tracklet's feature is the mean over all of its frames
    c2d       clips of 4 frames, one of each quarter of a walk, and the mean over them
    ap3d      the same with five blocks that look across frames
    guided    c2d with the whole method: words, the teacher's view and its shape of the middle frame

What is in the folder already is not trained again. `clip3dreid compare` then says what each scores in other clothes,
and how far it is from `frame`, with intervals over seeds and query people.
"""

import argparse
import subprocess
import sys
from pathlib import Path

CLIPS = ("datamodule.clips.frames=4", "datamodule.clips.piece=0", "datamodule.pictures=2")
FRAMES = ("datamodule.clips.frames=1", "datamodule.clips.piece=3", "datamodule.pictures=8")
C2D = "model/student=c2d_resnet50"
WAYS = {
    "frame": (C2D, *FRAMES, "method=ce"),
    "c2d": (C2D, *CLIPS, "method=ce"),
    "ap3d": ("model/student=ap3d_resnet50", *CLIPS, "method=ce"),
    "guided": (C2D, *CLIPS, "method=clip3dreid"),
}


def command(name, *words):
    subprocess.run([sys.executable, "-m", "clip3dreid", name, *words], check=True)


def main(data, out, seeds, epochs, ways):
    for seed in seeds:
        for way in ways:
            folder = out / f"{way}_{seed}"
            if (folder / "results.json").exists():
                continue
            command(
                *("train", "+experiment=walking", f"data.root={data}", f"seed={seed}", f"variant={way}"),
                *(
                    "model.student.backbone.width=8",
                    "model.student.ghost_group=null",
                    "model.pretrained=null",
                ),
                *(f"epochs={epochs}", f"milestones=[{2 * epochs // 3},{7 * epochs // 8}]"),
                *("datamodule.people=8", "datamodule.workers=1", "retrieval.flip=true"),
                *("output=quiet", f"hydra.run.dir={folder}"),
                *WAYS[way],
            )
    runs = [str(out / f"{way}_{seed}") for seed in seeds for way in ways]
    order = ",".join(ways)
    command("compare", *runs, f"baseline={ways[0]}", f"order=[{order}]", f"out={out / 'compare'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("walking_runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    main(**vars(parser.parse_args()))
