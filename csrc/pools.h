// The threads that the core works with.
#pragma once

#include <dlfcn.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include "thread_pool.h"

namespace fastdm {

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

// Both pools are never destroyed: when the process exits, and in a fork of it, their threads are already gone and
// cannot be joined.

// The pool of all computation: the threads of the OpenMP runtime that PyTorch has loaded, if it has. After each of its
// operations those wait for the next one spinning, libgomp's for several milliseconds, on the cores that threads of our
// own would need: an iteration on two cores took a fifth longer.
inline ThreadPool& compute_pool() {
    static ThreadPool* pool = [] {
        const int wanted = default_threads();
        auto* threads = new ThreadPool(wanted);
        const auto team = reinterpret_cast<ThreadPool::Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
        // libgomp ends the process where the system has no more threads.
        if (team && threads->threads() == wanted) threads->hand_over(team);
        return threads;
    }();
    return *pool;
}

// The pool of what is loaded beside the computation, from threads that would get a team each.
inline ThreadPool& loading_pool() {
    static ThreadPool* pool = new ThreadPool(default_threads());
    return *pool;
}

}  // namespace fastdm
