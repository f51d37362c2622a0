"""Several processes train one model, through the real `mlx.launch`; and processes that die, stop, raise or differ."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxbert.cli import main
from mlxbert.runs import Run
from tests.support.launched import errors, launched, loss_curve, ran
from tests.support.ranks_driver import steps
from tests.support.run_samples import sample

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
MLXBERT = ("-m", "mlxbert")


class Place:
    """A directory with data, and the arguments that train on them."""

    def __init__(self, root: Path, checkpoint: Path):
        self.root = root
        for rank in (0, 1):
            sample("binary", 64, seed=rank).to_csv(root / f"data{rank}.csv", index=False)
        self.arguments = f"--model {checkpoint} --text text --target y --id id --dropout 0.1 --rate 3e-3 --no-compiled"

    def train(self, out: str, *more: str, data: str = "data0.csv") -> list[str]:
        """Return the arguments of a training of two folds, which saves its state after each step."""
        usual = "--folds 2 --epochs 3 --batch-size 8 --save-every 1"
        return ["train", data, *self.arguments.split(), *usual.split(), "-o", out, *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Place:
    return Place(tmp_path_factory.mktemp("ranks"), tiny_checkpoint)


@pytest.fixture(scope="module")
def uninterrupted(place: Place) -> Path:
    """A run of two ranks to its end."""
    output = ran(2, *MLXBERT, *place.train("uninterrupted"), cwd=place.root)
    assert not errors(output), output
    return place.root / "uninterrupted"


def files_of(run: Path) -> dict[str, bytes]:
    """The files of a finished run whose bytes are promised."""
    names = [run / "oof.csv", *sorted(run.glob("logits/*")), *sorted(run.glob("members/*/*.safetensors"))]
    return {str(file.relative_to(run)): file.read_bytes() for file in names}


def resumed(place: Place, name: str) -> Path:
    output = ran(2, *MLXBERT, "train", "--resume", name, cwd=place.root)
    assert not errors(output), output
    return place.root / name


def test_ranks_without_rows_and_accumulated_batches_give_the_steps_of_one_process(tmp_path: Path) -> None:
    """Two rows are dealt to four ranks; the weights are equal to the bit on all of them."""
    output = ran(4, "-m", "tests.support.ranks_driver", "steps", str(tmp_path), cwd=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 4, output
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    assert found[0] == found[1] == found[2] == found[3]
    for accumulated, reports in zip((1, 2), found[0], strict=True):
        for report, expected in zip(reports[:-1], steps(accumulated)[:-1], strict=True):
            assert report["rows"] == expected["rows"]
            assert report["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert report["norm"] == pytest.approx(expected["norm"], rel=1e-4)


def test_four_ranks_train_like_one_process(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty steps with dropout; the last rank's rows of the last batch are fillers."""
    more = ["--folds", "1", "--valid-size", "12", "--epochs", "8"]  # 52 rows, 7 batches an epoch
    output = ran(4, *MLXBERT, *place.train("four", *more), cwd=place.root)
    assert not errors(output), output
    monkeypatch.chdir(place.root)
    main(place.train("one", *more), standalone_mode=False)
    four, one = np.array(loss_curve(place.root / "four")), np.array(loss_curve(place.root / "one"))
    assert len(four) == len(one) == 56
    assert np.abs(four / one - 1).max() < 1e-4
    weights = [mx.load(str(place.root / run / "members/seed0-fold0/heads.safetensors")) for run in ("four", "one")]
    for name, array in weights[1].items():  # type: ignore[union-attr]
        assert mx.allclose(array, weights[0][name], rtol=1e-4, atol=1e-5), name  # type: ignore[index, call-overload]
    assert output.count("Out of fold") == 1  # only rank 0 prints
    assert "Ranks     4 on 1 machine, ring\n" in output


def test_a_killed_rank_ends_all_and_the_run_goes_on_to_the_same_bytes(place: Place, uninterrupted: Path) -> None:
    with launched(2, *MLXBERT, *place.train("killed"), cwd=place.root) as ranks:
        ranks.wait_for_steps(place.root / "killed" / "metrics.jsonl", 5)
        os.kill(ranks.pid(1), signal.SIGKILL)
        (line,) = errors(ranks.wait())
    assert "rank 1 on " in line
    assert "has ended without a word; it was last heard of at step " in line
    assert line.endswith("all ranks end; go on with the same number of ranks and: mlxbert train --resume killed")
    assert files_of(resumed(place, "killed")) == files_of(uninterrupted)


def test_ctrl_c_saves_and_another_number_of_ranks_has_to_be_allowed(
    place: Place, uninterrupted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with launched(2, *MLXBERT, *place.train("interrupted"), cwd=place.root) as ranks:
        ranks.wait_for_steps(place.root / "interrupted" / "metrics.jsonl", 5)
        os.kill(ranks.pid(1), signal.SIGINT)
        output = ranks.wait()
    assert "what is trained so far is saved in interrupted" in output
    monkeypatch.chdir(place.root)
    with pytest.raises(SystemExit):
        main(["train", "--resume", "interrupted"], standalone_mode=False)
    wanted = "(ranks was 2, is None), and would not end in the same bytes; fix: mlx.launch -n 2, or --allow-changes"
    assert wanted in capsys.readouterr().err
    main(["train", "--resume", "interrupted", "--allow-changes"], standalone_mode=False)
    run, whole = Run.open(place.root / "interrupted"), Run.open(uninterrupted)
    assert run.scores["pooled"]["log_loss"] == pytest.approx(whole.scores["pooled"]["log_loss"], rel=1e-3)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_ends_all_after_the_time_out(place: Place, rank: int) -> None:
    name = f"stopped{rank}"
    with launched(2, *MLXBERT, *place.train(name, "--epochs", "500"), cwd=place.root, timeout=4) as ranks:
        ranks.wait_for_steps(place.root / name / "metrics.jsonl", 3)
        stopped = ranks.pid(rank)
        os.kill(stopped, signal.SIGSTOP)
        (line,) = errors(ranks.wait())
        assert not Path(f"/proc/{stopped}").exists()
    assert f"rank {rank} on " in line
    assert "gives no sign of life for 4 s; its last was at step " in line


def test_a_killed_rank_0_is_named_by_another(place: Place) -> None:
    with launched(2, *MLXBERT, *place.train("first"), cwd=place.root) as ranks:
        ranks.wait_for_steps(place.root / "first" / "metrics.jsonl", 3)
        os.kill(ranks.pid(0), signal.SIGKILL)
        (line,) = errors(ranks.wait())
    assert "rank 0 on " in line
    assert "has ended without a word" in line


def test_a_rank_that_raises_is_named_with_its_error(place: Place) -> None:
    driver = ("-m", "tests.support.ranks_driver", "raises", ".", *place.train("raised"))
    (line,) = errors(ran(2, *driver, cwd=place.root))
    assert "rank 1 on " in line
    assert ", step 3: ValueError: something is wrong here; all ranks end; go on with " in line


def test_ranks_with_other_data_are_refused_before_anything_is_written(place: Place) -> None:
    script = place.root / "other.py"
    script.write_text(
        "import os, sys\nfrom mlxbert.cli import main\nmain([a.replace('RANK', os.environ['MLX_RANK']) "
        "for a in sys.argv[1:]], prog_name='mlxbert')\n"
    )
    (line,) = errors(ran(2, str(script), *place.train("other", data="dataRANK.csv"), cwd=place.root))
    expected = "the ranks differ in data, checkpoint, settings or versions from rank 0: rank 1: the data's digest is "
    assert expected in line
    assert "fix: give all ranks the same files and options" in line
    assert not (place.root / "other").exists()


def test_members_apart_do_not_go_with_ranks(place: Place) -> None:
    (line,) = errors(ran(2, *MLXBERT, *place.train("apart", "--workers", "2"), cwd=place.root))
    assert line.endswith("and --workers trains models apart; fix: leave --workers or mlx.launch out")
