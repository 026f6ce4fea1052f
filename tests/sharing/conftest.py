"""Small files to share, made of the testbed once, and a folder with one file of every kind."""
from __future__ import annotations

import getpass
import json
import os
import platform
import socket
import struct
from pathlib import Path

import pytest

USER, HOST, HOME, FOLDER = "quietuser", "quiethost", "quiethome", "quietfolder"
PROMPTS = ("a small yellow triangle on a dotted purple background", "a large blue square above a small red circle")


@pytest.fixture(scope="session")
def shared(testbed, tmp_path_factory):
    """The testbed's UNet at 4 bits with a title and a license, its VAE left out."""
    from safetensors.torch import load_file, save_file
    from vqpack.vq_core.decompress import decompress
    from vqpack.vq_core.quantize import quantize

    folder = tmp_path_factory.mktemp("shared")
    plain = decompress(quantize(testbed, folder / "first", bits=8, method="uniform", parts=("unet",)).path,
                       folder / "plain.safetensors")
    source = folder / "my model.safetensors"
    save_file(load_file(plain), source, {"modelspec.title": "My model", "modelspec.license": "CreativeML Open RAIL++-M",
                                         "modelspec.date": "2024-02-03", "prompt": "a secret"})
    return quantize(source, folder / "shared", bits=4, method="uniform").path


@pytest.fixture
def edited(shared, tmp_path):
    """edited(change) -> a copy of `shared` whose metadata change(dict) has changed; the checksums stay."""
    def edit(change, name: str = "edited.safetensors"):
        data = shared.read_bytes()
        end = 8 + struct.unpack_from("<Q", data)[0]
        header = json.loads(data[8:end])
        change(header["__metadata__"])
        text = json.dumps(header, ensure_ascii=False).encode()
        path = tmp_path / name
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[end:])
        return path
    return edit


@pytest.fixture(scope="session")
def secrets():
    """(names of user, host and folders; prompts) of the run that made `produced`."""
    return [USER, HOST, HOME, FOLDER], list(PROMPTS)


@pytest.fixture(scope="session")
def produced(testbed, tmp_path_factory):
    """A folder in which every command that writes something to share has run once, under names that can be found."""
    where = tmp_path_factory.mktemp("private") / HOME / FOLDER
    where.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("USER", "LOGNAME", "USERNAME", "LNAME"):
            patch.setenv(name, USER)
        for name in ("HOME", "USERPROFILE"):
            patch.setenv(name, str(where.parent))
        for module, name in ((socket, "gethostname"), (socket, "getfqdn"), (platform, "node")):
            patch.setattr(module, name, lambda *_: HOST)
        patch.setattr(os, "getlogin", lambda: USER)
        patch.setattr(getpass, "getuser", lambda: USER)
        patch.chdir(where)
        produce(testbed, where)
    return where


def produce(testbed, where: Path) -> None:
    from safetensors.torch import load_file, save_file
    from vqpack.vq_core.calibration.run import calibrate
    from vqpack.vq_core.card import write_card
    from vqpack.vq_core.compare.attach import attach
    from vqpack.vq_core.compare.run import compare
    from vqpack.vq_core.decompress import decompress
    from vqpack.vq_core.quantize import quantize
    from vqpack.vq_core.tuning.run import tune
    from vqpack.vq_core.tuning.settings import Tuning

    prompts = where / "prompts of mine.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    sampler = {"steps": 2, "guidance": 3.0, "device": "cpu"}
    calibration = calibrate(testbed, where / "calibration", prompts=prompts, timesteps=2, sensitivity_calls=1,
                            full_columns=600, **sampler).path
    save_file(load_file(testbed / "unet" / "diffusion_pytorch_model.safetensors"), where / "source.safetensors",
              {"modelspec.date": "2024-05-06", "modelspec.title": "Title", "prompt": PROMPTS[0],
               "workflow": USER, "ss_output_dir": str(where)})
    coded = quantize(where / "source.safetensors", where / "coded", bits=2, method="uniform",
                     calibration=calibration).path
    tune(coded, testbed, where / "tuned", prompts=prompts, size=(64, 64), **sampler,
         tuning=Tuning(steps=2, batch=2, together=2, warmup=1, checks=1))
    report = compare([testbed, coded], where / "report", prompts=prompts, steps=2, count=1)
    attached = attach(coded, report.json, where / "attached")
    write_card(attached, where / "README", comparison=report.json)
    saved(coded, decompress(coded, where / "plain"), where / "saved.safetensors")
    (where / "source.safetensors").unlink()
    prompts.unlink()


def saved(coded: Path, plain: Path, target: Path) -> None:
    """What Save Checkpoint (VQ) writes, with one weight changed."""
    from vqpack.vq_core.container import Reader
    from vqpack.vq_core.save_model import read_origin, save_model
    from vqpack.vq_core.source import open_source

    with Reader(coded) as reader, open_source(plain) as source:
        blobs = {key: reader.weight(key) for key in reader.coded_keys()}
        changed = {key: blobs.pop(key) for key in list(blobs)[:1]}
        save_model(source, blobs, changed, read_origin(coded, blobs), target)
