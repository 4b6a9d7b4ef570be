// Arrays that catch a kernel which touches one element too many, and the entry point that Python calls.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <vector>

#include "check.h"
#include "simd.h"

extern "C" int32_t opsocket_run(const opsocket::Command *const *commands, int64_t count, int32_t threads);
extern "C" int32_t opsocket_run_one(const opsocket::Command *command, int32_t threads);

namespace test {

// Bytes of exactly the size asked for. The address sanitizer guards them on both sides; without it no page follows the
// last byte, and a pattern stands before the first. The first byte is 64-byte aligned where the size is whole lines.
class Bytes {
   public:
    explicit Bytes(int64_t size, unsigned char fill) : size_(size) {
#if defined(__SANITIZE_ADDRESS__)
        void *memory = nullptr;
        if (posix_memalign(&memory, 64, size_t(size))) throw std::bad_alloc();
        data_ = static_cast<unsigned char *>(memory);
#else
        const int64_t page = sysconf(_SC_PAGESIZE);
        mapped_ = (size + 64 + page - 1) / page * page;
        void *memory =
            mmap(nullptr, size_t(mapped_ + page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        start_ = static_cast<unsigned char *>(memory);
        data_ = start_ + mapped_ - size;
        std::memset(start_, BEFORE, size_t(data_ - start_));
        mprotect(start_ + mapped_, size_t(page), PROT_NONE);
        mapped_ += page;
#endif
        std::memset(data_, fill, size_t(size));
    }
    Bytes(Bytes &&other) noexcept { swap(other); }
    Bytes &operator=(Bytes &&other) noexcept {
        swap(other);
        return *this;
    }
    ~Bytes() {
#if defined(__SANITIZE_ADDRESS__)
        std::free(data_);
#else
        if (!start_) return;
        bool whole = true;
        for (unsigned char *p = start_; p < data_; p++) whole &= *p == BEFORE;
        CHECK(whole, "something was written before the first of %lld bytes", (long long)size_);
        munmap(start_, size_t(mapped_));
#endif
    }

    unsigned char *data() const { return data_; }
    int64_t size() const { return size_; }

   private:
    static constexpr unsigned char BEFORE = 0xb5;
    unsigned char *data_ = nullptr, *start_ = nullptr;
    int64_t size_ = 0, mapped_ = 0;

    void swap(Bytes &other) {
        std::swap(data_, other.data_), std::swap(start_, other.start_);
        std::swap(size_, other.size_), std::swap(mapped_, other.mapped_);
    }
};

template <class T>
class Array {
   public:
    explicit Array(int64_t count = 0, unsigned char fill = 0xff)
        : count_(count), bytes_(count * int64_t(sizeof(T)), fill) {}
    explicit Array(const std::vector<T> &values) : Array(int64_t(values.size())) {
        std::copy(values.begin(), values.end(), data());
    }
    T *data() const { return reinterpret_cast<T *>(bytes_.data()); }
    T &operator[](int64_t i) const { return data()[i]; }
    int64_t size() const { return count_; }

   private:
    int64_t count_;
    Bytes bytes_;
};

// A matrix of any float type, its rows `width + gap` apart, without a gap after the last. All of it is NaN at first:
// what a kernel reads between rows shows in its results, and `gaps_are_whole` tells what it wrote there.
class Matrix {
   public:
    const int64_t rows, width, stride;
    const int32_t dtype;

    Matrix(int64_t rows, int64_t width, int64_t gap, int32_t dtype)
        : rows(rows),
          width(width),
          stride(width + gap),
          dtype(dtype),
          bytes_((rows ? (rows - 1) * stride + width : 0) * (dtype == opsocket::F32 ? 4 : 2), 0xff) {}

    static Matrix random(Random &random, int64_t rows, int64_t width, int64_t gap, int32_t dtype, double size = 1) {
        Matrix m(rows, width, gap, dtype);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < width; i++) m.set(r, i, size * random.normal());
        return m;
    }

    void *data() const { return bytes_.data(); }
    double at(int64_t row, int64_t i) const {
        return double(opsocket::OPSOCKET_LEVEL::load_one(bytes_.data(), row * stride + i, dtype));
    }
    void set(int64_t row, int64_t i, double x) {
        opsocket::OPSOCKET_LEVEL::store_one(bytes_.data(), row * stride + i, dtype, float(x));
    }
    void clear() { std::memset(bytes_.data(), 0xff, size_t(bytes_.size())); }

    bool gaps_are_whole() const {
        const int64_t element = dtype == opsocket::F32 ? 4 : 2;
        for (int64_t row = 0; row + 1 < rows; row++)
            for (int64_t i = (row * stride + width) * element; i < (row + 1) * stride * element; i++)
                if (bytes_.data()[i] != 0xff) return false;
        return true;
    }

   private:
    Bytes bytes_;
};

constexpr double UNIT = 0x1p-24;  // of rounding to f32

// The value of a float type that is nearest to x.
inline double rounded(double x, int32_t dtype) {
    float memory;
    opsocket::OPSOCKET_LEVEL::store_one(&memory, 0, dtype, float(x));
    return double(opsocket::OPSOCKET_LEVEL::load_one(&memory, 0, dtype));
}

// Whether y, of a float type, may be the rounded result of a computation that is `error` off before.
inline bool near(double y, double want, double error, int32_t dtype = opsocket::F32) {
    if (std::isnan(want) || std::isnan(y)) return std::isnan(want) && std::isnan(y);
    if (y == want) return true;
    const double unit = dtype == opsocket::F32 ? UNIT : dtype == opsocket::F16 ? 0x1p-11 : 0x1p-8;
    const double least = dtype == opsocket::F16 ? 0x1p-25 : 0x1p-150;
    return std::fabs(y - want) <= error + (std::fabs(want) + error) * unit + least;
}

// A command by the library's entry point; `what` is for the message.
inline void run(const opsocket::Command &command, int threads, const char *what) {
    int32_t status = opsocket_run_one(&command, threads);
    CHECK(status == 0, "%s: status %d", what, status);
}

}  // namespace test
