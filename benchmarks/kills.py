"""Real kills at random moments: what is left of a step is neither less, nor more, nor different.

    python -m benchmarks.kills --kills 200 --seed 0 --out kills.json
    python -m benchmarks.kills --soak 60 --out soak.json     # minutes; what grows is told as a slope
    python -m benchmarks.kills --cut 20 --steps embed,train  # a node is silent for 20 s
    python -m benchmarks.kills --storage 0.2                 # S3 answers a fifth badly, and is away for 20 s

A Ray of its own (a head without CPUs, two workers with one each, all raylets of this machine) and an MLflow server.
embed, train, tune and predict run there as a user starts them, in turn, and are hit up to three times each: the
driver, a raylet, an encode actor, a training or trial worker, Train's controller, the head, the MLflow server, with
SIGKILL. Where the driver has died, the same line comes again. Then all is compared with the runs that were left alone.
The exit status is 1 if any check has failed. The seed decides what is hit and when, the machine what that meets.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.fs as pafs

from benchmarks.figures import machine
from benchmarks.kills_checks import Kill, Round, differences, outcome
from benchmarks.kills_machines import CONTROLLER, ROOT, WORKERS, Machines, cmdline, marked, usage
from tests.conftest import CLASSES, picture_tree, write_embeddings, write_picture_corpora
from tests.light_encoder import SlowColourGrid, light
from tests.servers import FaultyS3, s3_settings
from uml_core.config import parse_experiment

MOST_KILLS, END_S = 3, 150.0  # of a line; until it must have ended
BUCKET, AWAY_S = "uml-kills", 20.0
OTHERS = {"driver": 5, "raylet": 3, "mlflow": 1, "head": 1}  # how often, against 5 for a worker
TRAINING = {"max_steps": 6000, "eval_every": 50, "batch_size": 8, "patience": 1000, "report_every_s": 0.2}
Hit = Callable[["Round", subprocess.Popen[bytes]], None]


class Trials:
    """Rounds on some machines, each against the runs that were left alone."""

    def __init__(self, machines: Machines, rng: random.Random, hits: str, storage: FaultyS3 | None = None) -> None:
        self.machines, self.rng, self.count = machines, rng, 0
        self.hits, self.storage = hits, storage
        self.alone: dict[str, Round] = {}
        self.outcomes: dict[str, Any] = {}
        corpora = machines.directory / "corpora"
        write_picture_corpora(corpora, counts={"train": 24, "val": 2, "test": 2})
        for file in sorted((corpora / "pictures" / "train").rglob("*.png"))[::9]:
            file.write_bytes(file.read_bytes()[:60])
        names = {"label": list(CLASSES) * 3, "embedding": np.tile(np.eye(3, 8), (3, 1)).tolist()}
        write_embeddings(corpora / "names.parquet", {**names, "split": ["train"] * 9})
        tree = light(picture_tree(corpora), SlowColourGrid)
        tree["corpora"]["names"] = {"modality": "vector", "format": "embeddings", "path": f"{corpora}/names.parquet"}
        tree["embed"] = {"part_rows": 4, "actors": 2, "max_rejected": 0.2}
        tree |= {"tracking": {"uri": machines.mlflow.uri}, "tune": {"seeds": 2}}
        self.tree = {**tree, "train": TRAINING, "model": {"head_init": "random"}}

    def leave_alone(self, steps: Sequence[str]) -> None:
        """Run steps, and those before them, undisturbed; what comes after is compared with these."""
        needed = {"embed", *steps, *(["train"] if "predict" in steps else [])}
        for step in [step for step in WORKERS if step in needed]:
            self.alone[step] = self.run(step, kills=0)
            self.outcomes[step] = outcome(self.alone[step])

    def run(self, step: str, *, kills: int, hit: Hit | None = None) -> Round:
        """Start a step's line, hit it so often, start it again where its driver has died, and check what is left."""
        self.count += 1
        folder = self.machines.directory / f"round-{self.count}"
        if "embed" in self.alone:
            shutil.copytree(self.alone["embed"].experiment.store, folder / "store")
        if step == "embed":
            shutil.rmtree(folder / "store", ignore_errors=True)
        folder.mkdir(exist_ok=True)
        is_remote = self.storage is not None and hit is not None
        place = f"s3://{BUCKET}/{folder.name}" if is_remote else str(folder)
        if is_remote and step != "embed":
            pafs.copy_files(f"{folder}/store", f"{place}/store")
        tree = {**self.tree, "name": folder.name, "store": f"{place}/store"}
        if step == "train":
            tree["train"] = {**TRAINING, "workers": 1, "report_share": 1}
        if step == "tune":
            tree["train"] = {**TRAINING, "max_steps": 1500}
        this = Round(self.count, step, parse_experiment(tree), folder, place)
        (folder / "experiment.yaml").write_text(this.experiment.to_yaml(), encoding="utf-8")
        began = time.monotonic()
        while True:
            status = self._once(this, kills, hit)
            if status == 0 or this.lines > kills + 1:
                break
        this.wall_s = time.monotonic() - began
        if self.storage is not None and is_remote:
            self.storage.shares = {}
            shutil.rmtree(folder / "store", ignore_errors=True)
            pafs.copy_files(place, str(folder))
        if status:
            this.failures.append(f"status {status}")
        else:
            this.failures += differences(this, self.outcomes.get(step))
            this.failures += [f"a process is left: {line}" for line in self.machines.orphans()]
        return this

    def line(self, this: Round) -> list[str]:
        """A step's line, as a user gives it."""
        file, model = str(this.folder / "experiment.yaml"), self.alone.get("train")
        given = {"tune": [file, "--space", "controls"]}.get(this.step, [file])
        if this.step == "predict":
            assert model is not None
            given = ["--model", model.results["model_uri"], "--tracking-uri", self.machines.mlflow.uri]
            given += ["--input", f"{self.machines.directory}/corpora/pictures/train/circle", "--max-rejected", "0.2"]
            given += ["--output", f"{this.place}/predictions.parquet"]
        return [sys.executable, "-m", f"pipelines.{this.step}", *given]

    def _once(self, this: Round, kills: int, hit: Hit | None) -> int:
        """Start the line once; returns its exit status, -9 where it was killed."""
        this.lines += 1
        output, error = (this.folder / f"{name}-{this.lines}" for name in ("stdout", "stderr"))
        with output.open("w") as out, error.open("w") as err:
            driver = subprocess.Popen(
                self.line(this), cwd=ROOT, env=self.machines.environment, start_new_session=True, stdout=out, stderr=err
            )
        began = time.monotonic()
        if hit is not None:
            hit(this, driver)
        while len(this.kills) < kills and driver.poll() is None:
            self._kill(this, driver, began)
        try:
            status = driver.wait(END_S)
        except subprocess.TimeoutExpired:
            this.failures.append(f"it stood still for {END_S:.0f} s: {error.read_text()[-300:]}")
            os.killpg(driver.pid, signal.SIGKILL)
            return driver.wait()
        finally:
            self.machines.start()
        lines = error.read_text().splitlines()
        this.said = [line for line in lines if line.strip()]
        if status == 0:
            this.results = json.loads(output.read_text().splitlines()[-1])
        for kill in this.kills:
            kill.came = kill.came or (
                f"went on, status {status}" if status == 0 else f"status {status}, the line again"
            )
        last = this.kills[-1].what if this.kills else "nothing"
        is_refused = last == "mlflow" and "cannot be reached" in "".join(this.said[-1:])  # before any work
        if status and last not in ("driver", "head") and not is_refused:
            this.failures.append(f"status {status} after {last}: {this.said[-1:]}")
        if any(line.startswith("Traceback") for line in lines):  # not of a worker, which Ray hands on with its name
            this.failures.append(f"a traceback after {last}: {' | '.join(lines[-3:])[:600]}")
        return status

    def _kill(self, this: Round, driver: subprocess.Popen[bytes], began: float) -> None:
        """Hit one thing at a random moment, if the line is still there by then."""
        whole_s = self.alone[this.step].wall_s
        kinds = {**OTHERS, "worker": 5, **({"controller": 4} if this.step == "train" else {})}
        kinds = {name: often for name, often in kinds.items() if not self.hits or name in self.hits}
        what = self.rng.choices(list(kinds), list(kinds.values()))[0]
        latest = (0.9 if not this.kills else 0.5) if what in OTHERS else 0.3
        delay_s = self.rng.uniform(0.05 if what in OTHERS else 0, latest) * whole_s
        title = {"worker": WORKERS[this.step], "controller": CONTROLLER}.get(what)
        victim = None if title is None else born(title, driver, self.rng)  # hit some time after that
        ends = time.monotonic() + delay_s
        while driver.poll() is None and time.monotonic() < ends:
            time.sleep(0.02)
        if driver.poll() is not None or (victim is not None and not victim.is_running()):
            return
        this.kills.append(Kill(this.number, this.step, what, round(time.monotonic() - began, 2)))
        if victim is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        elif what == "driver":
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
        elif what == "mlflow":
            self.machines.mlflow.stop()
            time.sleep(self.rng.uniform(0.5, 3))
            self.machines.mlflow.start()
        elif what == "raylet":
            node = self.rng.choice(["worker-1", "worker-2"])
            self.machines.raylet(node).kill()
            self.machines.kill(node)
            self.machines.start()
        else:
            self.machines.kill("head")
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(30)
            this.kills[-1].came = f"the driver's status: {driver.poll()}"
            if driver.poll() is None:  # as a job's driver goes with its node
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()
            for name in ("worker-1", "worker-2"):
                self.machines.kill(name)


def slopes(held: list[dict[str, float]]) -> dict[str, float]:
    """How much each grows in a round, by least squares over all but the first rounds."""
    later = held[min(3, len(held) // 3) :]
    if len(later) < 2:
        return {}
    rounds = range(len(later))
    return {name: round(float(np.polyfit(rounds, [each.get(name, 0) for each in later], 1)[0]), 3) for name in later[0]}


def silent_for(machines: Machines, rng: random.Random, seconds: float) -> Hit:
    """What stops the node of a step's worker for so long, some time after that was born."""

    def hit(this: Round, driver: subprocess.Popen[bytes]) -> None:
        began, worker = time.monotonic(), born(WORKERS[this.step], driver, rng)
        time.sleep(rng.uniform(0.5, 3))
        if worker is not None and driver.poll() is None:
            this.kills.append(Kill(this.number, this.step, "cut", round(time.monotonic() - began, 2)))
            machines.silence(worker, seconds)

    return hit


def failing(storage: FaultyS3, rng: random.Random, share: float) -> Hit:
    """What has storage answer a share of all requests badly, and some time after a step's worker was born none."""

    def hit(this: Round, driver: subprocess.Popen[bytes]) -> None:
        storage.shares = dict.fromkeys(("500", "503", "lost", "cut", "slow"), share / 5)
        began, worker = time.monotonic(), born(WORKERS[this.step], driver, rng)
        time.sleep(rng.uniform(0, 3))
        if worker is not None and driver.poll() is None:
            this.kills.append(Kill(this.number, this.step, "storage", round(time.monotonic() - began, 2)))
            storage.go_down(AWAY_S)

    return hit


def born(title: str, driver: subprocess.Popen[bytes], rng: random.Random) -> psutil.Process | None:
    """One of the processes of a title, once there is one; None where the driver ends before."""
    while driver.poll() is None:
        if found := [process for process in marked() if title in cmdline(process)]:
            return rng.choice(sorted(found, key=lambda process: process.pid))
        time.sleep(0.05)
    return None


def main() -> int:
    """Run rounds until the kills or the time are used up; the exit status is 1 where a check has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no line after so many")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="random steps and kills for so long")
    parser.add_argument("--cut", type=float, metavar="SECONDS", help="let a node be silent for so long instead")
    parser.add_argument("--storage", type=float, metavar="SHARE", help="let S3 answer so badly, and be away, instead")
    parser.add_argument("--steps", default=",".join(WORKERS), help="by commas")
    parser.add_argument("--hit", default="", help="only these, by commas: driver,raylet,worker,controller,head,mlflow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("kills.json"))
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended then, too
    rng, rounds, held = random.Random(given.seed), list[Round](), list[dict[str, float]]()
    ends = time.monotonic() + 60 * (given.minutes if given.soak is None else given.soak)
    most, steps = given.kills if given.soak is None else 10**6, given.steps.split(",")
    storage = None
    if given.storage is not None:
        storage = FaultyS3(given.seed)
        os.environ |= s3_settings(storage.url)
        pafs.FileSystem.from_uri(f"s3://{BUCKET}?allow_bucket_creation=true")[0].create_dir(BUCKET)
    with (
        tempfile.TemporaryDirectory(prefix="k", ignore_cleanup_errors=True) as directory,
        Machines(Path(directory), is_quick=given.cut is None) as machines,
    ):
        trials = Trials(machines, rng, given.hit, storage)
        trials.leave_alone(steps)
        took = ", ".join(f"{step} {this.wall_s:.0f} s" for step, this in trials.alone.items())
        print(f"left alone: {took}", flush=True)
        rounds += trials.alone.values()
        while (done := sum(len(each.kills) for each in rounds)) < most and time.monotonic() < ends:
            step = steps[len(rounds) % len(steps)] if given.soak is None else rng.choice(steps)
            if storage is not None:
                this = trials.run(step, kills=0, hit=failing(storage, rng, given.storage))
            elif given.cut is not None:
                this = trials.run(step, kills=0, hit=silent_for(machines, rng, given.cut))
            else:
                this = trials.run(step, kills=min(rng.randint(1, MOST_KILLS), most - done))
            rounds.append(this)
            what = ", ".join(f"{kill.what} at {kill.after_s:.1f} s" for kill in this.kills) or "nothing"
            print(f"{this.number:>4} {step:<8} {what}: {this.lines} lines, {this.wall_s:.0f} s. "
                      + ("; ".join(this.failures) or "as if left alone"), flush=True)  # fmt: skip
            if not this.failures:
                shutil.rmtree(this.folder)
            else:
                shutil.copytree(this.folder, given.out.with_suffix(f".{this.number}"), dirs_exist_ok=True)
            held.append(usage(machines))
            write(given.out, rounds, held)
    kills = Counter(f"{kill.step} {kill.what}" for each in rounds for kill in each.kills)
    failed = [each for each in rounds if each.failures]
    print(f"{kills.total()} kills in {len(rounds)} rounds: {dict(sorted(kills.items()))}; {len(failed)} rounds failed")
    for name, slope in slopes(held).items():
        print(f"{name:<24} {held[0].get(name, 0):>10.1f} to {held[-1].get(name, 0):>10.1f}, {slope:+.3f} a round")
    return 1 if failed else 0


def write(file: Path, rounds: list[Round], held: list[dict[str, float]]) -> None:
    """Record what was done and found so far."""
    kept = [{"round": each.number, "step": each.step, "lines": each.lines, "wall_s": round(each.wall_s, 1),
             "kills": [asdict(kill) for kill in each.kills], "failures": each.failures,
             "said": [line[:300] for line in each.said[-8:]]} for each in rounds]  # fmt: skip
    record = {"machine": machine(), "rounds": kept, "held": held, "slopes": slopes(held)}
    file.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
