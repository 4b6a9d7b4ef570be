// Write, read, move and copy over caches of every code, bit for bit: each leaves exactly the bytes that the pinned
// quantizer and the layout ask for, and no other byte of the cache is touched.
#include "caches.h"

using namespace opsocket;
using namespace opsocket::OPSOCKET_LEVEL;
using test::Array, test::CachePair, test::KVFormat, test::Matrix, test::Random, test::Tiles;

// The code nearest to x, which has been divided by its scale, ties to even; NaN by its kind.
static uint32_t nearest(int32_t code, float x) {
    if (code == KV_F32) {
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        return bits;
    }
    if (code == KV_F16) return float_to_half(x);
    if (code == KV_BF16) return float_to_bf16(x);
    if (kv_is_integer(code)) {
        const float top = kv_max_code(code), y = std::isnan(x) ? 0 : std::fmin(std::fmax(std::nearbyint(x), -top), top);
        return uint32_t(int(y) + kv_offset(code)) & ((1u << kv_bits(code)) - 1);
    }
    const uint32_t sign = std::signbit(x) ? 0x80 : 0;
    if (std::isnan(x)) return code == KV_F8E4M3FNUZ ? 0x80 : 0x7f | sign;
    const double size = std::fmin(std::fabs(double(x)), double(kv_max_code(code)));
    uint32_t best = 0;
    for (uint32_t c = 1; c < 0x80; c++) {
        const double old = std::fabs(test::value_of(code, best) - size),
                     now = std::fabs(test::value_of(code, c) - size);
        if (now < old || (now == old && c % 2 == 0)) best = c;
    }
    return best == 0 && code == KV_F8E4M3FNUZ ? 0 : best | sign;  // which has no -0
}

// A token of one head, written by plain arithmetic.
static void write_token(Tiles &tiles, int64_t slot, int64_t head, const std::vector<float> &x) {
    const KVTiles &f = tiles.facts;
    std::vector<float> values = x;
    if (f.granularity == SCALE_TOKEN_HEAD) {
        float most = 0;
        for (float v : x)
            if (!(std::fabs(v) <= most) && most == most) most = std::fabs(v);
        float scale = most / kv_max_code(f.code);
        if (f.scale_dtype == F16) scale = half_to_float(float_to_half(scale));
        *tiles.stored_scale(slot, head) = scale;
        if (scale == 0) std::fill(values.begin(), values.end(), 0.0f);
    }
    for (int64_t d = 0; d < tiles.padded(); d++) {
        const float scale = tiles.scale(slot, head, d), value = d < f.dim ? values[size_t(d)] : 0;
        tiles.set_code(slot, head, d,
                       nearest(f.code, f.granularity == SCALE_NONE || scale == 0 ? value : value / scale));
    }
}

static bool same_bytes(Tiles &a, Tiles &b) {
    return a.bytes().size() == b.bytes().size() &&
           !std::memcmp(a.bytes().data(), b.bytes().data(), size_t(a.bytes().size()));
}

struct Sizes {
    int64_t heads, tiles, blocks, dim_k, dim_v;
};

static Sizes some_sizes(Random &random) {
    const int64_t dims[] = {1, 7, 16, 20, 40, 64, 80, 128};
    return {1 + random.below(3), 1 + random.below(2), 2 + random.below(6), dims[random.below(8)],
            dims[random.below(8)]};
}

// The same content whenever `random` is the same: once for the kernel, once for plain code.
static CachePair some_cache(Random random, const KVFormat &k, const KVFormat &v, const Sizes &s, bool filled) {
    CachePair pair{Tiles(random, k, true, s.dim_k, s.heads, s.tiles, s.blocks),
                   Tiles(random, v, false, s.dim_v, s.heads, s.tiles, s.blocks)};
    for (int64_t slot = 0; filled && slot < pair.k.slots(); slot++)
        pair.k.fill(random, slot), pair.v.fill(random, slot);
    return pair;
}

static std::vector<int64_t> some_slots(Random &random, int64_t slots, int64_t count) {
    std::vector<int64_t> all(static_cast<size_t>(slots));
    for (int64_t i = 0; i < slots; i++) all[size_t(i)] = i;
    for (int64_t i = slots - 1; i > 0; i--) std::swap(all[size_t(i)], all[size_t(random.below(i + 1))]);
    all.resize(size_t(std::min(count, slots)));
    return all;
}

static void by_tile(std::vector<int64_t> &slots) {
    std::stable_sort(slots.begin(), slots.end(), [](int64_t a, int64_t b) { return a / TILE < b / TILE; });
}

// As a prompt has them: those of each tile in order, and most tiles whole.
static void in_order(Random &random, std::vector<int64_t> &slots, int64_t all) {
    const int64_t first = random.below(std::min<int64_t>(TILE, all - int64_t(slots.size()) + 1));
    for (size_t i = 0; i < slots.size(); i++) slots[i] = first + int64_t(i);
    if (slots.size() > 40) slots.erase(slots.begin() + 20 + random.below(20));
}

static void write_and_read(Random &random, const KVFormat &k_format, const KVFormat &v_format, const Sizes &sizes) {
    const int64_t heads = sizes.heads, dim_k = sizes.dim_k, dim_v = sizes.dim_v;
    CachePair got = some_cache(random, k_format, v_format, sizes, false),
              want = some_cache(random, k_format, v_format, sizes, false);
    std::vector<int64_t> slots = some_slots(random, got.k.slots(), 1 + random.below(150));
    if (random.below(2)) by_tile(slots);
    else in_order(random, slots, got.k.slots());
    const int64_t count = int64_t(slots.size());
    const int32_t dtype = int32_t(random.below(3));
    Matrix k = Matrix::random(random, count + 1, heads * dim_k, 3, dtype),
           v = Matrix::random(random, count + 1, heads * dim_v, 0, dtype);
    for (int64_t i = 0; i < heads * dim_k; i++) k.set(count / 2, i, 0), k.set(0, i, 1e-30);
    v.set(count / 3, 0, NAN), v.set(count / 4, 0, -INFINITY), k.set(count / 5, 0, 3e4);
    Array<int64_t> at(slots), rows(count);
    for (int64_t i = 0; i < count; i++) rows[i] = count - i;  // row 0 is skipped
    const CacheSlots batch{count, at.data(), rows.data()};
    CacheWrite write{};
    write.op = OP_CACHE_WRITE, write.wait = 1, write.cache = got.facts(), write.batch = &batch, write.dtype = dtype;
    write.k = k.data(), write.k_stride = k.stride, write.v = v.data(), write.v_stride = v.stride;
    for (int64_t i = 0; i < count; i++)
        for (int64_t head = 0; head < heads; head++)
            for (bool keys : {true, false}) {
                std::vector<float> token;
                const Matrix &x = keys ? k : v;
                const int64_t dim = keys ? dim_k : dim_v;
                for (int64_t d = 0; d < dim; d++) token.push_back(float(x.at(rows[i], head * dim + d)));
                write_token(keys ? want.k : want.v, at[i], head, token);
            }
    for (int threads : {1, 2}) {
        std::memset(got.k.bytes().data(), 0xff, size_t(got.k.bytes().size()));
        std::memset(got.v.bytes().data(), 0xff, size_t(got.v.bytes().size()));
        test::run(write, threads, "cache_write");
        CHECK(same_bytes(got.k, want.k), "K of code %d granularity %d, %d dims, %d threads", k_format.code,
              k_format.granularity, int(dim_k), threads);
        CHECK(same_bytes(got.v, want.v), "V of code %d granularity %d, %d dims, %d threads", v_format.code,
              v_format.granularity, int(dim_v), threads);
    }
    // In another order, with a slot twice, as another type.
    std::reverse(slots.begin(), slots.end());
    slots.push_back(slots[0]);
    Array<int64_t> read_at(slots), read_rows(count + 1);
    for (int64_t i = 0; i <= count; i++) read_rows[i] = i;
    const CacheSlots read_batch{count + 1, read_at.data(), read_rows.data()};
    const int32_t read_dtype = int32_t(random.below(3));
    Matrix k_out(count + 1, heads * dim_k, 0, read_dtype), v_out(count + 1, heads * dim_v, 0, read_dtype);
    CacheRead read{};
    read.op = OP_CACHE_READ, read.wait = 1, read.cache = want.facts(), read.batch = &read_batch,
    read.dtype = read_dtype;
    read.k = k_out.data(), read.v = v_out.data();
    for (int threads : {1, 2}) {
        k_out.clear(), v_out.clear();
        test::run(read, threads, "cache_read");
        for (int64_t i = 0; i <= count; i++)
            for (bool keys : {true, false}) {
                const Tiles &tiles = keys ? want.k : want.v;
                const Matrix &out = keys ? k_out : v_out;
                for (int64_t j = 0; j < out.width; j++) {
                    const int64_t head = j / tiles.facts.dim, d = j % tiles.facts.dim;
                    const double y = out.at(i, j), x = test::rounded(tiles.value(read_at[i], head, d), read_dtype);
                    CHECK(y == x || (std::isnan(y) && std::isnan(x)),
                          "%s of code %d granularity %d, token %d column %d: %g, not %g", keys ? "K" : "V",
                          tiles.facts.code, tiles.facts.granularity, int(i), int(j), y, x);
                }
            }
    }
}

// One token as its bits: codes, then the scale.
static std::vector<uint32_t> take(const Tiles &tiles, int64_t slot, int64_t head) {
    std::vector<uint32_t> bits;
    for (int64_t d = 0; d < tiles.padded(); d++) bits.push_back(tiles.code(slot, head, d));
    if (tiles.facts.granularity == SCALE_TOKEN_HEAD) {
        bits.push_back(0);
        std::memcpy(&bits.back(), tiles.stored_scale(slot, head), 4);
    }
    return bits;
}

static void put(Tiles &tiles, int64_t slot, int64_t head, const std::vector<uint32_t> &bits) {
    for (int64_t d = 0; d < tiles.padded(); d++) tiles.set_code(slot, head, d, bits[size_t(d)]);
    if (tiles.facts.granularity == SCALE_TOKEN_HEAD) std::memcpy(tiles.stored_scale(slot, head), &bits.back(), 4);
}

// Whether entries of a batch overlap, as cache.py finds it.
static bool overlap(const std::vector<int64_t> &src, const std::vector<int64_t> &dst) {
    return std::any_of(src.begin(), src.end(),
                       [&](int64_t s) { return std::find(dst.begin(), dst.end(), s) != dst.end(); });
}

// scratch: memory of the batch's own, which has room for 16 words of each token, or for all where it is none.
static void move(Random &random, const KVFormat &k_format, const KVFormat &v_format, const Sizes &sizes, bool within,
                 bool own_scratch) {
    std::vector<int64_t> dst = some_slots(random, sizes.blocks * sizes.tiles * TILE, 1 + random.below(200)), src;
    for (size_t i = 0; i < dst.size(); i++) src.push_back(random.below(sizes.blocks * sizes.tiles * TILE));
    by_tile(dst);
    for (int threads : {1, 2}) {
        CachePair got = some_cache(random, k_format, v_format, sizes, true),
                  want = some_cache(random, k_format, v_format, sizes, true);
        Random another;
        // With the static scales of the other, as the interface asks.
        CachePair other = some_cache(another, k_format, v_format, sizes, true);
        const int64_t count = int64_t(dst.size()), each = count * MOVE_BYTES;
        Array<int64_t> from(src), to(dst);
        Array<unsigned char> scratch(own_scratch ? threads * each : 0);
        const CacheMoves batch{count, from.data(),      to.data(), own_scratch ? scratch.data() : nullptr,
                               each,  overlap(src, dst)};
        CacheMove command{};
        command.op = OP_CACHE_MOVE, command.wait = 1, command.batch = &batch;
        command.src = (within ? got : other).facts(), command.dst = got.facts();
        for (bool keys : {true, false}) {
            Tiles &plane = keys ? want.k : want.v;
            const Tiles &source = within ? plane : keys ? other.k : other.v;
            for (int64_t head = 0; head < plane.heads; head++) {
                std::vector<std::vector<uint32_t>> tokens;
                for (int64_t s : src) tokens.push_back(take(source, s, head));
                for (size_t i = 0; i < dst.size(); i++) put(plane, dst[i], head, tokens[i]);
            }
        }
        test::run(command, threads, "cache_move");
        CHECK(same_bytes(got.k, want.k), "K of code %d, %d threads, within %d", k_format.code, threads, within);
        CHECK(same_bytes(got.v, want.v), "V of code %d, %d threads, within %d", v_format.code, threads, within);
    }
}

// Blocks of any bytes: shorter and longer than the strips that they are cut into.
static void copy_blocks(Random &random, bool within, bool own_scratch) {
    const int64_t blocks = 2 + random.below(8), sizes[] = {64, 192, 4096, 40000 / 64 * 64, 70016};
    const int64_t bytes[2] = {sizes[random.below(5)], sizes[random.below(5)]};
    std::vector<int64_t> dst = some_slots(random, blocks, 1 + random.below(blocks)), src;
    for (size_t i = 0; i < dst.size(); i++) src.push_back(random.below(blocks));
    for (int threads : {1, 2}) {
        const int64_t count = int64_t(dst.size()), each = count * MOVE_BYTES;
        Array<int64_t> from(src), to(dst);
        Array<unsigned char> scratch(own_scratch ? threads * each : 0);
        const CacheMoves batch{count, from.data(),      to.data(), own_scratch ? scratch.data() : nullptr,
                               each,  overlap(src, dst)};
        CacheCopyBlocks command{};
        command.op = OP_CACHE_COPY_BLOCKS, command.wait = 1, command.batch = &batch;
        std::vector<Array<unsigned char>> planes;
        std::vector<std::vector<unsigned char>> want;
        for (int plane = 0; plane < 2; plane++) {
            Array<unsigned char> a(blocks * bytes[plane]), b(blocks * bytes[plane]);
            for (int64_t i = 0; i < a.size(); i++) a[i] = uint8_t(random.bits()), b[i] = uint8_t(random.bits());
            std::vector<unsigned char> after(b.data(), b.data() + b.size());
            const Array<unsigned char> &source = within ? b : a;
            for (int64_t i = 0; i < count; i++)
                std::copy_n(source.data() + src[size_t(i)] * bytes[plane], bytes[plane],
                            after.data() + dst[size_t(i)] * bytes[plane]);
            command.src[plane] = source.data(), command.dst[plane] = b.data(),
            command.block_bytes[plane] = bytes[plane];
            planes.push_back(std::move(a)), planes.push_back(std::move(b)), want.push_back(std::move(after));
        }
        test::run(command, threads, "cache_copy_blocks");
        for (size_t plane = 0; plane < 2; plane++)
            CHECK(!std::memcmp(command.dst[plane], want[plane].data(), want[plane].size()),
                  "plane %d, %d blocks of %d, within %d, %d threads", int(plane), int(blocks), int(bytes[plane]),
                  within, threads);
    }
}

int main() {
    test::use_this_level();
    Random random;
    for (int32_t code = 0; code < KV_CODES; code++)
        for (int round = 0; round < 6; round++) {
            const int32_t other = round < 3 ? code : int32_t(random.below(KV_CODES));
            write_and_read(random, test::some_format(random, code), test::some_format(random, other),
                           some_sizes(random));
            move(random, test::some_format(random, code), test::some_format(random, other), some_sizes(random),
                 round % 2 == 0, round % 3 == 0);
        }
    const Sizes longest{1, 1, 1, 1 << 16, 1 << 16};  // layouts.py; a token has to lie in a thread's own memory
    for (int32_t code : {KV_F32, KV_I8}) {
        const KVFormat format{code, code == KV_F32 ? SCALE_NONE : SCALE_CHANNEL, F32};
        write_and_read(random, format, format, longest);
        move(random, format, format, longest, true, false);
    }
    for (int round = 0; round < 24; round++) copy_blocks(random, round % 2 == 0, round % 3 == 0);
    return test::failures();
}
