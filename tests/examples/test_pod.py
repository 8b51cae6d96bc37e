"""The pod example: several processes on this machine, preempted and started again as others."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
POD = ROOT / "examples" / "pod"
AGAIN = 75  # exit status of a process that is to be started again

# Stands for a training script: process 0 says how many there are, and all end as they are told.
SCRIPT = """
import os, signal, sys, time

index, count = (int(os.environ[name]) for name in ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("process", index, "of", count, "with", os.environ["XLA_FLAGS"][-1], "devices", flush=True)
for action in sys.argv[1:]:
    if action == f"fail{index}":
        sys.exit("broken")
    if action == f"wait{count}":
        time.sleep(60)
"""


def local(*arguments, **options):
    """Runs `local.py` and returns the finished process."""
    command = [sys.executable, str(POD / "local.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, env=environment, text=True, capture_output=True, timeout=300, **options
    )


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_shows_process_0_and_succeeds_where_all_do(script):
    ended = local("--processes", 3, "--devices", 4, script)
    assert ended.returncode == 0
    assert ended.stdout == "process 0 of 3 with 4 devices\n"


def test_fails_where_one_does_and_shows_why(script):
    ended = local("--processes", 2, "--grace", 1, script, "fail1", "wait2")
    assert ended.returncode == 1
    assert "process 1, exit status 1" in ended.stderr
    assert "broken" in ended.stderr


def test_a_preempted_run_is_started_again_with_the_next_number_of_processes(script):
    options = ("--processes", 2, 3, "--preempt-after", 2, "--restarts")
    ended = local(*options, 1, script, "wait2")
    assert ended.returncode == 0
    assert re.findall("process 0 of .", ended.stdout) == ["process 0 of 2", "process 0 of 3"]
    assert local(*options, 0, script, "wait2").returncode == AGAIN


@pytest.mark.slow
def test_training_goes_on_with_other_processes(tmp_path):
    command = [sys.executable, POD / "local.py", "--devices", "2", "--processes", "2", "1"]
    command += ["--restarts", "1", POD / "train.py", "--sharding", "fsdp"]
    command += ["--workdir", tmp_path / "run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = []
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            if line.startswith("step ") and not any(line.startswith("step ") for line in said):
                process.send_signal(signal.SIGTERM)
            said.append(line)
    assert process.returncode == 0
    preempted, finished = re.findall(r"(\w+) after (\d+) of 360 steps", "".join(said))
    assert preempted[0] == "preempted"
    assert 0 < int(preempted[1]) < 360
    assert finished == ("finished", "360")
    assert float(re.search(r"test accuracy: ([\d.]+)%", said[-1])[1]) > 97


def test_the_gke_manifest_restarts_what_was_preempted():
    manifest = yaml.safe_load((POD / "gke.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"]
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [AGAIN]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # which a podFailurePolicy demands
    assert (ROOT / pod["containers"][0]["command"][1]).exists()


def test_the_slurm_script_is_bash():
    script = POD / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    assert f'"$code" -eq {AGAIN}' in script.read_text()
