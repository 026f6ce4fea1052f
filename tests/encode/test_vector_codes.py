"""additive and product: ceilings, exactness, monotone rounds, brute force, stored bits, books by position."""
import itertools

import pytest
import torch
from vqpack.kernels.reference import decode_part
from vqpack.vq_core.encode import additive, product
from vqpack.vq_core.encode.additive import Effort, encode_additive
from vqpack.vq_core.encode.product import encode_product, plan_layout
from vqpack.vq_core.encode.scales import to_integers
from vqpack.vq_core.errors import PlanError
from vqpack.vq_core.spec import AdditiveSpec, ProductSpec

QUICK = Effort(sample=2**12, iterations=4, rounds=1, beam=2)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(part, matrix):
    return float((decode_part(part) - matrix).square().sum() / matrix.square().sum())


def stored_bits(part):
    return sum(t.numel() * t.element_size() * 8 for t in (part.codes, part.codebooks, part.scales.row))


# Error times 4^bits of a 128 x 640 Gaussian, in sample (few vectors an entry, so below a large layer's), plus 3 %.
@pytest.mark.parametrize("bits, ceiling", [(1, 1.253), (2, 1.431), (3, 1.689), (4, 2.163)])
def test_additive_ceiling_and_bits(bits, ceiling):
    matrix = gaussian(128, 640)
    part = encode_additive(matrix, AdditiveSpec(bits), channels=640, taps=1, effort=QUICK)
    assert error(part, matrix) * 4**bits < ceiling
    assert stored_bits(part) == 128 * 640 * bits + bits * 256 * 8 * 16 + 128 * 16


def test_additive_with_one_book_is_exact_on_its_book():
    book = gaussian(64, 8)
    order = [torch.randperm(64, generator=torch.Generator().manual_seed(i)) for i in range(9)]
    matrix = torch.stack([book[o].flatten() for o in order]) * torch.linspace(0.2, 5, 9)[:, None]
    assert error(encode_additive(matrix, AdditiveSpec(1), channels=512, taps=1), matrix) < 1e-6


def test_more_beam_more_rounds_and_more_effort_gain():
    matrix = gaussian(64, 512)
    errors = [error(encode_additive(matrix, AdditiveSpec(2), channels=512, taps=1, effort=e), matrix)
              for e in ("fast", Effort(2**15, 8, 2, 2), Effort(2**15, 8, 2, 8), Effort(2**15, 8, 6, 8))]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.87 * errors[0]      # measured .859


def test_additive_rounds_are_monotone():
    vectors, weights = gaussian(2000, 8), torch.rand(2000, generator=torch.Generator().manual_seed(1))
    books = additive.residual_books(vectors, weights, AdditiveSpec(2), 4, 0)
    codes, errors = additive.beam_search(vectors, books, 2), []

    def loss():
        coded = additive.decode_rows(books[None], codes[:, None])[:, 0]
        return float((weights * (vectors - coded).square().sum(1)).sum())

    for _ in range(5):
        errors.append(loss())
        books = additive.refit_books(vectors, weights, codes, books)
        errors.append(loss())
        codes = additive.improved(vectors, books, codes, additive.beam_search(vectors, books, 2))
    # the ridge that keeps unused entries in place may cost a thousandth
    assert all(b <= a * 1.001 for a, b in zip(errors, errors[1:])) and errors[-1] < 0.95 * errors[0]


def test_full_beam_equals_exhaustive_search():
    books, vectors = gaussian(3, 4, 5), gaussian(40, 5, seed=1)
    combinations = torch.tensor(list(itertools.product(range(4), repeat=3)))
    sums = sum(books[m][combinations[:, m]] for m in range(3))
    best = (vectors[:, None] - sums[None]).square().sum(-1).min(1).values
    codes = additive.beam_search(vectors, books, 16)
    found = (vectors - sum(books[m][codes[:, m]] for m in range(3))).square().sum(1)
    torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-5)


def test_least_squares_books_equal_a_dense_solution():
    vectors, weights = gaussian(300, 8).double(), torch.rand(300, generator=torch.Generator().manual_seed(2)) + 0.1
    codes = torch.randint(0, 5, (300, 2), generator=torch.Generator().manual_seed(3))
    design = torch.cat([torch.nn.functional.one_hot(codes[:, m], 5) for m in range(2)], 1).double()
    root = weights.double().sqrt()[:, None]
    dense = torch.linalg.lstsq(root * design, root * vectors, driver="gelsd").solution
    books = additive.refit_books(vectors.float(), weights, codes, torch.zeros(2, 5, 8))
    torch.testing.assert_close(design @ books.double().view(10, 8), design @ dense, rtol=0, atol=5e-3)


def test_unknown_effort_is_refused():
    with pytest.raises(PlanError, match="fast, normal, best"):
        encode_additive(gaussian(4, 8), AdditiveSpec(1), channels=8, taps=1, effort="huge")


def test_int16_books_cost_next_to_nothing():
    vectors, weights = gaussian(2000, 8), torch.ones(2000)
    books = additive.train(vectors, weights, AdditiveSpec(4), QUICK, 0)
    codes = additive.beam_search(vectors, books, 2)[:, None]
    integers, step = to_integers(books)
    exact, rounded = ((vectors - additive.decode_rows(b[None], codes)[:, 0]).square().sum()
                      for b in (books, integers.float() * step))
    assert abs(float(rounded / exact) - 1) < 1e-4


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(256, 320), (64, 40), (33, 63), (2, 24)])
def test_product_books_keep_their_limit_and_the_formula(bits, shape):
    matrix, spec = gaussian(*shape), ProductSpec(bits)
    layout = plan_layout(*shape, spec)
    part = encode_product(matrix, spec, channels=shape[1], taps=1)
    book_bits = part.codebooks.numel() * 16 / matrix.numel()
    assert book_bits <= spec.max_codebook_bits or (layout.bits == 1 and layout.blocks == 1)
    row_codes = -(-shape[1] // spec.group)
    code_bits = shape[0] * -(-row_codes // 8) * 8 * layout.bits
    assert stored_bits(part) == code_bits + layout.blocks * 2**layout.bits * spec.group * 16 + shape[0] * 16
    assert part.codebooks.shape == (layout.blocks, 1, 2**layout.bits, spec.group) and part.bits == layout.bits


def test_product_takes_as_many_blocks_as_are_paid_for():
    assert plan_layout(1280, 1280, ProductSpec(2)).blocks == 25
    assert plan_layout(10240, 1280, ProductSpec(2)).blocks == 200
    assert plan_layout(10240, 1280, ProductSpec(3)).blocks == 640
    assert plan_layout(8, 32, ProductSpec(2)).bits < 8


def test_members_of_blocks_follow_the_decoder():
    for blocks, positions in ((3, 10), (7, 7), (1, 5), (4, 9)):
        members, real = product.Layout(blocks, 8, 2, positions).members()
        listed = {int(p): b for b in range(blocks) for p in members[b][real[b]]}
        assert listed == {p: p * blocks // positions for p in range(positions)}


def test_books_by_position_halve_the_error_of_one_shared_book():
    """methods T8: columns of very different size, equal codebook size and group."""
    matrix = gaussian(768, 64) * torch.exp(1.5 * gaussian(16, seed=1)).repeat_interleave(4)
    many = encode_product(matrix, ProductSpec(2, max_codebook_bits=6.0), channels=64, taps=1)
    one = encode_product(matrix, ProductSpec(2, max_codebook_bits=0.34), channels=64, taps=1)
    assert many.codebooks.shape[0] == 16 and one.codebooks.shape[0] == 1
    assert many.codebooks.shape[2] == one.codebooks.shape[2] == 256
    assert error(many, matrix) < 0.5 * error(one, matrix)


def test_product_is_exact_on_its_books():
    books = gaussian(5, 16, 2)
    draw = torch.Generator().manual_seed(7)
    rows = [torch.cat([books[b][torch.randperm(16, generator=draw)] for b in range(5)]).flatten() for _ in range(8)]
    matrix = torch.stack(rows) * torch.linspace(0.5, 2, 8)[:, None]                      # 80 positions of 2
    spec = ProductSpec(3, max_codebook_bits=5 * 64 * 2 * 16 / matrix.numel())
    assert plan_layout(*matrix.shape, spec).blocks == 5
    assert error(encode_product(matrix, spec, channels=160, taps=1), matrix) < 1e-6
