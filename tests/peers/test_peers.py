"""The peers' bench without any peer: ggml's formulas, what is counted, ours, absent packages."""
from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def bench(repository):
    """Imports modules of benchmarks/ by name."""
    folder = str(repository / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(folder)


def half(value: float) -> bytes:
    return np.float16(value).tobytes()


def decode_one(bench, kind: str, block: bytes) -> np.ndarray:
    blocks = bench("peers.ggml_blocks")
    assert len(block) == blocks.BLOCK_BYTES[kind]
    return blocks.decode(np.frombuffer(block, dtype=np.uint8)[None], kind)[0]


def test_q2_k_by_hand(bench):
    """Weight 128 + 32 + 17: second half, plane 1, sub-block 8 + 2 + 1 = 11; w = d * scale * q - dmin * minimum"""
    scales, codes = bytearray(16), bytearray(64)
    scales[11] = 5 | 3 << 4
    codes[32 + 17] = 2 << 2                # plane 1 of the second run of 32
    w = decode_one(bench, "Q2_K", bytes(scales + codes) + half(0.5) + half(0.25))
    assert w[177] == 0.5 * 5 * 2 - 0.25 * 3
    assert w[176] == -0.25 * 3 and w[0] == 0


def test_q3_k_by_hand(bench):
    """Weight 200: second half, plane 2, byte 8, high bit 6, sub-block 12; w = d * (scale - 32) * (q - 4 if not high)"""
    high, low, packed = bytearray(32), bytearray(64), bytearray(12)
    packed[4], packed[8] = 9 << 4, 2 << 6  # scale 12: four low bits above those of scale 4, two high bits
    low[32 + 8] = 3 << 4
    block = bytes(low + packed) + half(0.5)
    scale = 0.5 * ((9 | 2 << 4) - 32)
    assert decode_one(bench, "Q3_K", bytes(high) + block)[200] == scale * (3 - 4)
    high[8] = 1 << 6
    assert decode_one(bench, "Q3_K", bytes(high) + block)[200] == scale * 3


def test_q4_k_by_hand(bench):
    """Weights 33 and 225: sub-blocks 1 and 7, whose 6-bit scales are stored in different ways"""
    packed, codes = bytearray(12), bytearray(128)
    packed[1], packed[5] = 45, 21          # scale and minimum 1
    packed[3], packed[7] = 2 << 6, 1 << 6  # upper bits of scale 7 and minimum 7
    packed[11] = 11 | 6 << 4               # their lower bits
    codes[1], codes[97] = 13 << 4, 7 << 4
    w = decode_one(bench, "Q4_K", half(0.5) + half(0.25) + bytes(packed + codes))
    assert w[33] == 0.5 * 45 * 13 - 0.25 * 21
    assert w[225] == 0.5 * (11 | 2 << 4) * 7 - 0.25 * (6 | 1 << 4)


def test_q5_k_by_hand(bench):
    """As Q4_K, with bit 7 of byte 1 as the fifth bit of weight 225"""
    packed, fifth, codes = bytearray(12), bytearray(32), bytearray(128)
    packed[11], codes[97], fifth[1] = 11 | 6 << 4, 7 << 4, 1 << 7
    w = decode_one(bench, "Q5_K", half(0.5) + half(0.25) + bytes(packed + fifth + codes))
    assert w[225] == 0.5 * 11 * (7 + 16) - 0.25 * 6


def test_block_sizes_are_the_published_rates(bench):
    sizes = bench("peers.ggml_blocks").BLOCK_BYTES
    assert {kind: 8 * size / 256 for kind, size in sizes.items()} == {"Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5,
                                                                     "Q5_K": 5.5}


def test_a_real_ggml_quantizer_where_there_is_one(bench):
    """Its bytes, read by our formulas, are close to the weights; a wrong formula would not be."""
    gguf, coded = bench("peers.gguf"), bench("peers.coded")
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    try:
        errors = [gguf.code(weight, bits) for bits in (2, 3, 4, 5)]
    except coded.NotHere as error:
        pytest.skip(str(error))
    losses = [float((c.decoded - weight).square().sum() / weight.square().sum()) for c in errors]
    assert losses[0] < 0.12 and losses[1] < 0.03 and losses[2] < 0.007 and losses[3] < 0.002


def test_a_weight_that_is_kept_counts_as_fp16(bench):
    kept = bench("peers.coded").kept
    weight = torch.randn(3, 5)
    coded = kept(weight, "x", {})
    assert (coded.bits, coded.coded_share) == (16, 0) and torch.equal(coded.decoded, weight.half().float())


def test_absent_and_broken_packages_are_named(bench, tmp_path, monkeypatch):
    coded = bench("peers.coded")
    with pytest.raises(coded.NotHere, match="^some-peer: ModuleNotFoundError: "):
        coded.need("no_such_module_anywhere", "some-peer")
    (tmp_path / "broken_peer.py").write_text("raise RuntimeError('needs\\n a GPU')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(coded.NotHere, match="some-peer: RuntimeError: needs a GPU"):
        coded.need("broken_peer", "some-peer")


def test_who_can_code_what(bench):
    """Linear-only peers keep SDXL's convolutions (13 % of the UNet, peers known to do so); K-quants fit nearly all."""
    methods, share = bench("peers").METHODS, bench("weight_layers").sdxl_share
    linear_only, total = share(methods["bnb-nf4"])
    assert 0.86 < linear_only < 0.88 and 2.56e9 < total < 2.57e9
    assert share(methods["gguf-Q4_K"])[0] > 0.999
    assert share(methods["sdnq-uint2"])[0] > 0.99
    assert share(methods["torchao-int4-g128"])[0] == pytest.approx(linear_only, abs=0.002)
    assert not methods["torchao-int4-g128"].codes((64, 96)) and methods["torchao-int4-g32"].codes((64, 96))


@pytest.mark.parametrize("name", ["ours-palette-2", "ours-palette-4", "ours-uniform-3"])
def test_ours_by_our_encoders(bench, name):
    weight = torch.randn(48, 40, 3, 3, generator=torch.Generator().manual_seed(1))
    coded = bench("peers").code(name, weight)
    assert coded.decoded.shape == weight.shape and coded.coded_share == 1
    rate = float(name.rsplit("-", 1)[1])
    error = float((coded.decoded - weight).square().sum() / weight.square().sum())
    assert rate < coded.bits < rate + 0.6
    assert 4**-rate < error < 3.2 * 4**-rate             # above Shannon's bound, below a poor scalar code


def test_palette_is_apples(bench):
    """One fp16 table a tensor and nothing else: 2**bits values at most, exact bytes"""
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))
    coded = bench("peers").code("ours-palette-2", weight)
    assert coded.stored_bytes == 32 * 64 * 2 // 8 + 4 * 2
    levels = coded.decoded.unique()
    assert len(levels) == 4 and torch.equal(levels, levels.half().float())


def test_trellis_counts_its_blob_and_a_share_of_the_table(bench):
    from vqpack.vq_core.encode import encode_weight
    from vqpack.vq_core.spec import make_spec

    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    coded = bench("peers").code("ours-trellis-2", weight)
    own = encode_weight(weight, make_spec("trellis", 2)).weight
    assert own.nbytes < coded.stored_bytes <= own.nbytes + 8     # 4 KB by 4096 of SDXL's 2.5 billion weights
    assert torch.equal(coded.decoded, own.decode())


def test_curve_is_a_mix_between_rates_and_flat_beyond(bench):
    read = bench("equal_bits").read_curve
    points = [(3.0, 0.02), (1.0, 0.3), (2.0, 0.1)]
    assert read(points, 1.5) == (pytest.approx(0.2), 0)
    assert read(points, 2.75) == (pytest.approx(0.04), 0)
    assert read(points, 1.0) == (0.3, 0) and read(points, 3.0) == (pytest.approx(0.02), 0)
    assert read(points, 4.0) == (0.02, 1)
    assert read(points, 0.5) == (0.3, -1)


def made(factor: float, share=(1, 1, 1, 1, 1), wobble=(1.0,) * 5, bits=2.5, shapes=((10, 10),) * 5) -> list[dict]:
    """Rows of a curve 2^-bits and a peer whose error is `factor` times that at 2.5 bits, on layers of 100 weights."""
    rows = []
    for layer, shape in enumerate(shapes):
        base = {"set": "s", "layer": str(layer), "shape": shape, "weights": 100, "coded_share": 1}
        rows += [{**base, "method": f"ours-trellis-{b}", "family": "ours-trellis", "bits": b, "plain": 2.0**-b,
                  "correlated": 2.0**-b} for b in (1, 2, 3)]
        error = factor * wobble[layer] * (2.0**-2 + 2.0**-3) / 2 if share[layer] else 1e-8
        rows.append({**base, "method": "p", "family": "p", "bits": bits if share[layer] else 16.0, "plain": error,
                     "correlated": error, "coded_share": share[layer]})
    return rows


def verdict(bench, rows, name="s") -> dict:
    return next(row for row in bench("equal_bits").compare(rows)
                if (row["set"], row["method"], row["metric"]) == (name, "p", "plain"))


def test_a_known_factor_is_recovered(bench):
    row = verdict(bench, made(2.0))
    assert row["ours_over_it"] == pytest.approx([0.5] * 3) and row["verdict"] == "ours has less error"
    assert (row["bits"], row["coded_share"], row["layers_compared"]) == (2.5, 1, 5)
    assert verdict(bench, made(0.5))["verdict"] == "ours has more error"
    assert verdict(bench, made(1.0, wobble=(0.8, 0.9, 1.0, 1.2, 1.3)))["verdict"] == "undecided"


def test_no_claim_where_a_peer_keeps_layers(bench):
    row = verdict(bench, made(2.0, share=(1, 1, 1, 1, 0)))
    assert row["verdict"] == "no claim: it codes 80 % of these weights"
    assert row["bits"] == pytest.approx((4 * 2.5 + 16) / 5) and row["layers_compared"] == 4
    assert verdict(bench, made(2.0, share=(0,) * 5))["verdict"] == "no claim: nothing to compare"


def test_a_peer_of_linears_is_compared_on_linears(bench):
    """Six layers, the last a convolution: no claim on all, a claim on five; four linears are too few."""
    shapes = ((10, 10),) * 5 + ((10, 10, 1, 1),)
    rows = made(2.0, share=(1, 1, 1, 1, 1, 0), wobble=(1.0,) * 6, shapes=shapes)
    assert verdict(bench, rows)["verdict"].startswith("no claim: it codes 83 %")
    linear = verdict(bench, rows, "s, linear layers")
    assert (linear["verdict"], linear["layers"], linear["coded_share"]) == ("ours has less error", 5, 1)
    few = verdict(bench, [row for row in rows if row["layer"] != "0"], "s, linear layers")
    assert few["verdict"] == "no claim: 4 layers are too few, 5 are needed"
    assert not [row for row in bench("equal_bits").compare(made(2.0)) if row["set"] != "s"]


def test_nothing_is_extrapolated_beyond_our_rates(bench):
    """Above our 3 bits: less error there is a claim, more error is none. Below 1 bit: no claim."""
    worse = verdict(bench, made(2.0, bits=4.5))
    assert worse["ours_over_it"] == pytest.approx([1 / 3] * 3)     # 2^-3 over 2 * 3/16
    assert worse["verdict"] == "ours has less error, with fewer bits on 5 of 5 layers"
    assert verdict(bench, made(0.5, bits=4.5))["verdict"] \
        == "no claim: it has less error and stores more than our highest rate on 5 of 5 layers"
    assert verdict(bench, made(2 / 3, bits=4.5, wobble=(0.8, 0.9, 1.0, 1.2, 1.3)))["verdict"] \
        == "no claim: it stores more than our highest rate on 5 of 5 layers"
    assert verdict(bench, made(9.0, bits=0.5))["verdict"] \
        == "no claim: it stores less than our lowest rate on 5 of 5 layers"


def test_methods_are_chosen_by_whole_names_and_families(bench):
    choose = bench("weight_error").choose
    names = {method.name for method in choose("hqq|bnb-.*")} - {method.name for method in choose("nothing")}
    assert names == {"hqq-2bit-g16", "hqq-2bit-g64", "hqq-3bit-g64", "hqq-4bit-g64", "bnb-nf4", "bnb-nf4-nested"}
    assert {method.family for method in choose("nothing")} == {"ours-trellis"}
    assert len(choose("")) == len(bench("peers").METHODS)


def test_the_picture_is_drawn_where_matplotlib_is(bench, tmp_path, monkeypatch):
    rows = [{**row, "set": "testbed", "family": row["family"].replace("p", "gguf") if row["method"] == "p"
             else row["family"]} for row in made(2.0)]
    draw = bench("weight_plot").draw
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)      # as if it were not installed
        draw(rows, tmp_path / "absent.png")
    assert not (tmp_path / "absent.png").exists()
    pytest.importorskip("matplotlib")
    draw(rows, tmp_path / "there.png")
    assert (tmp_path / "there.png").read_bytes().startswith(b"\x89PNG")


def test_quanto_unpacks_planes_of_bits(bench):
    """0b11100100 holds 0, 1, 2, 3; the planes of two bytes follow each other."""
    unpack = bench("peers.quanto").unpack
    packed = torch.tensor([0b11100100, 0b00011011], dtype=torch.uint8)
    assert unpack(packed, 2).tolist() == [0, 3, 1, 2, 2, 1, 3, 0]
    assert unpack(packed, 4).tolist() == [4, 11, 14, 1]


def test_killed_runs_go_on_and_reports_are_the_same(bench, tmp_path, monkeypatch):
    """Rows that were measured stay as they are, others are added; CSV and JSON twice the same."""
    error, layers, peers = bench("weight_error"), bench("weight_layers"), bench("peers")
    monkeypatch.setattr(error, "SPOOL", tmp_path / "spool.jsonl")
    monkeypatch.setattr(error, "machine", lambda: {"cpu": "c", "commit": "abc"})
    weight = layers.NamedWeight("testbed", "a", torch.randn(16, 32, generator=torch.Generator().manual_seed(0)))
    two = [peers.METHODS["ours-palette-2"], peers.METHODS["ours-uniform-3"]]
    error.measure_all([weight], two[:1])
    monkeypatch.setattr(error, "machine", lambda: {"cpu": "c", "commit": "def"})
    with (tmp_path / "spool.jsonl").open("a") as spool:
        spool.write('{"set": "testbed", "lay')                    # what a kill leaves
    rows = error.measure_all([weight], two)
    assert [(row["method"], row["commit"]) for row in rows] == [("ours-palette-2", "abc"), ("ours-uniform-3", "def")]
    assert error.load_rows(error.SPOOL) == rows
    for name in "xy":
        error.write(error.load_rows(error.SPOOL), {"hqq": "hqq: absent"}, tmp_path / name)
    for file in ("weight_error.csv", "weight_error.json"):
        assert (tmp_path / "x" / file).read_bytes() == (tmp_path / "y" / file).read_bytes()
    assert ",abc+def\n" in (tmp_path / "x" / "weight_error.csv").read_text()


def test_inputs_are_correlated_as_stated(bench):
    layers = bench("weight_layers")
    x = layers.correlated_inputs((4, 32, 3, 3), "a").view(32, 9, -1)
    assert torch.equal(x.reshape(288, -1), layers.correlated_inputs((9, 32, 3, 3), "a"))
    assert not torch.equal(x, layers.correlated_inputs((4, 32, 3, 3), "b").view(32, 9, -1))
    y = (x / x.square().mean((1, 2), keepdim=True).sqrt()).double()
    gram = torch.einsum("cts,cus->tu", y, y) / (32 * y.shape[2])                    # [taps, taps]
    assert float(gram[0, 1] / gram.diagonal().mean()) == pytest.approx(0.8, abs=0.05)
    assert float(gram[0, 8] / gram.diagonal().mean()) == pytest.approx(0.8**4, abs=0.08)
    best = (torch.einsum("cs,ds->cd", y[:, 4], y[:, 4]) / y.shape[2] - 2 * torch.eye(32)).amax(1)
    assert float(best.mean()) == pytest.approx(0.9, abs=0.08)


def test_a_row_cut_short_is_dropped(bench, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a":')
    assert bench("weight_error").load_rows(path) == [{"a": 1}, {"a": 2}]
    assert bench("weight_error").load_rows(tmp_path / "none") == []
