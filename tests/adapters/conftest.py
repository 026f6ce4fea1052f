"""Small coded files of every family, adapters with random scales, and pictures to learn from."""
from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

KINDS = {"uniform": {"kind": "uniform", "bits": 4}, "trellis": {"kind": "trellis", "bits": 2, "window": 8},
         "product": {"kind": "product", "bits": 1}, "additive": {"kind": "additive", "bits": 1},
         "palette": {"kind": "palette", "bits": 2}}


@pytest.fixture(scope="session")
def w4(testbed, tmp_path_factory):
    """The testbed at uniform 4 bits, encoders and VAE in it."""
    from vqpack.vq_core.plan import plan_from_json
    from vqpack.vq_core.quantize import quantize

    plan = plan_from_json({"vqpack_plan": 1, "unet": KINDS["uniform"]})
    return quantize(testbed, tmp_path_factory.mktemp("w4") / "w4", plan=plan).path


@pytest.fixture(scope="session")
def mixed(testbed, tmp_path_factory):
    """The testbed's UNet with every family in it, groups of scales and two parts a weight too."""
    from vqpack.vq_core.plan import plan_from_json
    from vqpack.vq_core.quantize import quantize

    rules = [{"match": r"input_blocks\.3\.1", "spec": KINDS["trellis"]},
             {"match": r"input_blocks\.5\.1", "spec": KINDS["product"]},
             {"match": r"output_blocks\.1\.1.*attn", "spec": {"kind": "uniform", "bits": 4, "group_size": 32}},
             {"match": r"output_blocks\.2", "spec": KINDS["palette"]}]
    plan = plan_from_json({"vqpack_plan": 1, "unet": KINDS["uniform"], "rules": rules})
    return quantize(testbed, tmp_path_factory.mktemp("mixed") / "mixed", plan=plan, parts=("unet",)).path


@pytest.fixture(scope="session")
def random_adapter():
    """random_adapter(file, experts, seed, spread, boundaries) -> an adapter of that file with scales that matter"""
    from vqpack.vq_core.adapters.file import Adapter, base_id
    from vqpack.vq_core.container import Reader

    def make(file, experts=1, seed=0, spread=0.2, boundaries=None):
        chance = torch.Generator().manual_seed(seed)
        with Reader(file, mapped=False) as reader:
            layers = {}
            for key in reader.coded_keys():
                if key.startswith("model.diffusion_model."):
                    out, into = reader.layout(key).shape[:2]
                    layers[key] = tuple((spread * torch.randn(experts, n, generator=chance)).half()
                                        for n in (out, into))
            return Adapter(base_id(reader), boundaries or tuple(float(i + 1) for i in range(experts - 1)), layers)
    return make


@pytest.fixture(scope="session")
def called():
    """called(unet, times, seed) -> its answers to random latents at these timesteps; the testbed's shapes"""
    def call(unet, times, seed=0):
        chance, n = torch.Generator().manual_seed(seed), len(times)

        def normal(*shape):
            return torch.randn(*shape, generator=chance)
        added = {"text_embeds": normal(n, 128), "time_ids": torch.full((n, 6), 64.0)}
        return unet(normal(n, 4, 16, 16), torch.tensor(times), normal(n, 8, 192), added_cond_kwargs=added,
                    return_dict=False)[0]
    return call


@pytest.fixture(scope="session")
def scenes(repository):
    """testbed/scenes.py"""
    spec = importlib.util.spec_from_file_location("testbed_scenes", repository / "testbed" / "scenes.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture()
def pictures(scenes, tmp_path):
    """pictures(count, name) -> a folder of scenes with their captions"""
    def make(count=5, name="pictures", captions=True, first=0):
        folder = tmp_path / name
        folder.mkdir()
        return draw(scenes, folder, count, captions, first)
    return make


@pytest.fixture(scope="session")
def five(scenes, tmp_path_factory):
    """A folder of five scenes with their captions."""
    return draw(scenes, tmp_path_factory.mktemp("five"), 5)


def draw(scenes, folder, count, captions=True, first=0):
    """Scenes into a folder -> the folder"""
    from PIL import Image

    for index in range(count):
        picture, caption, _ = scenes.scene(6, first + index)
        Image.fromarray(np.asarray(picture)).save(folder / f"{index}.png")
        if captions:
            (folder / f"{index}.txt").write_text(caption)
    return folder
