// Threads that sleep until there is work, take blocks of it in turn, and sleep again. They never spin: on a shared
// machine a waiting thread must not occupy a core.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace fastdm {

constexpr int kMostThreads = 1024;

class ThreadPool {
public:
    using Body = std::function<void(int64_t begin, int64_t end)>;

    // `threads` includes the caller of run(). Where the system has no more threads, or no memory for them, those that
    // started do the work.
    explicit ThreadPool(int threads) : owner_(getpid()) {
        sleepers_.reserve(static_cast<size_t>(threads));
        try {
            for (int i = 1; i < threads; ++i) sleepers_.emplace_back([this] { sleep_and_help(); });
        } catch (const std::system_error&) {
        }
    }

    ~ThreadPool() {
        {
            std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (std::thread& sleeper : sleepers_) sleeper.join();
    }

    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return static_cast<int>(sleepers_.size()) + 1; }

    // How many threads work on what the calling thread runs, itself included.
    static int& allowed() {
        thread_local int allowed = kMostThreads;
        return allowed;
    }

    // Calls body on blocks of [0, count), on at most `limit` threads (0: all) and as many as the calling thread may
    // use. The caller is one of them, and returns when every block is done. The first exception thrown by a body stops
    // the rest and is rethrown here. A caller works alone if the pool is busy, or in a fork of the process that owns
    // the threads.
    void run(int64_t count, int64_t block, const Body& body, int limit = 0) {
        if (count <= 0) return;
        const int64_t blocks = (count + block - 1) / block;
        const int64_t workers = std::min<int64_t>({limit > 0 ? limit : threads(), threads(), allowed(), blocks});
        if (workers <= 1 || getpid() != owner_ || busy_.exchange(true)) return body(0, count);

        Job job{count, block, body};
        {
            std::lock_guard lock(mutex_);
            job_ = &job;
            seats_ = workers - 1;
        }
        for (int64_t i = 1; i < workers; ++i) wake_.notify_one();
        work(job);
        {
            std::unique_lock lock(mutex_);
            seats_ = 0;
            done_.wait(lock, [this] { return helping_ == 0; });
        }
        busy_ = false;
        if (job.error) std::rethrow_exception(job.error);
    }

private:
    struct Job {
        const int64_t count;
        const int64_t block;
        const Body& body;
        std::atomic<int64_t> next{0};
        std::mutex error_mutex{};
        std::exception_ptr error{};
    };

    static void work(Job& job) {
        try {
            for (int64_t begin; (begin = job.next.fetch_add(job.block)) < job.count;) {
                job.body(begin, std::min(begin + job.block, job.count));
            }
        } catch (...) {
            job.next = job.count;
            std::lock_guard lock(job.error_mutex);
            if (!job.error) job.error = std::current_exception();
        }
    }

    void sleep_and_help() {
        std::unique_lock lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return stopping_ || seats_ > 0; });
            if (stopping_) return;
            --seats_;
            ++helping_;
            Job& job = *job_;
            lock.unlock();
            work(job);
            lock.lock();
            if (--helping_ == 0) done_.notify_one();
        }
    }

    const pid_t owner_;
    std::atomic<bool> busy_{false};
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    Job* job_ = nullptr;
    int64_t seats_ = 0;    // helpers still to join the job
    int64_t helping_ = 0;  // helpers working on it
    bool stopping_ = false;
    std::vector<std::thread> sleepers_;
};

// FASTDM_THREADS, or the number of cores that this process may use.
inline int default_threads() {
    if (const char* wanted = std::getenv("FASTDM_THREADS")) {
        char* end = nullptr;
        const long number = std::strtol(wanted, &end, 10);
        if (end == wanted || *end != '\0' || number < 1 || number > kMostThreads) {
            throw std::invalid_argument(std::string("FASTDM_THREADS is '") + wanted +
                                        "'; it must be a whole number from 1 to " + std::to_string(kMostThreads));
        }
        return static_cast<int>(number);
    }
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores) == 0) return std::max(1, CPU_COUNT(&cores));
    return std::max(1u, std::thread::hardware_concurrency());
}

// The pool that all computation shares. It is never destroyed: when the process exits, and in a fork of it, the threads
// are already gone and cannot be joined.
inline ThreadPool& shared_pool() {
    static ThreadPool* pool = new ThreadPool(default_threads());
    return *pool;
}

}  // namespace fastdm
