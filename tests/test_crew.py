"""Tasks in processes that may crash or hang: every task has an answer, and no other task suffers."""

import multiprocessing
import os
import signal
import time

import pytest

from lightning_csn.data.crew import Failure, run_apart


def answer(task, alive):
    """What the task says: a number is doubled, everything else is a way to go wrong."""
    if isinstance(task, int):
        return 2 * task if task else None
    kind, _, rest = task.partition(" ")
    if kind == "exit":
        os._exit(int(rest))
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return "still here"
    if kind == "once":  # the first time only
        if not os.path.exists(rest):
            open(rest, "w").close()
            os._exit(1)
        return "the second time"
    if kind == "slow":  # longer than the limit in all, but never for long
        for _ in range(int(rest)):
            time.sleep(0.2)
            alive()
        return "slow"
    time.sleep(600)
    return None


def run(tasks, workers=2, seconds=2.0):
    return dict(run_apart(answer, tasks, workers=workers, seconds=seconds))


def test_every_task_is_answered_once():
    found = list(run_apart(answer, range(1, 20), workers=3, seconds=60))
    assert sorted(found) == [(task, 2 * task) for task in range(1, 20)]
    assert list(run_apart(answer, [0], workers=3, seconds=60)) == [(0, None)]
    assert list(run_apart(answer, [], workers=3, seconds=60)) == []


def test_crashes_and_hangs_have_a_reason_and_the_rest_an_answer():
    found = run([1, "exit 7", 2, "sleep", 3, "kill", 4])
    assert [found[task] for task in (1, 2, 3, 4)] == [2, 4, 6, 8]
    assert found["exit 7"] == Failure("the process that read it died (exit code 7)")
    assert found["kill"] == Failure("the process that read it died (signal 9)")
    assert found["sleep"] == Failure("reading it took longer than 2 seconds")


def test_a_task_whose_process_died_is_tried_again(tmp_path):
    task = f"once {tmp_path / 'been_here'}"
    assert run([task, 1], workers=1) == {task: "the second time", 1: 2}


def test_a_task_that_goes_on_is_not_cut_off():
    assert run([1, "slow 12"], workers=1) == {1: 2, "slow 12": "slow"}


def test_an_interruption_is_not_for_the_processes_but_for_who_waits_for_them():
    assert run(["interrupt"], workers=1) == {"interrupt": "still here"}


def test_who_stops_asking_leaves_no_process_behind():
    before = set(multiprocessing.active_children())
    answers = run_apart(answer, [1, "sleep", "sleep"], workers=3, seconds=60)
    assert next(answers) == (1, 2)
    answers.close()
    assert set(multiprocessing.active_children()) <= before


def test_processes_that_cannot_start_are_no_fault_of_the_tasks(monkeypatch):
    monkeypatch.setattr("lightning_csn.data.crew._work", os.getpid)  # takes no arguments
    with pytest.raises(RuntimeError, match="the processes that read files cannot start: exit code 1; a script"):
        run([1])
