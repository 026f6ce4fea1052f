"""Owns the vector code of kernels/viterbi_numba.py: LLVM instructions for the inner steps, as numba functions.

numba's own vectorizer turns the same loops into scatters (2 to 5 times slower). Everything here is plain LLVM that runs
on any processor; only the sum of two 16-bit products is named after the x86 instruction where there is one.
"""
from __future__ import annotations

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

INT8, INT16, INT32, INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_PAIR_SUMS = (("avx512bw", 16, "llvm.x86.avx512.pmaddw.d.512"), ("avx2", 8, "llvm.x86.avx2.pmadd.wd"))


def lanes() -> int:
    """int32 numbers in one vector of this processor."""
    features = binding.get_host_cpu_features()
    return next((n for flag, n, _ in _PAIR_SUMS if features.get(flag)), 8)


class _Code:
    """Short names for what the builders below need: vectors of `width` at an offset of an array argument."""

    def __init__(self, target, builder, signature, args):
        self.b, self.args, self._target, self._signature = builder, args, target, signature

    def data(self, i: int):
        array = self._target.make_array(self._signature.args[i])
        return array(self._target, self.b, value=self.args[i]).data

    def step(self, offset, by: int):
        return self.b.add(offset, ir.Constant(INT64, by))

    def times(self, offset, by: int):
        return self.b.mul(offset, ir.Constant(INT64, by))

    def _at(self, data, offset, kind, width):
        address = self.b.gep(self.b.bitcast(data, kind.as_pointer()), [offset])
        return self.b.bitcast(address, ir.VectorType(kind, width).as_pointer())

    def load(self, data, offset, kind, width):
        return self.b.load(self._at(data, offset, kind, width), align=kind.width // 8)

    def store(self, vector, data, offset):
        kind = vector.type.element
        self.b.store(vector, self._at(data, offset, kind, vector.type.count), align=kind.width // 8)

    def shuffle(self, first, second, places):
        return self.b.shuffle_vector(first, second, ir.Constant(ir.VectorType(INT32, len(places)), places))

    def splat(self, scalar, width):
        one = self.b.insert_element(ir.Constant(ir.VectorType(INT32, width), ir.Undefined), scalar,
                                    ir.Constant(INT32, 0))
        return self.shuffle(one, one, [0] * width)

    def minimum(self, vectors):
        best = vectors[0]
        for other in vectors[1:]:
            best = self.b.select(self.b.icmp_signed("<", best, other), best, other)
        return best

    def split(self, packed, fan):
        """Packed costs -> (their low bits as bytes, the rest)."""
        width = packed.type.count
        low = self.b.and_(packed, ir.Constant(packed.type, [fan - 1] * width))
        return (self.b.trunc(low, ir.VectorType(INT8, width)),
                self.b.and_(packed, ir.Constant(packed.type, [-fan] * width)))

    def pair_sums(self, pairs, factors):
        """int16 [2 n] x int16 [2 n] -> int32 [n], neighboring products added."""
        width = pairs.type.count // 2
        features = binding.get_host_cpu_features()
        for flag, n, name in _PAIR_SUMS:
            if n == width and features.get(flag):
                kind = ir.FunctionType(ir.VectorType(INT32, n), [pairs.type, pairs.type])
                known = self.b.module.globals.get(name)
                return self.b.call(known or ir.Function(self.b.module, kind, name), [pairs, factors])
        wide = ir.VectorType(INT32, width)
        products = [self.b.mul(self.b.sext(self.shuffle(pairs, pairs, places), wide),
                               self.b.sext(self.shuffle(factors, factors, places), wide))
                    for places in (list(range(0, 2 * width, 2)), list(range(1, 2 * width, 2)))]
        return self.b.add(*products)

    def zipped(self, vectors):
        """Vectors v0, v1, .. (a power of two) -> their lanes in turn: v0[0], v1[0], .., v0[1], v1[1], .."""
        if len(vectors) == 1:
            return vectors
        n, out = vectors[0].type.count, []
        for even, odd in zip(self.zipped(vectors[0::2]), self.zipped(vectors[1::2]), strict=True):
            for half in (0, n // 2):
                out.append(self.shuffle(even, odd, [half + i // 2 + n * (i % 2) for i in range(n)]))
        return out


def narrow_step(window: int, step_bits: int, vector: int):
    """(choose, extend, width, span): one step from costs to out, any window; state s is at place s.

    A group: the 2**step_bits states that share their predecessors; state s = group << step_bits | code.
    choose(costs, best, back, group) takes the minima of `width` groups; extend(best, out, base, entries, x0, x1, state)
    makes the costs of `span` states. entries: int16 [vector, 2**window], base: int32 [2**window].
    """
    fan, low = 1 << step_bits, 1 << (window - step_bits)
    width = min(lanes(), low)
    span = min(lanes(), low * fan)
    parents = max(1, span // fan)

    @intrinsic
    def choose(context, costs, best, back, group):
        def build(target, builder, signature, args):
            code = _Code(target, builder, signature, args)
            pointers, cost = code.split(code.minimum(
                [code.load(code.data(0), code.step(args[3], y * low), INT32, width) for y in range(fan)]), fan)
            code.store(pointers, code.data(2), args[3])
            code.store(cost, code.data(1), args[3])
            return target.get_dummy_value()

        return types.void(costs, best, back, types.int64), build

    @intrinsic
    def extend(context, best, out, base, entries, x0, x1, state):
        def build(target, builder, signature, args):
            code = _Code(target, builder, signature, args)
            group = builder.lshr(args[6], ir.Constant(INT64, step_bits))
            cost = code.load(code.data(0), group, INT32, parents)
            cost = code.shuffle(cost, cost, [i * parents // span for i in range(span)])
            cost = builder.add(cost, code.load(code.data(2), args[6], INT32, span))
            for v in range(vector):
                entry = code.load(code.data(3), code.step(args[6], v << window), INT16, span)
                cost = builder.sub(cost, builder.mul(builder.sext(entry, cost.type), code.splat(args[4 + v], span)))
            code.store(cost, code.data(1), args[6])
            return target.get_dummy_value()

        return types.void(best, out, base, entries, types.int32, types.int32, types.int64), build

    return choose, extend, width, span


def wide_step(window: int, step_bits: int, vector: int):
    """(choose, extend): one step in place, half of the memory of narrow_step. Needs groups / 2**step_bits >= lanes().

    State s = group << step_bits | code is at place code * groups + group, so that the states of one code are
    neighbors. choose(costs, best, back, place) takes the minima and puts them in order of their groups, own top bits
    added; extend(costs, best, base, pairs, factors, group) adds the new step's costs.
    """
    n, fan, groups = lanes(), 1 << step_bits, 1 << (window - step_bits)
    run = groups // fan                                       # groups that share code and top bits

    @intrinsic
    def choose(context, costs, best, back, place):
        def build(target, builder, signature, args):
            code = _Code(target, builder, signature, args)
            chosen = []
            for c in range(fan):
                first = code.step(args[3], c * groups)
                pointers, cost = code.split(code.minimum(
                    [code.load(code.data(0), code.step(first, y * run), INT32, n) for y in range(fan)]), fan)
                code.store(pointers, code.data(2), code.step(args[3], c * run))
                chosen.append(cost)
            for r, cost in enumerate(code.zipped(chosen)):
                group = code.step(code.times(args[3], fan), r * n)
                own = builder.trunc(builder.lshr(group, ir.Constant(INT64, window - 2 * step_bits)), INT32)
                code.store(builder.or_(cost, code.splat(own, n)), code.data(1), group)
            return target.get_dummy_value()

        return types.void(costs, best, back, types.int64), build

    @intrinsic
    def extend(context, costs, best, base, pairs, factors, group):
        def build(target, builder, signature, args):
            code = _Code(target, builder, signature, args)
            cost = code.load(code.data(1), args[5], INT32, n)
            factors = builder.bitcast(code.splat(args[4], n), ir.VectorType(INT16, 2 * n))
            for c in range(fan):
                place = code.step(args[5], c * groups)
                products = code.pair_sums(code.load(code.data(3), code.times(place, 2), INT16, 2 * n), factors)
                if vector == 2:
                    products = builder.add(products, code.load(code.data(2), place, INT32, n))
                code.store(builder.add(cost, products), code.data(0), place)
            return target.get_dummy_value()

        return types.void(costs, best, base, pairs, types.int32, types.int64), build

    return choose, extend, n
