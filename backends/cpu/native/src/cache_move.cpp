// Tokens from slot to slot, bit for bit, as if all were read before any is written.
#include "kernels.h"
#include "tile_rows.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// One side of a head between two caches of one format. A token is `words` words: K's dwords, or V's codes, a word for
// each, and last its scale where that is stored.
class Side {
public:
    Side(const CacheMove &c, const Piece &piece)
        : keys_(piece.keys), src_(keys_ ? c.src.k : c.src.v), dst_(keys_ ? c.dst.k : c.dst.v), c_(c), head_(piece.head) {
        const int32_t code = src_.code;
        bits_ = kv_bits(code);
        n_ = kv_per_dword(code);
        width_ = v_width(src_.dim);
        codes = keys_ ? k_vectors(code, src_.dim) : width_;
        code_bytes_ = keys_ ? k_code_bytes(code, src_.dim) : v_code_bytes(code, src_.dim);
        words = codes + (src_.granularity == SCALE_TOKEN_HEAD);
    }

    // Words [begin, end) of a token; in V, begin is a multiple of W.
    void take(int64_t slot, int64_t begin, int64_t end, uint32_t *to) const {
        const unsigned char *tile = tile_of_slot(src_, c_.src.heads, c_.src.tiles, head_, slot);
        const int t = int(slot % TILE);
        const int64_t last = std::min(end, codes);
        if (keys_)
            for (int64_t i = begin; i < last; i++) std::memcpy(to + i - begin, tile + (i * TILE + t) * 4, 4);
        else
            for (int64_t i = begin; i < last; i += W) {
                U v = take_field(tile + (t / n_ * width_ + i) * 4, bits_, kv_shift(src_.code, t % n_));
                __builtin_memcpy(to + i - begin, &v, sizeof v);
            }
        if (end > codes) std::memcpy(to + codes - begin, tile + code_bytes_ + t * 4, 4);
    }

    void put(int64_t slot, int64_t begin, int64_t end, const uint32_t *from) const {
        unsigned char *tile = tile_of_slot(dst_, c_.dst.heads, c_.dst.tiles, head_, slot);
        const int t = int(slot % TILE);
        const int64_t last = std::min(end, codes);
        if (keys_)
            for (int64_t i = begin; i < last; i++) std::memcpy(tile + (i * TILE + t) * 4, from + i - begin, 4);
        else
            for (int64_t i = begin; i < last; i += W)
                put_field(tile + (t / n_ * width_ + i) * 4, bits_, kv_shift(dst_.code, t % n_), load_as<U>(from + i - begin));
        if (end > codes) std::memcpy(tile + code_bytes_ + t * 4, from + codes - begin, 4);
    }

    int64_t words, codes;

private:
    bool keys_;
    const KVTiles &src_, &dst_;
    const CacheMove &c_;
    int64_t head_, width_, code_bytes_;
    int bits_, n_;
};

void cache_move(const Command *command, Worker &worker) {
    const CacheMove &c = *static_cast<const CacheMove *>(command);
    const CacheMoves &b = *c.batch;
    const bool within = c.src.k.data == c.dst.k.data, buffered = within && b.overlaps;
    const int64_t bytes = b.scratch ? b.scratch_bytes : int64_t(OWN_BYTES);
    uint32_t *scratch = reinterpret_cast<uint32_t *>(b.scratch ? b.scratch + worker.index * bytes : worker.own);
    // Within a cache one thread does all of a side: its sources may lie in tiles that it writes.
    const Pieces pieces(b.dst, b.count, c.dst.heads, within ? std::max<int64_t>(1, b.count) : CHUNK, true);
    int64_t begin, end;
    worker.share(pieces.total(), begin, end);
    for (int64_t i = begin; i < end; i++) {
        const Piece piece = pieces[i];
        const Side side(c, piece);
        if (!buffered) {
            for (int64_t m = piece.begin; m < piece.end; m++) {
                side.take(b.src[m], 0, side.words, scratch);
                side.put(b.dst[m], 0, side.words, scratch);
            }
            continue;
        }
        // As many words at a time as all tokens have room for: a multiple of 16, to which the scale is added. With
        // MOVE_BYTES for each token there is room for 16 words, or for the scale.
        for (int64_t first = 0; first < side.words;) {
            int64_t room = bytes / 4 / b.count;
            int64_t last = room >= side.words - first ? side.words : std::min(first + room / 16 * 16, side.codes);
            for (int64_t m = 0; m < b.count; m++) side.take(b.src[m], first, last, scratch + m * (last - first));
            for (int64_t m = 0; m < b.count; m++) side.put(b.dst[m], first, last, scratch + m * (last - first));
            first = last;
        }
    }
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
