"""What guidance costs: a training step of the full method against one of `ce`, at equal numbers of pictures.

    python benchmarks/guided_step.py [--student small|resnet50] [--rounds 7]

`ce` sees 5/4 B people's pictures; the full method B of them and B/4 bodies, with the teacher's embeddings from a
cache in memory, transport to sixteen words, global alignment and the 3D regulariser. Forward, backward and Adam; no
loading. Both kinds of batch norm for the second stream, and a step that measures every term's gradient, as one in
`gradient_norms_every` does. Interleaved, medians, ratios from one run; parts of the loss alone, forward and backward,
from the same features.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from clip3dreid.body.smpl import load_body
from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
from clip3dreid.loss.weighted import WeightedLosses
from clip3dreid.model.embedding_cache import MemoryCache, TeacherEmbeddings
from clip3dreid.model.normalisation import statistics_kept
from clip3dreid.report.tables import print_table
from clip3dreid.types import Batch, BodyBatch, BodySpace, Dimensions, Features, TeacherSpace, TextTargets

SETTINGS = {
    # experiment, size, people's pictures of the full method, teacher's width
    "small": ("demo", (128, 64), 64, 128),
    "resnet50": ("ltcc", (384, 192), 16, 768),
}
PEOPLE, WORDS, GROUPS = 77, 49, 16


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def batch_of(count: int, height: int, width: int, bodies: int) -> Batch:
    person = torch.arange(count) // 4 % PEOPLE
    second = BodyBatch(torch.rand(bodies, 3, height, width), torch.randn(bodies, 10), torch.arange(bodies))
    row = torch.arange(count)
    images = torch.rand(count, 3, height, width)
    return Batch(images, person, person, row, row, bodies=second if bodies else None)


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", choices=SETTINGS, default="small")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    experiment, (height, width), people, joint = SETTINGS[arguments.student]
    bodies = people // 4
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        full = compose("train", [f"+experiment={experiment}", "data.root=x", "method=clip3dreid"])
        plain = compose("train", [f"+experiment={experiment}", "data.root=x", "method=ce"])
    torch.manual_seed(0)
    table = torch.randint(WORDS, (PEOPLE, GROUPS))
    body = load_body("anny_light")
    guides = (
        TextTargets(unit(WORDS, joint), table, torch.ones(PEOPLE, GROUPS), "person", unit(WORDS, joint)),
        TeacherSpace(joint, torch.zeros(joint)),
        BodySpace(body.template, body.shape_directions, torch.zeros(10), torch.ones(10), bodies),
    )
    teacher = TeacherEmbeddings(cache=MemoryCache(unit(people, joint)))

    def prepare(cfg: object, guided: bool) -> tuple[torch.nn.Module, WeightedLosses, torch.optim.Optimizer]:
        student = instantiate(cfg.model.student)  # type: ignore[attr-defined]
        if cfg.channels_last:  # type: ignore[attr-defined]
            student.to(memory_format=torch.channels_last)
        dimensions = Dimensions(student.channels, student.width, PEOPLE, torch.empty(0, dtype=torch.int64))
        losses = WeightedLosses(
            instantiate(cfg.loss), dimensions._replace(guides=guides) if guided else dimensions
        )  # type: ignore[attr-defined]
        return student, losses, torch.optim.Adam([*student.parameters(), *losses.parameters()], 1e-4)

    alone = prepare(plain, guided=False)
    alone_batch = batch_of(people + bodies, height, width, 0)
    guided = prepare(full, guided=True)
    guided_batch = batch_of(people, height, width, bodies)

    def see(student: torch.nn.Module, batch: Batch, shared: bool) -> tuple[Features, Features | None]:
        if batch.bodies is None:
            return student(batch.images), None
        if shared:
            both = student(torch.cat([batch.images, batch.bodies.images]))
            first, second = (Features(*parts) for parts in zip(*(x.split(people) for x in both), strict=True))
            return first, second
        features = student(batch.images)
        with statistics_kept(student):
            return features, student(batch.bodies.images)

    def step(what: tuple, batch: Batch, shared: bool = False, measured: bool = False) -> None:
        student, losses, optimizer = what
        if batch.bodies is not None:
            batch = batch._replace(targets={"teacher": teacher(batch)})
        features, shown = see(student, batch, shared)
        measure = list(student.backbone.parameters()) if measured else ()
        losses(features, batch, 0, bodies=shown, measure=measure).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    taught = guided_batch._replace(targets={"teacher": teacher(guided_batch)})
    features, shown = see(guided[0], taught, shared=False)
    assert shown is not None
    leaf, leaf_of_bodies = (
        Features(*(part.detach().requires_grad_() for part in one)) for one in (features, shown)
    )

    def part(name: str) -> None:
        value = guided[1].terms[name](leaf, taught, leaf_of_bodies)
        (sum(value.values()) if isinstance(value, dict) else value).backward()

    def cached() -> None:
        teacher(guided_batch)

    jobs: dict[str, Callable[[], None]] = {
        "ce": lambda: step(alone, alone_batch),
        "full, separate": lambda: step(guided, guided_batch),
        "full, shared": lambda: step(guided, guided_batch, shared=True),
        "full, measured": lambda: step(guided, guided_batch, measured=True),
        "teacher's cache": cached,
        **{f"term {name}": (lambda name=name: part(name)) for name in guided[1].terms},
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(arguments.rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    rows = [[name, 1e3 * median(t), f"{median(t) / median(times['ce']):.3f}"] for name, t in times.items()]
    what = f"{people} pictures and {bodies} bodies, {height}x{width}, {torch.get_num_threads()} threads"
    print_table(f"{arguments.student}: {what}", ["", "ms", "of a ce step"], rows)
    usual = median(times["full, separate"])
    extra = (median(times["full, measured"]) - usual) / usual
    every = full.gradient_norms_every
    print(
        f"measuring costs {extra:.2f} steps; once in {every} steps, {100 * extra / every:.2f} % of the training"
    )


if __name__ == "__main__":
    main()
