"""Pages say what is there: links, files, tests, commands and names."""

import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clip3dreid.config.folder import options
from clip3dreid.model.pooling import MaximumAverage
from clip3dreid.model.student import Student
from tests.conftest import Command
from tests.test_contributing import blocks

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
COMMANDS = {path.stem for path in (ROOT / "src/clip3dreid/cli").glob("*.py") if path.stem != "__init__"}
each_page = pytest.mark.parametrize("name", TEXTS)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """Return what headings are linked as."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_link_of_a_page_leads_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(TEXTS[name])):
        if re.match(r"\w+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = (ROOT / name).parent / place if place else ROOT / name
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


@each_page
def test_every_file_of_the_project_that_a_page_names_is_there(name: str) -> None:
    examples = {block.file for block in blocks()} if name == "CONTRIBUTING.md" else set()
    for path in re.findall(r"`((?:src|tests|conf|benchmarks|docs|tools)/[\w./-]+)`", TEXTS[name]):
        assert (ROOT / path).exists() or path in examples or "NAME" in path, path


def test_every_test_that_a_page_names_is_there() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py")))
    for name, text in TEXTS.items():
        for test in re.findall(r"`(test_\w+)…?`", text):
            assert f"def {test}" in tests or (ROOT / "tests" / f"{test}.py").exists(), (name, test)


@each_page
def test_every_name_of_the_library_that_a_page_names_is_there(name: str) -> None:
    for dotted in re.findall(r"`(clip3dreid(?!\.json)(?:\.\w+)+)`", TEXTS[name]):
        pkgutil.resolve_name(dotted)


@each_page
def test_every_command_that_a_page_names_is_there(name: str) -> None:
    """Of the library's modules only `clip3dreid.train` is started by its own name."""
    examples = {"outfits"} if name == "CONTRIBUTING.md" else set()
    for command in re.findall(r"(?:^|`|\n) *clip3dreid ([a-z][\w-]*)", TEXTS[name]):
        assert command.replace("-", "_") in COMMANDS | examples, command
    assert set(re.findall(r"python -m clip3dreid\.(\w+)", TEXTS[name])) <= {"train"}
    assert "clip3dreid-" not in TEXTS[name]


@pytest.mark.parametrize(
    "old", [r"\bladder\b", r"\brungs?\b", r"\bloader[.=]", r"\bstrangers?\b", r"\bcrowd\b"]
)
def test_names_that_were_given_up_are_in_no_page_and_no_config(old: str) -> None:
    configs = {
        str(path): path.read_text(encoding="utf-8") for path in sorted((ROOT / "conf").rglob("*.yaml"))
    }
    for name, text in (TEXTS | configs).items():
        for line in text.splitlines():
            assert not re.search(old, line, flags=re.I) or "renamed" in line.lower(), (name, line)


def test_the_readme_and_the_page_on_data_sets_name_every_data_set() -> None:
    names = set(options("data"))
    listed = re.search(r"`data=` is one of\n\n((?:`\w+`\s+)+)", TEXTS["README.md"])
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == names - {"embedded"}
    table = TEXTS["docs/datasets.md"].split("## Access")[0]
    assert names - {"embedded"} <= set(re.findall(r"`(\w+)`", table))


def test_the_readme_leads_to_every_page() -> None:
    pages = {page for page in TEXTS if page.startswith("docs/")}
    assert pages <= set(re.findall(r"\]\((docs/\w+\.md)", TEXTS["README.md"]))
    assert {"CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"} <= set(
        re.findall(r"\]\((\w+\.md)", TEXTS["README.md"])
    )


def test_the_headline_of_every_data_set_on_its_page_is_the_one_of_its_config() -> None:
    rows = re.findall(r"^\|[^|]+\| `(\w+)` \|.*\*\*(\w+)\*\*.*\|$", TEXTS["docs/datasets.md"], flags=re.M)
    assert len(rows) >= 11
    for data, headline in rows:
        config = (ROOT / "conf/data" / f"{data}.yaml").read_text(encoding="utf-8")
        assert f"\nheadline: {headline}\n" in config, data


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the words of each `clip3dreid` line of a page's code."""
    for block in re.findall(r"^```(?:bash|sh)?\n(.*?)^```$", text, flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("clip3dreid "):
                words = shlex.split(line, comments=True)[1:]
                # What follows a pipe is another program's.
                yield words[: words.index("|")] if "|" in words else words


def first_of_each(words: list[str]) -> list[str]:
    """Return a sweep's words with the first value of each key, and without what asks for a sweep."""
    if not {"-m", "--multirun"} & set(words):
        return words
    return [
        word.partition(",")[0] if "=" in word and "[" not in word else word
        for word in words
        if word not in ("-m", "--multirun")
    ]


SHOWN = {
    " ".join(words): (first_of_each(words), name)
    # The README last: a command that stands there too is one of its own.
    for name, text in sorted(TEXTS.items(), key=lambda item: item[0] == "README.md")
    for words in commands_of(text)
    if words and not words[0].startswith("-")
    # What these mean is decided by folders that are not there.
    if not any(word.startswith(("resume=", "--config-dir=")) for word in words)
    and not {"outfits", "…"} & set(words)
}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[] if page == "README.md" else pytest.mark.slow)
        for command, (_, page) in SHOWN.items()
    ],
)
def test_every_command_of_a_page_is_understood(command: str, invoke: Command) -> None:
    name, *words = SHOWN[command][0]
    place = words.index("--") if "--" in words else len(words)
    asked = [] if words == ["--help"] else ["--cfg", "job"]
    done = invoke(name, *words[:place], *asked, *words[place:])
    assert done.returncode == 0, done.stderr


def test_the_backbone_of_timm_that_a_page_shows_is_a_students(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(nn.Module):
        """A stand-in: timm needs torchvision, which is not installed where this runs."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 4, stride=4)

        def forward_features(self, images: Tensor) -> Tensor:
            return self.conv(images)

    def create_model(name: str, *, pretrained: bool, num_classes: int) -> nn.Module:
        assert (name, pretrained, num_classes) == ("resnet18", False, 0)
        return Network()

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXTS["docs/dependencies.md"], flags=re.M | re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    student = Student(names["TimmBackbone"]("resnet18"), MaximumAverage(), [0.5] * 3, [0.5] * 3)
    assert student(torch.rand(2, 3, 32, 16)).map.shape == (2, 6, 8, 4)
