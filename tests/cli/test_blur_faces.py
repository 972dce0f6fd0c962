"""The command line, as somebody would type it."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from clip3dreid.cli.blur_faces import main
from clip3dreid.config.folder import conf_dir


def test_command_blurs_a_folder_and_says_how_many_pictures_showed_no_face(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (50, 20, 3), dtype=np.uint8)
    Image.fromarray(picture).save(source / "1_1_0.png")
    command = [sys.executable, "-m", "clip3dreid", "blur_faces", f"source={source}", f"out={out}"]
    done = subprocess.run(
        [*command, "detector=head_region", "workers=0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1 pictures, 1 boxes blurred; no face found in 0 pictures (0.0%)" in done.stdout
    with Image.open(out / "1_1_0.png") as blurred:
        changed = (np.asarray(blurred) != picture).any(2)
    # Region 0.2..0.8 by 0..0.2, a tenth wider on each side.
    assert changed[:11, 3:17].mean() > 0.95
    assert not changed[11:].any()
    assert not changed[:, :3].any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out=x"], "source"),
        (["source=nowhere", "out=x", "detector=head_region"], "source=nowhere is not a folder"),
        (["source=nowhere", "out=x", "detector=yunet"], "detector.model"),
        (["source=nowhere", "out=x", "detector=head_region", "strenght=1"], "strenght"),
    ],
)
def test_bad_input_ends_with_status_two_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["blur_faces", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["haar_cascade", "head_region", "yunet"])
def test_every_detector_config_builds_something_that_pickles_and_prints_its_settings(name):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("blur_faces", [f"detector={name}"])
        if name == "yunet":
            cfg.detector.model = "file.onnx"
    detector = instantiate(cfg.detector)
    assert repr(pickle.loads(pickle.dumps(detector))) == repr(detector)  # noqa: S301
    assert "ListConfig" not in repr(detector)
    assert "0x" not in repr(detector)
