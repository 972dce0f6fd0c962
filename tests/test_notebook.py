"""The project in Python calls of docs/api.md runs as it stands, and never touches Hydra."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.processes import PATIENCE_S

PAGE = (Path(__file__).parents[1] / "docs/api.md").read_text(encoding="utf-8")

FACTS = """
import json, sys
print("facts", json.dumps({
    "modules": sorted(sys.modules),
    "folder": str(run.folder),
    "same": run.results.evaluations[0].results["clothes_changing"]["map"] == scores["map"],
    "people": sorted(set(data.source.part("train")["person"])),
    "queries": scores["queries"],
    "protocol": scores["protocol"],
    "r1": scores["r1"],
    "scores": found.answers[0].hits["score"].to_list(),
    "searched": found.searched,
    "cosine": files.files["torch_export"].parity.cosine,
}))
"""


def test_a_project_from_world_to_export_is_python_calls_without_hydra(tmp_path: Path) -> None:
    section = PAGE.split("## A whole project")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, flags=re.M | re.S)
    (tmp_path / "notebook.py").write_text(code + FACTS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.split("facts ")[1])
    assert "hydra" not in facts["modules"]
    assert not {"albumentations", "geomloss", "wandb"} & set(facts["modules"])
    # A world of 8 + 4 people in two outfits: trained on the former, tested on the latter, under the headline's rule.
    assert len(facts["people"]) == 8
    assert facts["queries"] == 4 * 2 * 3
    assert facts["protocol"] == "clothes_changing"
    assert 0 <= facts["r1"] <= 1
    # The training's own test and the evaluation of its checkpoint agree to the last digit.
    assert facts["same"]
    assert facts["searched"] == len(list((tmp_path / "world/test").rglob("*.png")))
    assert facts["scores"] == sorted(facts["scores"], reverse=True)
    assert facts["cosine"] > 0.9999
    for file in ("run/results.json", "run/checkpoints/last.ckpt", "shards/index.json", "exported/model.pt2"):
        assert (tmp_path / file).is_file(), file
