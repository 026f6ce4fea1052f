"""Pieces of one sequence: the same codes as viterbi.encode with start states, from every backend."""
import pytest
import torch
from vqpack.kernels import viterbi
from vqpack.kernels.viterbi_continued import Continued

BACKENDS = ["reference", "torch", pytest.param("numba", marks=pytest.mark.skipif(
    viterbi.report("cpu")["numba"] is not None, reason="numba is not installed"))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window, step_bits, vector", [(8, 3, 1), (12, 1, 1), (12, 4, 1), (8, 3, 2), (12, 5, 2)])
def test_pieces_go_on_where_the_last_ended(backend, window, step_bits, vector):
    g = torch.Generator().manual_seed(0)
    table = (torch.randn(1 << window, vector, generator=g) * 40).round().clamp(-128, 127).to(torch.int8)
    pieces = torch.randn(4, 33 * vector, generator=g) * 40
    pieces[0, 3] = 1e6
    mask = torch.rand(33, vector, generator=g) < 0.9
    coder = Continued(table, step_bits, mask, 7, torch.device("cpu"), backend)
    state, coded = torch.zeros(1, dtype=torch.int32), []
    for index, piece in enumerate(pieces):
        following = pieces[index + 1] if index + 1 < len(pieces) else None
        if index == 2:
            coder.restart()
            state = torch.zeros(1, dtype=torch.int32)
        codes, values = coder.code(piece, following)
        targets = viterbi.fixed_point(piece).view(1, 33, vector)
        ahead = viterbi.fixed_point(pieces[(index + 1) % 4]).view(1, 33, vector)[:, :7 if following is not None else 0]
        long = torch.cat([mask, mask[:ahead.shape[1]]])
        wanted = viterbi.encode(torch.cat([targets, ahead], 1), table, step_bits, long, "torch", states=state)[:, :33]
        assert torch.equal(codes, wanted[0])
        assert torch.equal(values, viterbi.replay(wanted, table, step_bits, state).view(-1))
        state = viterbi.windows(wanted, 1 << window, step_bits, state)[:, -1]
        coded.append(codes)
    assert not torch.equal(coded[0], coded[1])
