//! `cargo bench --bench cells`: conversions of cells against a copy, one thread, 256 MB of float32. Prints one table.
//!
//! Every round times the copies and each conversion once, so that what else the machine does meets all of them; the best
//! of 15 rounds counts. GB/s are of bytes read and written. A copy of everything at once may write around the caches,
//! which nothing does that goes row by row.

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

    // (name, bytes of a cell read and written, best seconds in memory and in the caches)
    let line = |name: &'static str, size: usize| (name, size, [f64::INFINITY; 2]);
    let mut lines = [
        line("copy of float32, all at once", 8),
        line("copy of float32, row by row", 8),
        line("float32 to int8", 5),
        line("float32 to float16", 6),
        line("float32 to bfloat16", 6),
        line("int8 to float32", 5),
        line("float16 to float32", 6),
        line("bfloat16 to float32", 6),
    ];
    for round in 0..2 * ROUNDS {
        // In the caches, one row is converted over and over.
        let cached = round % 2;
        let (rows, step) = (CELLS / ROW, if cached == 0 { ROW } else { 0 });
        let mut next = lines.iter_mut();
        let mut time = |work: &mut dyn FnMut(usize)| {
            let start = Instant::now();
            (0..rows).for_each(|row| work(row * step));
            let best = &mut next.next().unwrap().2[cached];
            *best = best.min(start.elapsed().as_secs_f64());
        };
        let whole = |at: usize| if at == 0 && cached == 0 { 0..CELLS } else { at..at };
        time(&mut |at| black_box(&mut out[whole(at)]).copy_from_slice(black_box(&singles[whole(at)])));
        let row = |at: usize| at..at + ROW;
        time(&mut |at| black_box(&mut out[row(at)]).copy_from_slice(black_box(&singles[row(at)])));
        time(&mut |at| narrow::to_bytes(&singles[row(at)], 1.27, black_box(&mut small[row(at)])));
        time(&mut |at| narrow::to_halves(&singles[row(at)], 1.0, black_box(&mut half[row(at)])));
        time(&mut |at| narrow::to_brains(&singles[row(at)], 1.0, black_box(&mut brain[row(at)])));
        time(&mut |at| bytes::scale(&small[row(at)], 0.01, black_box(&mut out[row(at)])));
        time(&mut |at| halves::scale(&half[row(at)], 1.0, black_box(&mut out[row(at)])));
        time(&mut |at| brains::scale(&brain[row(at)], 1.0, black_box(&mut out[row(at)])));
    }
    black_box((&out, &small, &half, &brain));
    println!(
        "| conversion | seconds | GB/s | of the row-by-row copy | of the other copy | GB/s in the caches |"
    );
    println!("|---|--:|--:|--:|--:|--:|");
    let rate = |size: usize, seconds: f64| size as f64 * CELLS as f64 / seconds / 1e9;
    let [whole, rows] = [0, 1].map(|place| rate(lines[place].1, lines[place].2[0]));
    for (place, (name, size, [memory, cached])) in lines.into_iter().enumerate() {
        let found = rate(size, memory);
        let cached = if place == 0 { String::new() } else { format!("{:.1}", rate(size, cached)) };
        println!(
            "| {name} | {memory:.4} | {found:.1} | {:.2} | {:.2} | {cached} |",
            found / rows,
            found / whole
        );
    }
}
