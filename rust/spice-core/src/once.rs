//! What libraries find out at their first use and keep behind a lock.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

/// Lets libraries find out what they do at their first use.
///
/// A child that is forked in that moment finds their locks held for good. To be called, before anything else that takes
/// threads, where no other thread can fork: then there is no such moment. The second call does nothing.
pub fn settle() {
    static SETTLED: AtomicBool = AtomicBool::new(false);
    const WAIT: Duration = Duration::from_secs(1);
    if SETTLED.swap(true, Ordering::AcqRel) {
        return;
    }
    // The sizes of caches, which the products of matrices ask for.
    let a = Mat::<f64>::zeros(64, 64);
    matmul(&mut Mat::zeros(64, 64), Accum::Replace, &a, &a, 1.0, Par::Seq);
    let a = Mat::<f32>::zeros(64, 64);
    matmul(&mut Mat::zeros(64, 64), Accum::Replace, &a, &a, 1.0, Par::Seq);
    // The list of threads that take work from each other: one has to, once.
    if let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(2).build() {
        let taken = AtomicBool::new(false);
        let wait = || {
            let begun = Instant::now();
            while !taken.load(Ordering::Acquire) && begun.elapsed() < WAIT {
                spin_loop();
            }
        };
        pool.install(|| rayon::join(wait, || taken.store(true, Ordering::Release)));
    }
}
