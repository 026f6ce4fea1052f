"""Pictures kept on the machine: the newest, whole or not at all, and nothing that lies in their folder is trusted."""
from __future__ import annotations

import json
import math
import os
from dataclasses import replace

import pytest
import torch
from vqpack.vq_core.compare import gallery
from vqpack.vq_core.compare.gallery_record import Run, Settings, Side, read_run
from vqpack.vq_core.compare.pictures import make_png, png_size

UNET = "ab" * 32
SETTINGS = Settings(2**64 - 1, 20, 5.5, "euler", "normal", 48, 32, 2)
RUN = Run(Side("original.safetensors"), Side("small.safetensors", 3, ("LoRA by hook",)), SETTINGS,
          {"latent_psnr": [21.5, math.inf], "image_psnr": [30.25, -math.inf], "ssim": [0.5, 1.0]})


def pair(shade: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of A and B, uint8 [32, 48, 3]."""
    return torch.full((32, 48, 3), shade, dtype=torch.uint8), torch.full((32, 48, 3), shade + 1, dtype=torch.uint8)


def kept(root) -> list[Run]:
    return gallery.runs(root, UNET)


def of_seed(seed: int, name: str = "original.safetensors") -> Run:
    return replace(RUN, settings=replace(SETTINGS, seed=seed), a=Side(name))


def contents(root) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def json_of(root):
    return next((root / UNET).glob("*.json"))


def damaged(root, change) -> list[Run]:
    """What is read after the only run's JSON was changed by change(data)."""
    data = json.loads(json_of(root).read_text(encoding="utf-8"))
    change(data)
    json_of(root).write_text(json.dumps(data), encoding="utf-8")
    return kept(root)


def test_a_run_comes_back_as_it_was(tmp_path):
    gallery.keep(tmp_path / "new" / "folder", UNET, RUN, [pair(), pair(7)])
    (found,) = kept(tmp_path / "new" / "folder")
    assert replace(found, pictures=()) == replace(RUN, values={k: tuple(v) for k, v in RUN.values.items()})
    read = gallery.pictures(tmp_path / "new" / "folder", UNET, found)
    assert read == [tuple(map(make_png, pair())), tuple(map(make_png, pair(7)))]
    assert png_size(read[0][0]) == (32, 48)


def test_the_same_run_is_kept_once_as_the_same_bytes(tmp_path):
    gallery.keep(tmp_path, UNET, RUN, [pair()])
    before = contents(tmp_path)
    gallery.keep(tmp_path, UNET, RUN, [pair()])
    assert contents(tmp_path) == before and len(before) == 3


def test_a_run_replaces_one_of_the_same_models_and_settings(tmp_path):
    gallery.keep(tmp_path, UNET, RUN, [pair()])
    gallery.keep(tmp_path, UNET, replace(RUN, values={**RUN.values, "ssim": [0.1, 0.2]}), [pair(9)])
    (found,) = kept(tmp_path)
    assert found.values["ssim"] == (0.1, 0.2) and len(contents(tmp_path)) == 3            # old pictures are gone
    gallery.keep(tmp_path, UNET, replace(RUN, a=Side("other.safetensors")), [pair(9)])
    gallery.keep(tmp_path, UNET, replace(RUN, b=replace(RUN.b, patched=0)), [pair(9)])
    assert len(kept(tmp_path)) == 3


def test_the_newest_runs_and_the_first_pictures_stay(tmp_path):
    count = gallery.MOST_PICTURES + 2
    many = replace(RUN, settings=replace(SETTINGS, count=count), values={k: [1.0] * count for k in RUN.values})
    for seed in range(gallery.MOST_RUNS + 2):
        run = replace(many, settings=replace(many.settings, seed=seed))
        gallery.keep(tmp_path, UNET, run, [pair(10 * seed + i) for i in range(count)])
        os.utime(tmp_path / UNET / f"{run.key}.json", (1e9 + seed, 1e9 + seed))
    found = kept(tmp_path)
    assert [run.settings.seed for run in found] == list(range(gallery.MOST_RUNS + 1, 1, -1))
    assert {len(run.pictures) for run in found} == {gallery.MOST_PICTURES}
    assert all(len(run.values["ssim"]) == count for run in found)
    assert all(None not in gallery.pictures(tmp_path, UNET, run) for run in found)
    named = {digest for run in found for both in run.pictures for digest in both}
    assert {path.stem for path in (tmp_path / UNET).glob("*.png")} == named               # and no others


def test_files_that_were_drawn_with_long_ago_are_forgotten(tmp_path):
    for number in range(gallery.MOST_FILES + 2):
        gallery.keep(tmp_path, f"{number:064x}", RUN, [pair()])
        os.utime(tmp_path / f"{number:064x}", (1e9 + number, 1e9 + number))
    (tmp_path / "not ours").mkdir()
    gallery.keep(tmp_path, UNET, RUN, [pair()])
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == gallery.MOST_FILES + 1 and "not ours" in left and UNET in left
    assert f"{2:064x}" not in left and f"{gallery.MOST_FILES + 1:064x}" in left


def test_large_pictures_are_made_smaller(tmp_path):
    wide = torch.zeros(16, 2 * gallery.MOST_SIDE, 3, dtype=torch.uint8)
    gallery.keep(tmp_path, UNET, RUN, [(wide, wide)])
    assert png_size(gallery.pictures(tmp_path, UNET, kept(tmp_path)[0])[0][0]) == (8, gallery.MOST_SIDE)


@pytest.mark.parametrize("change", [
    lambda d: d.pop("a"), lambda d: d["a"].update(name=5), lambda d: d["b"].update(patched=True),
    lambda d: d["b"].update(beside="text"), lambda d: d["b"].update(beside=["x"] * 100),
    lambda d: d["b"].update(beside=[[]]), lambda d: d["settings"].update(count=10**9),
    lambda d: d.update(settings={**d["settings"], "count": 0}, values=dict.fromkeys(d["values"], []), pictures=[]),
    lambda d: d.update(settings={**d["settings"], "count": 65}, values=dict.fromkeys(d["values"], [1.0] * 65)),
    lambda d: d["settings"].update(seed=2**64),
    lambda d: d["settings"].update(cfg="inf"), lambda d: d["settings"].update(sampler=None),
    lambda d: d["values"].update(ssim=[0.5]), lambda d: d["values"].update(ssim=[0.5, "<b>"]),
    lambda d: d["values"].update(ssim=[0.5, [1]]), lambda d: d.update(values=[]), lambda d: d.update(pictures=7),
    lambda d: d.update(pictures=[["../../secret", "0" * 64]]), lambda d: d.update(pictures=[["0" * 64]]),
    lambda d: d.update(pictures=[["0" * 64] * 2] * 3), lambda d: d.update(vqpack_pictures=2)])
def test_what_is_not_as_written_is_left_out(tmp_path, change):
    gallery.keep(tmp_path, UNET, RUN, [pair(), pair(3)])
    assert damaged(tmp_path, lambda data: None) != []
    assert damaged(tmp_path, change) == []


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"vqpack_pictures": 1}', "9" * 5000])
def test_what_is_no_run_is_none(text):
    assert read_run(text) is None


def test_hostile_files_in_the_folder(tmp_path):
    gallery.keep(tmp_path, UNET, RUN, [pair(), pair(3)])
    folder, good = tmp_path / UNET, kept(tmp_path)
    path = json_of(tmp_path)
    (folder / "huge.json").write_bytes(path.read_bytes() + b" " * 70_000)
    (folder / "binary.json").write_bytes(bytes(range(256)))
    (folder / "folder.json").mkdir()
    (folder / "link.json").symlink_to(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.json")                                # reading it would wait for ever
    assert kept(tmp_path) == good
    gallery.keep(tmp_path, UNET, of_seed(1), [pair()])                 # clears what is not its own, folders stay
    assert sorted(path.suffix for path in folder.iterdir()) == [".json"] * 3 + [".png"] * 4


def test_only_pictures_that_are_what_the_run_names_are_read(tmp_path):
    gallery.keep(tmp_path, UNET, RUN, [pair(), pair(3)])
    (run,) = kept(tmp_path)
    first = tmp_path / UNET / f"{run.pictures[0][0]}.png"
    first.write_bytes(make_png(pair(99)[0]))                           # a good picture, another one
    assert [found is None for found in gallery.pictures(tmp_path, UNET, run)] == [True, False]
    first.unlink()
    assert [found is None for found in gallery.pictures(tmp_path, UNET, run)] == [True, False]


def test_no_picture_of_another_kind_or_size_is_read(tmp_path):
    gallery.keep(tmp_path, UNET, RUN, [pair()])
    bomb = bytearray(make_png(pair()[0]))
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2                     # its header promises 10 gigapixels
    for data in (b"<svg onload=alert(1)>", b"GIF89a", b"", bytes(bomb)):
        digest = gallery.hashlib.sha256(data).hexdigest()
        (tmp_path / UNET / f"{digest}.png").write_bytes(data)
        (run,) = damaged(tmp_path, lambda d, digest=digest: d.update(pictures=[[digest, digest]]))
        assert gallery.pictures(tmp_path, UNET, run) == [None]


def test_ids_never_lead_out_of_the_folder(tmp_path):
    for unet in ("", "..", "../" + UNET, UNET + "/..", UNET.upper(), "a" * 63, UNET + "\n"):
        with pytest.raises(ValueError, match="64 hexadecimal"):
            gallery.keep(tmp_path, unet, RUN, [pair()])
        with pytest.raises(ValueError, match="64 hexadecimal"):
            gallery.runs(tmp_path, unet)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_links(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (root / UNET).symlink_to(outside)
    with pytest.raises(OSError):
        gallery.keep(root, UNET, RUN, [pair()])
    assert list(outside.iterdir()) == [] and kept(root) == []
    (root / UNET).unlink()
    (root / UNET).mkdir()
    victim = outside / "victim"
    victim.write_bytes(b"not yours")
    (root / UNET / f"{RUN.key}.json.part").symlink_to(victim)
    gallery.keep(root, UNET, RUN, [pair()])
    assert victim.read_bytes() == b"not yours" and len(kept(root)) == 1


def test_a_disk_that_is_full_leaves_the_earlier_runs_and_nothing_else(tmp_path, monkeypatch):
    gallery.keep(tmp_path, UNET, RUN, [pair()])
    before, real, calls = contents(tmp_path), gallery.write_bytes, []

    def full(path, data):
        calls.append(path)
        if len(calls) > 2:                                             # both pictures fit, the JSON does not
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(gallery, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        gallery.keep(tmp_path, UNET, of_seed(1), [pair(50)])
    assert contents(tmp_path) == before


def test_where_no_folder_can_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError):
        gallery.keep(tmp_path / "file", UNET, RUN, [pair()])
    assert gallery.runs(tmp_path / "file", UNET) == [] == gallery.runs(tmp_path / "never", UNET)
