"""The launchers: they start what they say, hand signals on, and say what is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
LAUNCHERS = ("one_host.sh", "many_hosts.sh", "slurm.sbatch")
EVERY = sorted([*SCRIPTS.rglob("*.sh"), *SCRIPTS.rglob("*.sbatch")])
COUNTED = re.compile(r"^(RANK|LOCAL_RANK|WORLD_SIZE|MASTER_\w+|SLURM_\w+|PROCESSES|HOSTS|HOST_INDEX|PYTHON)$")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def surroundings(**settings: object) -> dict[str, str]:
    """Return the environment without what launchers read, and with some settings."""
    kept = {name: value for name, value in os.environ.items() if not COUNTED.match(name)}
    found = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return kept | found | {name: str(value) for name, value in settings.items()}


def script(
    name: str, *arguments: object, where: Path = ROOT, **settings: object
) -> subprocess.CompletedProcess[str]:
    words = ["bash", str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(
        words,
        cwd=where,
        env=surroundings(**settings),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def pictures(folder: Path) -> Path:
    folder.mkdir()
    draws = np.random.default_rng(len(folder.name))
    for number in range(12):
        Image.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def comparison(root: Path) -> list[object]:
    """Return the arguments of a job that processes share: features of two folders, and distances."""
    folders = ["--images", pictures(root / "one"), "--reference", pictures(root / "other")]
    permutations = ["--set", "evaluation.comparison.permutations=20"]
    return ["evaluate", *folders, "--features", "random-conv", *permutations, "--out", root / "out", "--json"]


def executable(path: Path, text: str) -> None:
    path.write_text("#!/usr/bin/env bash\nset -u\n" + text)
    path.chmod(0o755)


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.name)
def test_is_bash(path: Path) -> None:
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    text = path.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 120
    if path.name != "common.sh":
        assert text.startswith("#!/usr/bin/env bash\n#")
        assert "\nset -euo pipefail\n" in text
        assert os.access(path, os.X_OK)


def test_several_processes_start_on_one_host() -> None:
    done = script("one_host.sh", "info", "--help", PROCESSES=2)  # Of all that can be asked for the cheapest.
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == 2


@pytest.mark.slow
def test_several_processes_on_one_host_do_one_job(tmp_path: Path) -> None:
    done = script("one_host.sh", *comparison(tmp_path), PROCESSES=2)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert {"fd", "kd"} <= {measure["name"].partition("_")[0] for measure in json.loads(line)["measures"]}


@pytest.mark.slow
def test_arguments_and_exit_code_pass_through(tmp_path: Path) -> None:
    missing = tmp_path / "no such run"
    done = script("one_host.sh", "info", missing, PROCESSES=1)
    assert f"error: {missing} holds no run" in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize("name", LAUNCHERS)
def test_nothing_to_do_is_a_mistake(name: str) -> None:
    done = script(name, SLURM_JOB_ID=7)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: expected what gen-unlearn is to do")


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_names_every_variable_that_is_read(name: str) -> None:
    done = script(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "#SBATCH" not in done.stdout
    files = [name] if name == "slurm.sbatch" else [name, "common.sh"]
    text = "".join((SCRIPTS / file).read_text(encoding="utf-8") for file in files)
    read = set(re.findall(r"\$\{?([A-Z_]{4,})", text))
    own = {"BASH_SOURCE", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"}
    of_slurm = {variable for variable in read if variable.startswith(("SLURM_", "CUDA_"))}
    assert {"OMP_NUM_THREADS", "PYTHON"} <= read
    assert not [variable for variable in read - own - of_slurm if f"    {variable} " not in done.stdout]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("one_host.sh", {}, "no GPU is visible; set PROCESSES"),
        ("one_host.sh", {"PROCESSES": "two"}, "expected PROCESSES from 1 up, got 'two'"),
        ("one_host.sh", {"PROCESSES": "0"}, "expected PROCESSES from 1 up, got '0'"),
        ("one_host.sh", {"PROCESSES": "1", "PYTHON": "no-python"}, "in PYTHON, got 'no-python'"),
        ("one_host.sh", {"PROCESSES": "1", "STOP_SECONDS": "soon"}, "expected STOP_SECONDS from 1 up"),
        ("many_hosts.sh", {}, "expected HOSTS from 1 up, got ''"),
        ("many_hosts.sh", {"HOSTS": "2"}, "expected HOST_INDEX from 0 up, got ''"),
        ("many_hosts.sh", {"HOSTS": "2", "HOST_INDEX": "2"}, "expected HOST_INDEX below HOSTS (2), got 2"),
        ("many_hosts.sh", {"HOSTS": "2", "HOST_INDEX": "1"}, "expected the name of host 0 in MASTER_ADDR"),
        ("slurm.sbatch", {}, "expected to be started by sbatch"),
    ],
)
def test_what_is_missing_is_said(name: str, settings: dict[str, str], message: str) -> None:
    done = script(name, "info", **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_each_of_several_hosts_starts_its_part(tmp_path: Path) -> None:
    job, port = comparison(tmp_path), 20000 + os.getpid() % 20000
    shared = {"HOSTS": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "PROCESSES": 1}
    hosts = [
        subprocess.Popen(
            ["bash", str(SCRIPTS / "many_hosts.sh"), *map(str, job)],
            env=surroundings(**shared, HOST_INDEX=index),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    said = [host.communicate(timeout=300) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert [len(output.splitlines()) for output, _ in said] == [1, 0]


def slurm(root: Path, python: str, tasks: int = 2) -> dict[str, object]:
    """Put stand-ins for Slurm's programs into a folder; return the environment of a job of some tasks."""
    programs = root / "programs"
    programs.mkdir()
    executable(
        programs / "scontrol", f'[ "$1" = show ] && echo localhost || echo "$*" >> "{root}/scontrol"\n'
    )
    executable(
        programs / "srun",
        'while [ "$1" != bash ]; do shift; done\n'
        f"for task in $(seq 0 $(({tasks} - 1))); do\n"
        f'    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS={tasks} "$@" &\n'
        f'    echo $! >> "{root}/tasks"\n'
        "done\n"
        "code=0\n"
        "for task in $(jobs -p); do wait $task || code=$?; done\n"
        "exit $code\n",
    )
    executable(programs / "scancel", f'echo "$*" >> "{root}/scancel"\nkill -TERM $(cat "{root}/tasks")\n')
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    number = os.getpid()
    return {"PATH": path, "SLURM_JOB_ID": number, "SLURM_JOB_NODELIST": "node[0-1]", "PYTHON": python}


@pytest.mark.slow
def test_tasks_of_slurm_are_one_group(tmp_path: Path) -> None:
    done = script("slurm.sbatch", *comparison(tmp_path), **slurm(tmp_path, sys.executable))
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["measures"]


@pytest.mark.parametrize(
    ("verb", "code", "queued"),
    [
        ("train", 130, True),
        ("benchmark", 143, True),
        ("train", 0, False),
        ("train", 2, False),
        ("sample", 143, False),
        ("verify", 130, False),
    ],
)
def test_near_its_time_limit_a_training_goes_back_into_the_queue_of_slurm(
    verb: str, code: int, queued: bool, tmp_path: Path
) -> None:
    settings = slurm(tmp_path, str(tmp_path / "program"))
    waits = (
        f'trap "exit {code}" TERM\necho "$*" >> "{tmp_path}/started"\n'
        "for n in {1..600}; do sleep 0.1; done\n"
    )
    executable(tmp_path / "program", waits)
    job = subprocess.Popen(
        ["bash", str(SCRIPTS / "slurm.sbatch"), verb, "--out", "a b"], env=surroundings(**settings)
    )
    started = tmp_path / "started"
    while not started.exists() or len(started.read_text().splitlines()) < 2:
        time.sleep(0.05)
        assert job.poll() is None
    assert started.read_text().splitlines() == [f"-m gen_unlearn {verb} --out a b"] * 2
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == code
    number = settings["SLURM_JOB_ID"]
    assert (tmp_path / "scancel").read_text() == f"--signal=TERM {number}\n", "to the tasks, not to the job"
    assert (tmp_path / "scontrol").exists() == queued
    if queued:
        assert (tmp_path / "scontrol").read_text() == f"requeue {number}\n"


@pytest.mark.parametrize(("visible", "taken"), [("3", "00"), ("0,1", "01"), ("", "01")])
def test_a_task_of_slurm_takes_a_gpu_that_it_sees(visible: str, taken: str, tmp_path: Path) -> None:
    executable(tmp_path / "program", f'echo $LOCAL_RANK > "{tmp_path}/rank$RANK"\n')
    settings = slurm(tmp_path, str(tmp_path / "program")) | {"CUDA_VISIBLE_DEVICES": visible}
    assert script("slurm.sbatch", "train", **settings).returncode == 0
    assert "".join((tmp_path / f"rank{rank}").read_text().strip() for rank in range(2)) == taken


@pytest.mark.parametrize("code", [0, 2])
def test_a_job_of_slurm_that_ended_is_not_queued_again(code: int, tmp_path: Path) -> None:
    executable(tmp_path / "program", f"exit {code}\n")
    done = script("slurm.sbatch", "info", **slurm(tmp_path, str(tmp_path / "program")))
    assert done.returncode == code
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_stopped_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    recipe = ["--config", ROOT / "configs" / "digits_spm_classifier.yaml"]
    tiny = ["model.encoder.width=4", "model.encoder.depth=0", "training.images=12800"]
    job = [
        "train",
        *recipe,
        *(word for value in tiny for word in ("--set", value)),
        "--out",
        tmp_path / "run",
    ]
    words = ["bash", str(SCRIPTS / "one_host.sh"), *map(str, job)]
    environment = surroundings(PROCESSES=2)
    training = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "manifest.json").exists():
        time.sleep(0.05)
        assert training.poll() is None
    time.sleep(1)
    training.send_signal(number)
    _, said = training.communicate(timeout=120)
    assert training.returncode != 0
    assert "continue with: gen-unlearn train" in said
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert script("one_host.sh", *job, PROCESSES=2).returncode == 0
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_scripts_of_tables_take_paths_from_where_they_are_started(tmp_path: Path) -> None:
    executable(tmp_path / "program", 'echo "$*"\necho "${PYTHONPATH%%:*}"\n')
    done = script("reproduce/digits_all_methods.sh", "out", where=tmp_path, PYTHON="./program")
    config = ROOT / "configs" / "benchmarks" / "digits_all_methods.yaml"
    words = f"-m gen_unlearn benchmark --config {config} --out out"
    assert done.stdout.splitlines() == [words, str(ROOT)], done.stderr


def test_scripts_of_tables_run_what_is_documented() -> None:
    documented = (ROOT / "evaluation" / "README.md").read_text(encoding="utf-8")
    for path in sorted((SCRIPTS / "reproduce").glob("*.sh")):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        modules = re.findall(r"-m evaluation\.(\w+)", text)
        configs = re.findall(r"configs/[\w/]+\.yaml", text)
        assert modules or configs, path
        assert all((ROOT / "evaluation" / f"{module}.py").is_file() for module in modules)
        assert all((ROOT / config).is_file() for config in configs)
        assert all(f"evaluation.{module}" in documented for module in modules)
        assert all(config in documented for config in configs)
