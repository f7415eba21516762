// For test programs: buffers with forbidden pages around them, comparison, and a list of tests that fills itself.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#include "kernels.h"

// Whether buffers touch the forbidden page behind them or the one before them.
extern bool buffers_end_at_page;

// Elements between two pages that nobody may touch, initially NaN or all ones.
template <class T>
class Guarded {
  public:
    explicit Guarded(size_t n) : n_(n) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = n * sizeof(T);
        size_ = (bytes + page - 1) / page * page + 2 * page;
        start_ = (char*)mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (start_ == MAP_FAILED) abort();
        memset(start_, 0xff, size_);
        mprotect(start_, page, PROT_NONE);
        mprotect(start_ + size_ - page, page, PROT_NONE);
        data_ = (T*)(buffers_end_at_page ? start_ + size_ - page - bytes : start_ + page);
    }
    Guarded(const Guarded&) = delete;
    ~Guarded() { munmap(start_, size_); }
    T* data() { return data_; }
    size_t size() const { return n_; }
    T& operator[](size_t i) { return data_[i]; }

  private:
    char* start_;
    T* data_;
    size_t size_, n_;
};

// A tensor of either dtype with the values it holds exactly.
class Numbers {
  public:
    Numbers(size_t n, int32_t dtype) : dtype_(dtype), wide_(dtype ? 0 : n), narrow_(dtype ? n : 0) {}
    // Numbers between -size and size that look random and are always the same.
    Numbers(size_t n, int32_t dtype, float size, uint32_t seed) : Numbers(n, dtype) {
        uint32_t state = seed * 2654435761u + 1;
        for (size_t i = 0; i < n; i++) {
            state = state * 1664525u + 1013904223u;
            set(i, ((float)(state >> 8) / 8388608.0f - 1.0f) * size);
        }
    }
    void* data() { return dtype_ ? (void*)narrow_.data() : (void*)wide_.data(); }
    void set(size_t i, float x) {
        if (!dtype_) {
            wide_[i] = x;
            return;
        }
        uint32_t bits;
        memcpy(&bits, &x, 4);
        narrow_[i] = x != x ? (uint16_t)0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
    double operator[](size_t i) {
        if (!dtype_) return wide_[i];
        uint32_t bits = (uint32_t)narrow_[i] << 16;
        float x;
        memcpy(&x, &bits, 4);
        return x;
    }

  private:
    int32_t dtype_;
    Guarded<float> wide_;
    Guarded<uint16_t> narrow_;
};

// Stop the program where a number is not what it should be, but for rounding.
inline void expect(const char* what, double found, double wanted, int32_t dtype, double size = 1.0) {
    double tolerance = (dtype ? 1e-2 : 2e-5) * (fabs(wanted) + size);
    if (fabs(found - wanted) <= tolerance) return;
    fprintf(stderr, "%s on %s: %.9g instead of %.9g\n", what, gs_isa(), found, wanted);
    exit(1);
}

struct Test {
    Test(const char* name, void (*run)()) { list().push_back({name, run}); }
    struct Entry {
        const char* name;
        void (*run)();
    };
    static std::vector<Entry>& list() {
        static std::vector<Entry> all;
        return all;
    }
};
