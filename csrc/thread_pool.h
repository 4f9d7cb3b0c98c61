// Threads that sleep until there is work, take blocks of it in turn, and sleep again. They never spin: on a shared
// machine a waiting thread must not occupy a core. Or a team of threads that is there already and takes the blocks.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
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

    ~ThreadPool() { end_sleepers(); }

    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    // GOMP_parallel of an OpenMP runtime: calls body on so many threads (0: what `omp_set_num_threads` said), of which
    // the caller is one.
    using Team = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

    // Leaves the work to the threads of `team`, of which at most threads() take part, and ends the pool's own. Before
    // the first run.
    void hand_over(Team team) {
        members_ = threads();
        team_ = team;
        end_sleepers();
    }

    int threads() const { return team_ ? members_ : static_cast<int>(sleepers_.size()) + 1; }

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

        Job job{count, block, body, workers};
        team_ ? run_in_team(job) : run_with_sleepers(job);
        busy_ = false;
        if (job.error) std::rethrow_exception(job.error);
    }

private:
    struct Job {
        const int64_t count;
        const int64_t block;
        const Body& body;
        const int64_t workers;
        std::atomic<int64_t> next{0};
        std::atomic<int64_t> joined{0};  // threads of the team
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

    // The whole team is called, as by PyTorch's own operations: for another number libgomp would end threads, and start
    // them again the next time.
    void run_in_team(Job& job) {
        const auto join = [](void* data) {
            Job& job = *static_cast<Job*>(data);
            if (job.joined.fetch_add(1) < job.workers) work(job);
        };
        team_(join, &job, 0, 0);
    }

    void run_with_sleepers(Job& job) {
        {
            std::lock_guard lock(mutex_);
            job_ = &job;
            seats_ = job.workers - 1;
        }
        for (int64_t i = 1; i < job.workers; ++i) wake_.notify_one();
        work(job);
        std::unique_lock lock(mutex_);
        seats_ = 0;
        done_.wait(lock, [this] { return helping_ == 0; });
    }

    void end_sleepers() {
        {
            std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (std::thread& sleeper : sleepers_) sleeper.join();
        sleepers_.clear();
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
    Team team_ = nullptr;
    int members_ = 0;
};

}  // namespace fastdm
