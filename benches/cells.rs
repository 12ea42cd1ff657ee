//! `cargo bench --bench cells`: conversions of cells against a copy, one thread, 256 MB of float32. Prints one table.
//!
//! Every round times the copy and each conversion once, so that what else the machine does meets all of them; the best
//! of 15 rounds counts. GB/s are of bytes read and written; `ratio` is that rate against the copy's, `per cell` the time
//! of a cell against that of copying a float32.

// A bench may stop at what is impossible.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use half::{bf16, f16};
use spice_core::convert::{brains, bytes, halves};
use spice_core::narrow;

const CELLS: usize = 64 << 20;
const ROUNDS: usize = 15;
/// As long as rows are in practice; a call converts one.
const ROW: usize = 4096;

fn main() {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let singles: Vec<f32> = (0..CELLS)
        .map(|_| {
            state =
                state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 100.0
        })
        .collect();
    let mut out = vec![0.0f32; CELLS];
    let mut small: Vec<i8> = vec![0; CELLS];
    let mut half = vec![f16::ZERO; CELLS];
    let mut brain = vec![bf16::ZERO; CELLS];

    // (name, bytes of a cell read and written, best seconds)
    let mut lines = [
        ("copy of float32", 8, f64::INFINITY),
        ("float32 to int8", 5, f64::INFINITY),
        ("float32 to float16", 6, f64::INFINITY),
        ("float32 to bfloat16", 6, f64::INFINITY),
        ("int8 to float32", 5, f64::INFINITY),
        ("float16 to float32", 6, f64::INFINITY),
        ("bfloat16 to float32", 6, f64::INFINITY),
    ];
    for _ in 0..ROUNDS {
        let mut next = lines.iter_mut();
        let mut time = |work: &mut dyn FnMut()| {
            let start = Instant::now();
            work();
            let best = &mut next.next().unwrap().2;
            *best = best.min(start.elapsed().as_secs_f64());
        };
        time(&mut || {
            for (from, to) in singles.chunks(ROW).zip(out.chunks_mut(ROW)) {
                black_box(to).copy_from_slice(black_box(from));
            }
        });
        time(&mut || {
            for (from, to) in singles.chunks(ROW).zip(small.chunks_mut(ROW)) {
                narrow::to_bytes(from, 1.27, to);
            }
        });
        time(&mut || {
            for (from, to) in singles.chunks(ROW).zip(half.chunks_mut(ROW)) {
                narrow::to_halves(from, 1.0, to);
            }
        });
        time(&mut || {
            for (from, to) in singles.chunks(ROW).zip(brain.chunks_mut(ROW)) {
                narrow::to_brains(from, 1.0, to);
            }
        });
        time(&mut || {
            for (from, to) in small.chunks(ROW).zip(out.chunks_mut(ROW)) {
                bytes::scale(from, 0.01, to);
            }
        });
        time(&mut || {
            for (from, to) in half.chunks(ROW).zip(out.chunks_mut(ROW)) {
                halves::scale(from, 1.0, to);
            }
        });
        time(&mut || {
            for (from, to) in brain.chunks(ROW).zip(out.chunks_mut(ROW)) {
                brains::scale(from, 1.0, to);
            }
        });
    }
    black_box((&out, &small, &half, &brain));
    let (_, copied, seconds) = lines[0];
    let copy = copied as f64 / seconds;
    println!("| conversion | seconds | GB/s | ratio | per cell |\n|---|--:|--:|--:|--:|");
    for (name, size, best) in lines {
        let rate = size as f64 * CELLS as f64 / best / 1e9;
        println!(
            "| {name} | {best:.4} | {rate:.1} | {:.2} | {:.2} |",
            size as f64 / best / copy,
            best / seconds
        );
    }
}
