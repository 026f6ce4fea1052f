"""Every part of full-size checkpoints finds its place: the published key lists, without memory (meta tensors)."""
from __future__ import annotations

import csv
import gzip
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from vqpack.vq_core.arch import detect, layers
from vqpack.vq_core.configs import read_config
from vqpack.vq_core.pipeline import _Loader
from vqpack.vq_core.text_encoders import stored_items


@pytest.fixture(params=["sdxl_base", "sdxl_vega"])
def loader(request, repository):
    """A loader over the tensors that a file of this checkpoint would store."""
    with gzip.open(repository / "tests" / "data" / f"{request.param}.keys.tsv.gz", "rt") as file:
        source = {key: tuple(int(n) for n in shape.split(",") if n)
                  for key, shape, *_ in csv.reader(file, delimiter="\t")}
    fake = SimpleNamespace(keys=lambda: list(source), shape=source.__getitem__)
    made = _Loader.__new__(_Loader)
    made.shapes = {item.layer.key: item.layer.shape for item in stored_items(fake, layers(fake))}
    made.reader = SimpleNamespace(path=Path("x.safetensors"), coded_keys=tuple,
                                  tensor=lambda key: torch.empty(made.shapes[key], device="meta"))
    made.coded, made.folder, made.decode = frozenset(), None, "once"
    made.device, made.dtype = torch.device("meta"), torch.float16
    made.architecture = detect(made.shapes)
    return made


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_every_weight_arrives(loader, part):
    model = getattr(loader, part)()
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float16}
    counted = sum(p.numel() for p in model.parameters())
    floor = {"unet": 7e8, "vae": 8.3e7, "text_encoder": 1.2e8, "text_encoder_2": 6.9e8}
    assert counted > floor[part]


def test_scheduler_follows_the_markers(loader):
    assert loader.scheduler().config.prediction_type == "epsilon"
    for marker in ("v_pred", "ztsnr"):
        loader.shapes[marker] = (0,)
    loader.architecture = detect(loader.shapes)
    scheduler = loader.scheduler()
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.rescale_betas_zero_snr
    assert scheduler.config.timestep_spacing == "trailing"


def test_published_values():
    """Numbers no shape can tell, as published with SDXL base 1.0."""
    assert read_config("vae")["scaling_factor"] == 0.13025
    assert read_config("scheduler")["beta_end"] == 0.012 and read_config("scheduler")["beta_start"] == 0.00085
    assert [read_config(f"text_encoder{x}")["hidden_act"] for x in ("", "_2")] == ["quick_gelu", "gelu"]
    assert [read_config(f"text_encoder{x}")["num_attention_heads"] for x in ("", "_2")] == [12, 20]
