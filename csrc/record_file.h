// Random access to the records of a file larger than memory: many reads in flight, past the page cache (O_DIRECT).
// Through a memory mapping, each read would trigger the kernel's read-ahead.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "thread_pool.h"

namespace fastdm {

constexpr int kReadsInFlight = 32;
constexpr int64_t kMostAlignment = 4096;  // of direct reads

// Threads that mostly wait for reads; all files share them.
inline ThreadPool& reading_pool() {
    static ThreadPool* pool = new ThreadPool(kReadsInFlight);
    return *pool;
}

struct ReadError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class RecordFile {
public:
    explicit RecordFile(std::string path) : path_(std::move(path)) {
        for (const int64_t alignment : {int64_t{512}, kMostAlignment}) {
            if (open_direct(alignment)) return;
        }
        file_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
        if (file_ < 0) throw ReadError("cannot open " + path_ + ": " + std::strerror(errno));
#if defined(POSIX_FADV_RANDOM)
        posix_fadvise(file_, 0, 0, POSIX_FADV_RANDOM);
#endif
    }

    ~RecordFile() { close(file_); }

    RecordFile(const RecordFile&) = delete;
    RecordFile& operator=(const RecordFile&) = delete;

    // False where the file system does not support direct reads, which then go through the page cache.
    bool direct() const { return alignment_ > 1; }

    // out[i] = the `bytes` bytes at first + index[i] * bytes.
    void read(int64_t first, int64_t bytes, const int64_t* index, int64_t n, uint8_t* out) {
        const int64_t buffer_bytes = bytes + 2 * alignment_;
        reading_pool().run(n, 1 + n / (kReadsInFlight * 8), [&](int64_t begin, int64_t end) {
            const AlignedBytes buffer = aligned_bytes(buffer_bytes);
            for (int64_t i = begin; i < end; ++i) {
                const int64_t offset = first + index[i] * bytes;
                const int64_t start = offset / alignment_ * alignment_;
                const int64_t stop = (offset + bytes + alignment_ - 1) / alignment_ * alignment_;
                read_aligned(buffer.get(), start, stop - start, offset + bytes - start);
                std::memcpy(out + i * bytes, buffer.get() + (offset - start), static_cast<size_t>(bytes));
            }
        });
    }

private:
    struct Free {
        void operator()(uint8_t* memory) const { std::free(memory); }
    };
    using AlignedBytes = std::unique_ptr<uint8_t, Free>;

    static AlignedBytes aligned_bytes(int64_t bytes) {
        void* memory = nullptr;
        if (posix_memalign(&memory, kMostAlignment, static_cast<size_t>(bytes)) != 0) throw std::bad_alloc();
        return AlignedBytes(static_cast<uint8_t*>(memory));
    }

    bool open_direct(int64_t alignment) {
#if defined(O_DIRECT)
        const int file = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
        if (file < 0) return false;
        const AlignedBytes probe = aligned_bytes(alignment);
        if (pread(file, probe.get(), static_cast<size_t>(alignment), alignment) >= 0) {
            file_ = file;
            alignment_ = alignment;
            return true;
        }
        close(file);
#endif
        return false;
    }

    // Reads up to `bytes` bytes. The file may end before the last of them, but not within the first `needed`.
    void read_aligned(uint8_t* to, int64_t offset, int64_t bytes, int64_t needed) const {
        for (int64_t done = 0; done < needed;) {
            const ssize_t got = pread(file_, to + done, static_cast<size_t>(bytes - done), offset + done);
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) throw ReadError("cannot read " + path_ + ": " + std::strerror(errno));
            if (done + got >= needed) return;
            if (got < alignment_) throw ReadError(path_ + " ends early: it was truncated after it was opened");
            done += got / alignment_ * alignment_;
        }
    }

    std::string path_;
    int file_ = -1;
    int64_t alignment_ = 1;
};

}  // namespace fastdm
