"""The table of results: from logs alone, equal to the committed one."""

import shutil

import pytest
import yaml

from swin_lightning.cli import main
from swin_lightning.errors import UserError
from swin_lightning.explore.leaderboard import BEGIN, END, read_logs, table
from tests.support.cli import EXPERIMENTS

HEADER = """# experiment: {experiment}
# data: {data}
# seed: {seed}
# batch_size: 10
# options: {options}
# precision: 32-true
# hardware: 2 cores
"""


def write_log(folder, name, seed=0, acc=0.9, speed=10.0, data="Digits", options="{}", acc5=""):
    folder.mkdir(parents=True, exist_ok=True)
    text = HEADER.format(experiment=name, data=data, seed=seed, options=options)
    text += f"epoch,step,train/images_per_s,test/acc,test/acc5,test/loss\n0,9,{speed},,,\n1,10,,{acc},{acc5},0.25\n"
    (folder / f"{name}-seed{seed}.csv").write_text(text)


def cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_committed_table_is_the_output_of_the_command(capsys):
    main(["results", "--folder", str(EXPERIMENTS)])
    text = (EXPERIMENTS / "README.md").read_text()
    assert text.split(BEGIN)[1].split(END)[0].strip() == capsys.readouterr().out.strip()


def test_seeds_are_summarised_by_mean_and_deviation(tmp_path):
    for seed, acc in enumerate((0.9, 0.92, 0.97)):
        write_log(tmp_path, "a", seed, acc)
    *_, row = table(read_logs(tmp_path)).splitlines()
    logs = "[0](logs/a-seed0.csv), [1](logs/a-seed1.csv), [2](logs/a-seed2.csv)"
    # 10 steps of 10 images at 10 per second, and the step of the test
    assert cells(row) == ["Digits", "`a`", "93.00 ± 3.61 %", "", "3", "11 s", "32-true, 2 cores", logs]


def test_order_options_and_results_without_classes(tmp_path):
    write_log(tmp_path, "slow", acc=0.9, speed=1.0, acc5=0.99)
    write_log(tmp_path, "quick", acc=0.8, options="{model.lr: 0.1}")
    write_log(tmp_path, "other", acc="", data="CIFAR10", speed=2.0)
    rows = [cells(row) for row in table(read_logs(tmp_path)).splitlines()[2:]]
    assert [row[1].split("`")[1] for row in rows] == ["other", "quick", "slow"]
    assert rows[0][2] == "loss 0.2500" and rows[1][1] == "`quick` `--model.lr 0.1`" and rows[2][3] == "99.00 %"
    for sort, names in {"time": ["quick", "other", "slow"], "accuracy": ["slow", "quick", "other"]}.items():
        assert [cells(row)[1].split("`")[1] for row in table(read_logs(tmp_path), sort).splitlines()[2:]] == names


def test_recorded_run_states_what_it_depends_on(run, log, tmp_path, capsys):
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    main(["results", str(run), "--folder", str(tmp_path), "--hardware", "a laptop"])
    (found,) = read_logs(tmp_path / "logs")
    assert (found.experiment, found.data, found.seed) == ("digits_swin_micro", "Digits", 0)
    expected = {"trainer.max_epochs": 2, "trainer.limit_train_batches": 3, "trainer.log_every_n_steps": 1}
    assert found.options == expected  # the differences from the file
    assert found.precision == log.config["trainer.precision"] and found.hardware.startswith("a laptop, torch ")
    assert found.metrics.last("test/acc") == pytest.approx(log.last("test/acc"))
    assert found.metrics.training_seconds() == pytest.approx(log.training_seconds())
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "old" not in text
    assert table([found]) in text and table([found]) in capsys.readouterr().out


def test_run_without_a_result_and_log_without_a_header(run, tmp_path):
    copy = tmp_path / "digits_swin_micro" / "run"
    shutil.copytree(run, copy)
    rows = (copy / "metrics.csv").read_text().splitlines()[:3]
    (copy / "metrics.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(UserError, match="has no test result"):
        main(["results", str(run), str(copy), "--folder", str(tmp_path)])
    assert not (tmp_path / "logs").exists()  # nothing is recorded unless all can be
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.csv").write_text("epoch,step\n0,1\n")
    with pytest.raises(UserError, match="has no header"):
        main(["results", "--folder", str(tmp_path)])


@pytest.mark.parametrize(("split_seed", "options"), [(7, False), (8, True)])
def test_split_seed_that_follows_the_seed_is_no_option(run, tmp_path, split_seed, options):
    copy = tmp_path / "digits_swin_micro" / "run"
    shutil.copytree(run, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["seed_everything"], config["data"]["init_args"]["split_seed"] = 7, split_seed
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    main(["results", str(copy), "--folder", str(tmp_path)])
    (found,) = read_logs(tmp_path / "logs")
    assert found.seed == 7 and ("data.split_seed" in found.options) == options
