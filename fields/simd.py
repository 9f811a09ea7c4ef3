"""Matrix products of small blocks as LLVM vector instructions, for numba kernels.

Loops of numba keep sums in memory; these keep a block of sums in registers, which is about three
times as fast. Matrices are given by addresses and strides in float32 numbers. Columns are samples:
a multiple of `COLUMNS` of them lie next to each other.
"""

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# Numbers of a vector register, and rows and vectors of the block that fits the registers.
_HAS_AVX512 = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
LANES, ROWS, VECTORS = (16, 8, 2) if _HAS_AVX512 else (8, 4, 2)
COLUMNS = LANES * VECTORS

# Rows of each factor whose products `add_outer` sums at once.
OUTER_ROWS = 4 if _HAS_AVX512 else 2

_F32, _I64 = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_F32, LANES)


class _Code:
    """Writes LLVM instructions on addresses and vectors."""

    def __init__(self, builder):
        self.builder = builder

    def element(self, base, index):
        """The address of an element."""
        return self.builder.add(base, self.builder.mul(index, _I64(4)))

    def vector(self, address, count=0):
        """The `count`-th vector from an address."""
        return self.builder.load(self._pointer(address, count), align=4)

    def store(self, value, address, count=0):
        self.builder.store(value, self._pointer(address, count), align=4)

    def broadcast(self, address):
        """A vector of copies of one number."""
        builder, undefined = self.builder, ir.Constant(_VECTOR, ir.Undefined)
        number = builder.load(builder.inttoptr(address, _F32.as_pointer()), align=4)
        vector = builder.insert_element(undefined, number, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(vector, undefined, zeros)

    def multiply_add(self, a, b, total):
        product = self.builder.fmul(a, b, flags=["contract"])
        return self.builder.fadd(product, total, flags=["contract"])

    def sums(self, count, first, terms):
        """Sums of `terms(i)`, a list of pairs of vectors to multiply, over i < count.

        first: what the sums start from. Count is at least 1.
        """
        builder = self.builder
        before = builder.block
        loop, end = (builder.append_basic_block(name) for name in ("sums", "sums.end"))
        builder.branch(loop)
        builder.position_at_end(loop)
        i = builder.phi(_I64)
        i.add_incoming(_I64(0), before)
        totals = [builder.phi(_VECTOR) for _ in first]
        for total, start in zip(totals, first, strict=True):
            total.add_incoming(start, before)
        results = [self.multiply_add(*pair, total)
                   for pair, total in zip(terms(i), totals, strict=True)]
        following = builder.add(i, _I64(1))
        i.add_incoming(following, loop)
        for total, result in zip(totals, results, strict=True):
            total.add_incoming(result, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, end)
        builder.position_at_end(end)
        return results

    def _pointer(self, address, count):
        address = self.builder.add(address, _I64(4 * LANES * count))
        return self.builder.inttoptr(address, _VECTOR.as_pointer())


@intrinsic
def add_product(typing_context, w, row_stride, inner_stride, x, x_stride, y, y_stride, inner):
    """y[r, c] += sum_k w[r, k] x[k, c] for `ROWS` rows r, `COLUMNS` columns c and k < inner.

    w, x, y: addresses; w[r, k] lies at r * row_stride + k * inner_stride.
    """
    def generate(context, builder, signature, args):
        w, row_stride, inner_stride, x, x_stride, y, y_stride, inner = args
        code = _Code(builder)
        rows = [code.element(y, builder.mul(y_stride, _I64(r))) for r in range(ROWS)]

        def terms(k):
            x_row = code.element(x, builder.mul(x_stride, k))
            w_column = code.element(w, builder.mul(inner_stride, k))
            x_vectors = [code.vector(x_row, v) for v in range(VECTORS)]
            pairs = []
            for r in range(ROWS):
                factor = code.broadcast(
                    code.element(w_column, builder.mul(row_stride, _I64(r))))
                pairs += [(factor, vector) for vector in x_vectors]
            return pairs

        first = [code.vector(row, v) for row in rows for v in range(VECTORS)]
        results = code.sums(inner, first, terms)
        for index, result in enumerate(results):
            code.store(result, rows[index // VECTORS], index % VECTORS)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 8), generate


@intrinsic
def add_outer(typing_context, a, a_stride, b, b_stride, sums, sums_stride, blocks):
    """sums[i, j, l] += sum_c a[i, c LANES + l] b[j, c LANES + l] for c < blocks.

    i and j: `OUTER_ROWS` rows of each factor. a, b, sums: addresses; sums[i, j] lies at
    i * sums_stride + j * LANES. The sums over l are left to the caller.
    """
    def generate(context, builder, signature, args):
        a, a_stride, b, b_stride, sums, sums_stride, blocks = args
        code, count = _Code(builder), range(OUTER_ROWS)
        rows = [code.element(sums, builder.mul(sums_stride, _I64(i))) for i in count]

        def terms(c):
            shift = builder.mul(c, _I64(LANES))
            vectors = [[code.vector(code.element(base, builder.add(
                builder.mul(stride, _I64(i)), shift))) for i in count]
                for base, stride in ((a, a_stride), (b, b_stride))]
            return [(vectors[0][i], vectors[1][j]) for i in count for j in count]

        first = [code.vector(rows[i], j) for i in count for j in count]
        results = code.sums(blocks, first, terms)
        for index, result in enumerate(results):
            code.store(result, rows[index // OUTER_ROWS], index % OUTER_ROWS)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), generate
