"""What guidance costs: a training step of the full method against one of `ce`, at equal numbers of pictures.

    python benchmarks/guided_step.py [--student small|resnet50] [--rounds 7]

Every step sees the same pictures, four of each person; the full method with the teacher's embeddings from a cache in
memory, transport to the sixteen words of everybody in the batch, global alignment and a shape teacher's answers; once
more with the paper's local term, and with a step that measures every term's gradient, as one in
`gradient_norms_every` does. Forward, backward and Adam; no loading. Interleaved, medians, ratios from one run; parts
of the loss alone, forward and backward, from the same features.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
from clip3dreid.loss.weighted import WeightedLosses
from clip3dreid.model.embedding_cache import MemoryCache, TeacherEmbeddings
from clip3dreid.model.student import Student
from clip3dreid.report.tables import print_table
from clip3dreid.types import Batch, Dimensions, Features, ShapeTargets, TeacherSpace, TextTargets

SETTINGS = {
    # experiment, size, pictures, teacher's width
    "small": ("demo", (128, 64), 64, 128),
    "resnet50": ("ltcc", (384, 192), 16, 768),
}
PEOPLE, WORDS, GROUPS, BETAS = 77, 49, 16, 10


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", choices=SETTINGS, default="small")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    experiment, (height, width), count, joint = SETTINGS[arguments.student]
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        plain, full, pull = (
            compose("train", [f"+experiment={experiment}", "data.root=x", f"+ablation={variant}"])
            for variant in ("ce", "all", "all_pull")
        )
    torch.manual_seed(0)
    answers = torch.randn(PEOPLE, BETAS - 1)
    guides = (
        TextTargets(
            unit(WORDS, joint),
            torch.randint(WORDS, (PEOPLE, GROUPS)),
            torch.ones(PEOPLE, GROUPS),
            "person",
            unit(WORDS, joint),
        ),
        TeacherSpace(joint, torch.zeros(joint)),
        ShapeTargets(
            answers,
            torch.ones_like(answers),
            "person",
            tuple(range(1, BETAS)),
            torch.zeros(BETAS),
            torch.ones(BETAS),
        ),
    )
    teacher = TeacherEmbeddings(cache=MemoryCache(unit(count, joint)))
    row = torch.arange(count)
    person = row // 4 % PEOPLE
    bare = Batch(torch.rand(count, 3, height, width), person, person, row, row)

    def prepare(cfg: DictConfig) -> tuple[Student, WeightedLosses, torch.optim.Optimizer]:
        student = instantiate(cfg.model.student)
        if cfg.channels_last:
            student.to(memory_format=torch.channels_last)
        no_clothes = torch.empty(0, dtype=torch.int64)
        dimensions = Dimensions(student.channels, student.width, PEOPLE, no_clothes, guides)
        losses = WeightedLosses(instantiate(cfg.loss), dimensions)
        return student, losses, torch.optim.Adam([*student.parameters(), *losses.parameters()], 1e-4)

    made = {name: prepare(cfg) for name, cfg in (("ce", plain), ("full", full), ("full, pull", pull))}

    def step(name: str, measured: bool = False) -> None:
        student, losses, optimizer = made[name]
        batch = bare if name == "ce" else bare._replace(targets={"teacher": teacher(bare)})
        measure = list(student.backbone.parameters()) if measured else ()
        losses(student(batch.images), batch, 0, measure=measure).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    taught = bare._replace(targets={"teacher": teacher(bare)})
    leaf = Features(*(part.detach().requires_grad_() for part in made["full"][0](bare.images)))

    def part(losses: WeightedLosses, name: str) -> None:
        value = losses.terms[name](leaf, taught)
        (sum(value.values()) if isinstance(value, dict) else value).backward()

    jobs: dict[str, Callable[[], object]] = {
        **{name: partial(step, name) for name in made},
        "full, measured": lambda: step("full", measured=True),
        "teacher's cache": lambda: teacher(bare),
        **{f"term {name}": partial(part, made["full"][1], name) for name in made["full"][1].terms},
        "term local, pull": partial(part, made["full, pull"][1], "local"),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(arguments.rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    rows = [[name, 1e3 * median(t), f"{median(t) / median(times['ce']):.3f}"] for name, t in times.items()]
    what = f"{count} pictures, {height}x{width}, {torch.get_num_threads()} threads"
    print_table(f"{arguments.student}: {what}", ["", "ms", "of a ce step"], rows)
    usual = median(times["full"])
    extra = (median(times["full, measured"]) - usual) / usual
    every = full.gradient_norms_every
    print(
        f"measuring costs {extra:.2f} steps; once in {every} steps, {100 * extra / every:.2f} % of the training"
    )


if __name__ == "__main__":
    main()
