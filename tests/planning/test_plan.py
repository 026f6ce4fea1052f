"""`vqpack plan` on the testbed: sizes kept, files written, errors in one sentence."""
from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from vqpack.vq_core.arch import layers as arch_layers
from vqpack.vq_core.cli.main import main
from vqpack.vq_core.errors import Interrupted, PlanError
from vqpack.vq_core.plan import load_plan
from vqpack.vq_core.planning import run
from vqpack.vq_core.planning.costs import Costs, LayerCosts
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.quantize import quantize
from vqpack.vq_core.source import open_source

RATES = ("2", "4", "8", "dense")


@pytest.fixture
def formula(monkeypatch):
    """Costs from a formula instead of measurements: a plan takes a second."""
    def of(self, layer, weight):
        factor = self.factors[layer.key] if self.factors else self.guess(layer, 1.0)
        bits = [99.0 if spec.kind == "dense" else spec.bits for spec in self.specs]
        return LayerCosts(tuple(0.0 if b == 99 else factor * layer.numel**0.5 * 4.0**-b for b in bits), factor)

    monkeypatch.setattr(Costs, "of", of)


@pytest.mark.parametrize("size", [5_300_000, 6_100_000])
def test_a_file_is_as_large_as_asked(testbed, formula, tmp_path, size):
    found = run.plan(testbed, size=size, method="uniform")
    written = quantize(testbed, tmp_path / "out", plan=found.plan)
    assert 0.995 * size <= written.file_bytes <= size
    assert written.file_bytes <= found.file_bytes <= written.file_bytes + 1500
    assert {row.name: row.bytes for row in written.layers} | {
        row.layer.key: row.nbytes for row in found.layers} == {row.name: row.bytes for row in written.layers}


def test_bits_count_everything_in_the_blobs_and_tables(testbed, formula):
    found = run.plan(testbed, bits=2.5, method="trellis")
    weights = sum(row.layer.numel for row in found.layers)
    assert sum(row.nbytes for row in found.layers) * 8 / weights < found.bits <= 2.5
    assert found.bits > 2.49 and len({row.spec for row in found.layers}) > 2
    with open_source(testbed) as source:
        coded = [x.key for x in arch_layers(source) if x.component == "unet" and not x.dense]
    assert [key for key, _ in found.plan.layers] == coded


def test_the_command_writes_plan_and_drawing(testbed, formula, tmp_path, capsys):
    plan, picture = tmp_path / "p.json", tmp_path / "p.svg"
    assert main(["plan", str(testbed), "--bits", "2.5", "-o", str(plan), "--picture", str(picture)]) == 0
    said = capsys.readouterr().out
    assert "guess" in said and re.search(r"coded layers 2\.(49\d|500) bits a weight", said)
    assert len(load_plan(plan).layers) == 117
    drawn = ElementTree.parse(picture).getroot()
    titles = [title.text for title in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 117 and any("input_blocks.3.1.proj_in: " in text for text in titles)
    assert "prefers-color-scheme" in picture.read_text() and "guessed" in picture.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.json", "p.svg"]


@pytest.mark.parametrize(("arguments", "said"), [
    (["--bits", "0"], "--bits must be above 0"), (["--size", "0"], "--size must be above 0"),
    (["--bits", "nan"], "--bits must be above 0"),
    (["--size", "1M"], r"the least is \d+ bytes and the most \d+ bytes"),
    (["--bits", "0.5"], r"the least is 1\.\d+ bits a weight and the most 16\.000 bits"),
    (["--bits", "3", "--rates", "2,9"], "got '9'"), (["--bits", "3", "--method", "uniform", "--rates", "2.5"], "2.5"),
    (["--bits", "3", "--parts", "te"], "no layers to be planned"),
    (["--bits", "3", "--export-sensitivity", "s.json"], "nothing measured to be exported"),
    (["--bits", "3", "--sensitivity", "none.json"], "cannot read the sensitivities"),
    (["--bits", "3", "--picture", "none/p.svg"], "a folder that does not exist")])
def test_bad_input_is_one_sentence(testbed, formula, tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(testbed), "-o", "p.json", *arguments]) == 1
    error = capsys.readouterr().err
    assert re.search(said, error) and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_sensitivities_travel_to_a_fine_tune(testbed, formula, tmp_path):
    first = run.plan(testbed, bits=2.5, method="trellis")
    assert first.sensitivity is None       # a guess is not exported
    with open_source(testbed) as source:
        shapes = {x.key: x.shape for x in arch_layers(source) if x.component == "unet" and not x.dense}
    known = run.Sensitivity("sdxl-like", {"name": "base"}, run.shapes_digest(shapes), 900.0,
                            {key: 1.0 + (index == 5) * 1e6 for index, key in enumerate(shapes)})
    found = run.plan(testbed, bits=2.5, sensitivity=known)
    assert found.sensitivity.factors == known.factors and found.snr is not None and not found.guessed
    bits = [getattr(row.spec, "bits", 99) for row in found.layers]
    assert bits[5] > 4 and bits[5] == max(bits)


def test_interruption_leaves_nothing(testbed, formula, tmp_path, monkeypatch, capsys):
    stop = Progress(should_stop=lambda: True)
    with pytest.raises(Interrupted):
        run.plan(testbed, bits=2.5, progress=stop)
    with pytest.raises(PlanError, match="either --size or --bits"):
        run.plan(testbed)


def test_the_same_plan_with_any_number_of_threads(testbed):
    """Measured, not the formula: a few layers' worth of sampling."""
    import torch

    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(json.dumps(run.plan(testbed, bits=3.5, rates=(3, "dense"), method="palette").plan.to_json()))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
