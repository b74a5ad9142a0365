"""A script for the environment that holds anomalib: reads job.json of a folder, trains a detector, writes its maps.

It imports nothing of this package, and is started by `anomalib_detector.py` with the interpreter of that environment.
Nothing is downloaded: pretrained networks are filled from `backbone.safetensors`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

BACKBONE_FILE = "backbone.safetensors"


def main(folder: Path) -> None:
    """Train and test as job.json says."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from anomalib.data import ImageBatch, ImageItem
    from anomalib.engine import Engine
    from lightning.pytorch import seed_everything
    from torch.utils.data import DataLoader

    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    seed_everything(job["seed"], verbose=False)
    if job["backbone"]:
        _local_backbones(job["backbone"], folder / BACKBONE_FILE)
    model = _model(job)

    def loader(name: str, batch: int, shuffle: bool) -> Any:
        images = torch.from_numpy(np.load(folder / name))
        items = [ImageItem(image=image, gt_label=torch.tensor(0)) for image in images]
        return DataLoader(items, batch, shuffle=shuffle, collate_fn=ImageBatch.collate)  # type: ignore[arg-type]

    on_gpu = job["device"].startswith("cuda")
    limits = {"max_steps": job["steps"], "max_epochs": -1} if job["steps"] else {}
    engine = Engine(
        default_root_dir=str(folder / "engine"),
        accelerator="gpu" if on_gpu else "cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **limits,
    )
    engine.fit(model, train_dataloaders=loader("normals.npy", job["batch_size"], True))
    place = 0
    for batch in engine.predict(model, dataloaders=loader("tests.npy", job["batch_size"], False)) or ():
        maps = batch.anomaly_map.float().cpu()
        for one in maps.reshape(len(maps), *maps.shape[-2:]):
            np.save(folder / "maps" / f"{place:05d}.npy", one.numpy())
            place += 1


def _model(job: dict[str, Any]) -> Any:
    """The detector without what would scale, threshold, draw or measure its maps."""
    import anomalib.models

    kind = getattr(anomalib.models, job["class"])
    side, options = (job["size"], job["size"]), job["options"]
    if job["class"] == "Padim" and "layers" in options:
        options = {**options, "n_features": _feature_count(**options)}
    plain = {"post_processor": False, "evaluator": False, "visualizer": False}
    return kind(pre_processor=kind.configure_pre_processor(image_size=side), **plain, **options)


def _feature_count(backbone: str, layers: list[str], **_: Any) -> int:
    """Features that PaDiM picks at random: 100 as for the smaller network of its publication, or all there are."""
    import timm

    known = timm.create_model(backbone, pretrained=False, features_only=True).feature_info
    names = [one["module"] for one in known.info]
    absent = [name for name in layers if name not in names]
    if absent:
        raise SystemExit(f"layers: {absent[0]} is none of {backbone}. Choose from: {', '.join(names)}.")
    return min(100, sum(one["num_chs"] for one in known.info if one["module"] in layers))


def _local_backbones(backbone: str, file: Path) -> None:
    """Pretrained networks of timm and torchvision are filled from the file, and never downloaded."""
    import timm
    import torchvision
    from safetensors.torch import load_file

    stored = load_file(file)

    def filled(network: Any) -> Any:
        own = network.state_dict()
        missing = [name for name in own if name not in stored and not name.endswith("num_batches_tracked")]
        wrong = [name for name in own if name in stored and stored[name].shape != own[name].shape]
        if missing or wrong:
            what = f"lacks {missing[0]}" if missing else f"has another shape of {wrong[0]}"
            raise SystemExit(f"backbone_weights: the file {what} of {backbone}. Give a file of this network.")
        network.load_state_dict({**own, **{name: stored[name] for name in own if name in stored}})
        return network

    create, build = timm.create_model, getattr(torchvision.models, backbone, None)

    def create_model(name: str, pretrained: bool = False, **options: Any) -> Any:
        network = create(name, pretrained=False, **options)
        return filled(network) if pretrained else network

    timm.create_model = create_model
    if build is not None:
        known = build

        def built(weights: Any = None, **options: Any) -> Any:
            network = known(weights=None, **options)
            return filled(network) if weights is not None else network

        setattr(torchvision.models, backbone, built)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
