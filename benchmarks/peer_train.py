"""Trains a detector of a checkout (ActionFormer or TriDet) on the CPU; benchmarks/peer.py starts this as a process.

    PYTHONPATH=CHECKOUT:CHECKOUT/libs/utils python benchmarks/peer_train.py JOB.json

The model, its losses, optimiser, schedule and Soft-NMS are the checkout's own. What is replaced is its train.py, which
asks for a GPU: batches come from a loader without worker processes, the rest is the same. Every so many epochs the
averaged and the plain weights predict the recordings of each split that is asked for, into OUT/<weights>-<epoch>.npz.
OUT/times.json has the seconds of training, on the wall and of the processor, without these predictions, and the
median of a pass of prediction over one split.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

Job = dict[str, Any]


def loader(config: dict[str, Any], splits: list[str], *, training: bool, batch_size: int, seed: int) -> Any:
    """Return batches, lists of the checkout's own items, of the recordings of some subsets."""
    make_dataset = importlib.import_module("libs.datasets").make_dataset
    dataset = make_dataset(config["dataset_name"], training, tuple(splits), **config["dataset"])
    return torch.utils.data.DataLoader(
        dataset, batch_size=batch_size, collate_fn=list, shuffle=training, drop_last=training,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def predict(model: Any, batches: Any) -> dict[str, Any]:
    """Return recording, label (its number), start_s, end_s and score of everything that is found."""
    model.eval()
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("recording", "label", "interval", "score")}
    with torch.no_grad():
        for batch in batches:
            for item in model(batch):
                found["recording"].append(np.repeat(item["video_id"], len(item["scores"])))
                for name, key in (("label", "labels"), ("interval", "segments"), ("score", "scores")):
                    found[name].append(item[key].numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def train(job: Job, config: dict[str, Any]) -> dict[str, Any]:
    utils = importlib.import_module("libs.utils")
    utils.fix_random_seed(job["seed"], include_cuda=False)
    batches = loader(
        config, job["train"], training=True, batch_size=config["loader"]["batch_size"], seed=job["seed"]
    )  # fmt: skip
    tests = [loader(config, [split], training=False, batch_size=1, seed=0) for split in job["predict"]]
    model = importlib.import_module("libs.modeling").make_meta_arch(config["model_name"], **config["model"])
    optimizer = utils.make_optimizer(model, config["opt"])
    scheduler = utils.make_scheduler(optimizer, config["opt"], len(batches))
    average = utils.ModelEma(model, decay=job["average_decay"])
    epochs = config["opt"]["epochs"] + config["opt"]["warmup_epochs"]
    wall, cpu, passes = 0.0, 0.0, []
    for epoch in range(1, epochs + 1):
        started = time.perf_counter(), time.process_time()
        utils.train_one_epoch(
            batches, model, optimizer, scheduler, epoch - 1, model_ema=average,
            clip_grad_l2norm=config["train_cfg"]["clip_grad_l2norm"], print_freq=sys.maxsize,
        )  # fmt: skip
        wall, cpu = wall + time.perf_counter() - started[0], cpu + time.process_time() - started[1]
        if epoch % job["every"] and epoch < epochs:
            continue
        for name, weights in (("average", average.module), ("plain", model)):
            for split, test in zip(job["predict"], tests, strict=True):
                begin = time.perf_counter()
                found = predict(weights, test)
                passes.append(time.perf_counter() - begin)
                np.savez(Path(job["out"]) / f"{split}-{name}-{epoch:03d}.npz", **found)
    return {
        "train_s": wall,
        "train_cpu_s": cpu,
        "predict_s": float(np.median(passes)),
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": epochs,
        "iterations": epochs * len(batches),
    }


def main() -> None:
    """Train as the file named on the command line says."""
    job: Job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    config = importlib.import_module("libs.core").load_config(job["config"])
    times = train(job, config)
    (Path(job["out"]) / "times.json").write_text(json.dumps(times))


if __name__ == "__main__":
    main()
