"""`fastdm condense` as Slurm's srun starts it: what it says, and with which exit codes it ends."""

import os
import re
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from fastdm.cli import main
from tests.ranks import context, wait

FLAGS = ["--ipc=1", "--batch_real=4", "--model=ConvNetD1", "--num_exp=1", "--num_eval=0", "--device=cpu"]
RUN = "DM_digits_ConvNetD1_1ipc_exp0"


def task(variables: dict[str, str], words: list[str], output: Path) -> None:
    """The command in a process of its own, which ends as the command does."""
    os.environ.update(variables)
    sys.argv = ["fastdm", *words]
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        main()
    except SystemExit as ended:
        os._exit(int(ended.code or 0))


def start(folder: Path, iterations: int, job: int) -> list[BaseProcess]:
    """Two tasks of a job step, with the variables that Slurm gives them."""
    step = {
        "SLURM_JOB_ID": str(job), "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }  # fmt: skip
    words = ["condense", "digits", *FLAGS, f"--iterations={iterations}", f"--save_path={folder}", "--resume"]
    tasks = []
    for rank in range(2):
        variables = {**step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        tasks.append(context.Process(target=task, args=(variables, words, folder / f"said-{rank}-{job}.txt")))
        tasks[-1].start()
    return list(tasks)


def test_slurm_s_warning_to_one_task_stops_all_with_a_checkpoint(tmp_path: Path) -> None:
    """And the same command resumes it, as a job does that is queued again."""
    tasks = start(tmp_path, 1_000_000, os.getpid())
    log, end = tmp_path / RUN / "log.jsonl", time.monotonic() + 120
    while time.monotonic() < end and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    assert tasks[1].pid is not None
    os.kill(tasks[1].pid, signal.SIGUSR1)
    codes = wait(tasks)
    said = [path.read_text().splitlines() for path in sorted(tmp_path.glob("said-*.txt"))]
    assert codes == [128 + signal.SIGUSR1] * 2, said
    assert said[0][-1] == said[1][-1]
    found = re.fullmatch(rf"fastdm: stopped; iteration (\d+) is saved in \S*{RUN}: continue with --resume", said[0][-1])
    assert found is not None, said
    total = int(found[1]) + 2
    assert wait(start(tmp_path, total, os.getpid() + 1)) == [0, 0]
    first, second = ((tmp_path / f"said-{rank}-{os.getpid() + 1}.txt").read_text() for rank in range(2))
    assert f'"done": {total}' in first
    assert second == ""
