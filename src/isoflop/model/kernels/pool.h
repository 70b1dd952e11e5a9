// Threads for work of microseconds. The caller hands out pieces and takes part; nobody waits for a thread that has not
// begun. Where the machine is busy, a helper that is not running costs nothing: the caller takes its pieces. (A team of
// OpenMP waits for all its members at every barrier: with as many other programs as processors, two of its threads
// were many times slower than one.)
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

class Pool {
   public:
    typedef void (*Piece)(const void* work, int64_t i);

    // piece(work, i) for every i < n, on up to `threads` threads; returns when all are done.
    void run(Piece piece, const void* work, int64_t n, int64_t threads) {
        std::unique_lock<std::mutex> alone(busy_, std::try_to_lock);
        if (threads <= 1 || n <= 1 || !alone) {  // another thread has the helpers: do without
            for (int64_t i = 0; i < n; ++i) piece(work, i);
            return;
        }
        while (helpers_ < threads - 1) std::thread(&Pool::help, this, ++helpers_).detach();
        const uint64_t round = (next_.load(std::memory_order_relaxed) >> 32) + 1;
        next_.store((round - 1) << 32 | NONE_LEFT);  // of the last round, whatever its size: it is about to be written over
        std::atomic_thread_fence(std::memory_order_seq_cst);
        piece_.store(piece, std::memory_order_relaxed);
        work_.store(work, std::memory_order_relaxed);
        n_.store(n, std::memory_order_relaxed);
        wanted_.store(threads - 1, std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        next_.store(round << 32);
        if (asleep_.load() > 0) {
            std::lock_guard<std::mutex> hold(door_);
            bell_.notify_all();
        }
        while (take(round)) {
        }
        for (int64_t spins = 0; done_.load(std::memory_order_acquire) < n; ++spins) rest(spins);
    }

   private:
    static constexpr uint64_t NONE_LEFT = 0xffffffff;
    static constexpr int64_t PAUSES = 2000, PATIENCE_US = 200;

    // One piece of the round, if one is left. What was read of the round is right if the round is still the same after:
    // it is not replaced while a piece is left.
    bool take(uint64_t round) {
        uint64_t seen = next_.load(std::memory_order_acquire);
        for (;;) {
            if (seen >> 32 != (round & NONE_LEFT)) return false;
            const Piece piece = piece_.load(std::memory_order_relaxed);
            const void* work = work_.load(std::memory_order_relaxed);
            const int64_t i = static_cast<int64_t>(seen & NONE_LEFT);
            if (i >= n_.load(std::memory_order_relaxed)) return false;
            std::atomic_thread_fence(std::memory_order_acquire);
            if (!next_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
            piece(work, i);
            done_.fetch_add(1, std::memory_order_release);
            return true;
        }
    }

    void help(int64_t me) {
        uint64_t last = 0;
        for (;;) {
            last = await(last);
            if (me <= wanted_.load(std::memory_order_relaxed))
                while (take(last)) {
                }
        }
    }

    // The next round's number; asleep where none comes soon.
    uint64_t await(uint64_t last) {
        const auto begun = std::chrono::steady_clock::now();
        for (int64_t spins = 0;; ++spins) {
            const uint64_t round = next_.load(std::memory_order_acquire) >> 32;
            if (round != last) return round;
            rest(spins);
            if (spins <= PAUSES || std::chrono::steady_clock::now() - begun < std::chrono::microseconds(PATIENCE_US))
                continue;
            std::unique_lock<std::mutex> hold(door_);
            ++asleep_;
            bell_.wait(hold, [&] { return next_.load() >> 32 != last; });
            --asleep_;
        }
    }

    static void rest(int64_t spins) {
        if (spins > PAUSES) {
            sched_yield();
            return;
        }
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }

    std::mutex busy_, door_;
    std::condition_variable bell_;
    int64_t helpers_ = 0;
    alignas(64) std::atomic<uint64_t> next_{0};  // the round, and in the lower half its next piece
    alignas(64) std::atomic<int64_t> done_{0};
    alignas(64) std::atomic<Piece> piece_{nullptr};
    std::atomic<const void*> work_{nullptr};
    std::atomic<int64_t> n_{0}, wanted_{0}, asleep_{0};
};

// One for the process, whichever library asks, and never taken down: its helpers may be asleep in it at the end.
inline Pool& pool() {
    static Pool* const one = new Pool;
    return *one;
}

// Pieces that lie next to each other in memory go to one thread, as far as possible: what it fetches ahead is then for
// itself. Who has finished its own run of pieces takes from the others'.
template <class Work>
struct Runs {
    static constexpr int64_t MOST = 64;
    struct alignas(64) Next {
        std::atomic<int64_t> piece;
    };

    const Work& work;
    int64_t n, runs;
    Next next[MOST];

    Runs(int64_t n, int64_t runs, const Work& work) : work(work), n(n), runs(runs) {
        for (int64_t r = 0; r < runs; ++r) next[r].piece.store(first(r), std::memory_order_relaxed);
    }

    int64_t first(int64_t run) const { return run * n / runs; }

    void from(int64_t own) {
        for (int64_t k = 0; k < runs; ++k) {
            const int64_t run = (own + k) % runs, end = first(run + 1);
            for (int64_t i; (i = next[run].piece.fetch_add(1, std::memory_order_relaxed)) < end;) work(i);
        }
    }
};

// work(i) for every i < n
template <class Work>
void share(int64_t n, int64_t threads, const Work& work) {
    if (threads <= 1 || n <= 1) {
        for (int64_t i = 0; i < n; ++i) work(i);
        return;
    }
    Runs<Work> runs(n, std::min({threads, n, Runs<Work>::MOST}), work);
    pool().run([](const void* r, int64_t own) { static_cast<Runs<Work>*>(const_cast<void*>(r))->from(own); }, &runs,
               runs.runs, threads);
}
