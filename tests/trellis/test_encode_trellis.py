"""encode_trellis end to end: error ceilings, exact zeros, odd shapes, chains, rotation, determinism."""
import pytest
import torch
from vqpack.kernels import viterbi
from vqpack.kernels.reference import decode_part
from vqpack.vq_core.encode import trellis
from vqpack.vq_core.encode.trellis import encode_trellis
from vqpack.vq_core.errors import Interrupted, PlanError
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.spec import TRELLIS_RATES, TrellisSpec

# Squared error over squared norm on a Gaussian matrix at window 8, times 4^bits (Shannon: 1); measured 3 to 5 % lower.
CEILINGS = {1: 1.16, 1.5: 1.22, 2: 1.25, 2.5: 1.38, 3: 1.32, 3.5: 1.80, 4: 1.52, 5: 1.86, 6: 2.87}


def gaussian(rows, cols, seed=0):
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def error(part, matrix):
    return float((decode_part(part) - matrix).square().sum() / matrix.square().sum())


@pytest.mark.parametrize("bits", TRELLIS_RATES)
def test_gaussian_error_stays_under_its_ceiling(bits):
    matrix = gaussian(192, 256) * torch.logspace(-3, 3, 192)[:, None]
    part = encode_trellis(matrix, TrellisSpec(bits=bits, window=8, rotation=0), channels=256)
    relative = ((decode_part(part) - matrix).square().sum(1) / matrix.square().sum(1)).mean()
    assert float(relative) * 4**bits < CEILINGS[bits]


@pytest.mark.parametrize("rows, channels, taps", [(1, 1, 1), (1, 7, 1), (33, 5, 9), (65, 16, 4), (2, 640, 1)])
@pytest.mark.parametrize("bits", [1, 2.5, 3])
def test_odd_shapes(rows, channels, taps, bits):
    matrix = gaussian(rows, channels * taps)
    part = encode_trellis(matrix, TrellisSpec(bits=bits, window=8), channels=channels, taps=taps, seed=3)
    steps = -(-rows // part.vector)
    assert tuple(part.codes.shape) == (-(-steps // 32), part.step_bits, channels * taps)
    assert part.codes.dtype == torch.int32 and part.codes.is_contiguous()
    assert error(part, matrix) < 1.35 * 2 * 4**-bits


def test_steps_of_zero_rows_help_their_neighbors():
    matrix = gaussian(96, 64)
    matrix[1::2] = 0
    part = encode_trellis(matrix, TrellisSpec(bits=3, window=8, rotation=0), channels=64)
    assert error(part, matrix) * 4**3 < 0.3 * CEILINGS[3]


def test_rows_of_zeros_are_exact():
    matrix = gaussian(70, 40)
    matrix[[0, 13, 69]] = 0
    part = encode_trellis(matrix, TrellisSpec(bits=3, window=8), channels=40)
    decoded = decode_part(part)
    assert not decoded[[0, 13, 69]].any()
    assert error(part, matrix) * 4**3 < CEILINGS[3]
    assert not decode_part(encode_trellis(torch.zeros(5, 32), TrellisSpec(window=8), channels=32)).any()


@pytest.mark.parametrize("magnitude", [1e-12, 1e-6, 1e6, 1e12])
def test_any_magnitude(magnitude):
    matrix = gaussian(64, 64)
    part = encode_trellis(matrix * magnitude, TrellisSpec(bits=3, window=8, rotation=0), channels=64)
    assert error(part, matrix * magnitude) * 4**3 < CEILINGS[3]


def test_codes_do_not_depend_on_backend_batches_or_threads(monkeypatch):
    matrix, spec = gaussian(66, 96), TrellisSpec(bits=2.5, window=8)
    wanted = encode_trellis(matrix, spec, channels=32, taps=3, seed=1)
    for backend in [name for name, why in viterbi.report("cpu").items() if why is None and name != "reference"]:
        part = encode_trellis(matrix, spec, channels=32, taps=3, seed=1, backend=backend)
        assert torch.equal(part.codes, wanted.codes)
    monkeypatch.setattr(trellis, "BATCH_WEIGHTS", 1000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(2, threads))
        small = encode_trellis(matrix, spec, channels=32, taps=3, seed=1)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(small.codes, wanted.codes)
    assert torch.equal(small.scales.row, wanted.scales.row) and small.scales.gain == wanted.scales.gain


def test_narrow_layers_are_chained_into_long_sequences():
    part = encode_trellis(gaussian(64, 256), TrellisSpec(bits=3, window=8, rotation=0), channels=256)
    assert part.chain * 64 >= trellis.CHAIN_STEPS
    tall = encode_trellis(gaussian(4100, 3), TrellisSpec(bits=3, window=8), channels=3)
    assert tall.chain == 1


def test_rotation_is_chosen_by_measured_error():
    flat = torch.rand(128, 128, generator=torch.Generator().manual_seed(1)) - 0.5
    heavy = gaussian(128, 128) * gaussian(128, 128, 1).abs() ** 3
    assert encode_trellis(flat, TrellisSpec(bits=3, window=8), channels=128).rotation == 0
    part = encode_trellis(heavy, TrellisSpec(bits=3, window=8), channels=128, seed=2**32 + 7)
    assert (part.rotation, part.rotation_seed) == (128, 7)
    without = encode_trellis(heavy, TrellisSpec(bits=3, window=8, rotation=0), channels=128)
    assert error(part, heavy) < 0.8 * error(without, heavy)
    assert encode_trellis(gaussian(64, 100), TrellisSpec(window=8), channels=100).rotation == 0
    with pytest.raises(PlanError, match="divides the 100 input channels"):
        encode_trellis(gaussian(8, 100), TrellisSpec(window=8, rotation=64), channels=100)


def test_the_user_can_stop_it():
    progress = Progress(should_stop=lambda: True)
    with pytest.raises(Interrupted):
        encode_trellis(gaussian(64, 64), TrellisSpec(window=8), channels=64, progress=progress)
