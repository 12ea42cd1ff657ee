//! Relevance against its definition, by loops that share nothing with the crate.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use proptest::prelude::*;
use spice_core::matrix::{Dtype, Pool, RowBlock};
use spice_core::monitor::Monitor;
use spice_core::relevance::{Contrast, SAME};
use spice_core::survey::Survey;

/// A survey of unit rows, cut into blocks after every `cut` rows; `index[i]` is the dataset row of row i.
fn with_survey<T>(
    cells: &[f64],
    dim: usize,
    cut: usize,
    index: Vec<i64>,
    work: impl FnOnce(&Survey<'_>) -> T,
) -> T {
    let blocks = cells
        .chunks(dim * cut)
        .map(|part| {
            RowBlock::new(bytemuck::cast_slice(part), Dtype::F64, part.len() / dim, dim).unwrap()
        })
        .collect();
    let pool = Pool::new(blocks).unwrap().with_index(index).unwrap();
    work(&Survey::new(pool, true, &Monitor::default()).unwrap())
}

fn unit(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().fold(0.0_f64, |most, cell| most.max(cell.abs()));
    let scaled: Vec<f64> =
        row.iter().map(|cell| if largest > 0.0 { cell / largest } else { 0.0 }).collect();
    let norm = scaled.iter().map(|cell| cell * cell).sum::<f64>().sqrt();
    scaled.iter().map(|cell| if norm > 0.0 { cell / norm } else { 0.0 }).collect()
}

fn mean(rows: &[Vec<f64>], dim: usize) -> Vec<f64> {
    let counted: Vec<&Vec<f64>> =
        rows.iter().filter(|row| row.iter().any(|&cell| cell != 0.0)).collect();
    (0..dim)
        .map(|j| counted.iter().map(|row| row[j]).sum::<f64>() / counted.len().max(1) as f64)
        .collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// r of each row, and ‖u − μ‖ and ‖q‖, which say how sure it is.
fn naive(pool: &[Vec<f64>], target: &[Vec<f64>], dim: usize) -> (Vec<f64>, Vec<f64>, f64) {
    let centre = mean(pool, dim);
    let contrast: Vec<f64> = mean(target, dim).iter().zip(&centre).map(|(t, mean)| t - mean).collect();
    let norm = dot(&contrast, &contrast).sqrt();
    let beyond =
        pool.iter().map(|row| row.iter().zip(&centre).map(|(u, mean)| u - mean).collect::<Vec<_>>());
    let lengths: Vec<f64> = beyond.clone().map(|row| dot(&row, &row).sqrt()).collect();
    let values = beyond.zip(&lengths).map(|(row, length)| dot(&row, &contrast) / (length * norm));
    (values.collect(), lengths, norm)
}

/// Few rows from few values, so that equal, opposite and zero rows abound.
fn cases() -> impl Strategy<Value = (usize, Vec<f64>, Vec<f64>)> {
    (1_usize..9, 1_usize..40, 1_usize..9).prop_flat_map(|(dim, n, t)| {
        let cell = || prop_oneof![3 => (-2_i32..3).prop_map(f64::from), 1 => -1e3_f64..1e3];
        (Just(dim), prop::collection::vec(cell(), dim * n), prop::collection::vec(cell(), dim * t))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn relevance_is_that_of_the_definition((dim, pool, target) in cases(), cut in 1_usize..7) {
        let units = |cells: &[f64]| cells.chunks(dim).map(unit).collect::<Vec<_>>();
        let (own, aims) = (units(&pool), units(&target));
        let (n, t) = (own.len() as i64, aims.len() as i64);
        let monitor = Monitor::default();
        let found = with_survey(&pool, dim, cut, (0..n).collect(), |rows| {
            with_survey(&target, dim, cut, (0..t).collect(), |target| {
                let contrast = Contrast::new(rows, target, &vec![0; t as usize], 1, &monitor)?;
                let values = contrast.relevance_beside(rows, target, &monitor)?;
                Ok::<_, spice_core::Error>((contrast, values))
            })
        });
        let zero = aims.iter().all(|row| row.iter().all(|&cell| cell == 0.0));
        prop_assert_eq!(found.is_err(), zero);
        let Ok((contrast, (values, overlaps))) = found else { return Ok(()) };
        let (expected, lengths, norm) = naive(&own, &aims, dim);
        prop_assert!((contrast.norms[0] - norm).abs() <= 1e-13);
        for row in 0..own.len() {
            if own[row].iter().all(|&cell| cell == 0.0) || lengths[row] < 1e-10 || norm < 1e-10 {
                prop_assert_eq!(values[row], 0.0);
            } else if lengths[row] > 1e-8 && norm > 1e-8 {
                prop_assert!((values[row] - expected[row]).abs() <= 1e-14 / (lengths[row] * norm).min(1.0) + 1e-13);
            }
            let cosines: Vec<f64> = aims.iter().map(|target| dot(target, &own[row])).collect();
            let most = cosines.iter().copied().fold(-1.0, f64::max);
            let here = overlaps.iter().find(|found| found.position.get() == row);
            if (most - SAME).abs() > 1e-12 {
                prop_assert_eq!(here.is_some(), most > SAME);
            }
            if let Some(here) = here {
                prop_assert!((cosines[here.target.get()] - most).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn no_bit_depends_on_blocks_order_or_threads(
        seed in any::<u64>(), n in 2_usize..900, cut in 1_usize..400, threads in 1_usize..6,
    ) {
        let dim = 5;
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1_u64 << 53) as f64 - 0.4
        };
        let pool: Vec<f64> = (0..n * dim).map(|_| next()).collect();
        let target: Vec<f64> = (0..7 * dim).map(|_| next()).collect();
        let run = |cells: &[f64], index: Vec<i64>, cut: usize, aims: &[f64], at: Vec<i64>, threads: usize| {
            let workers = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let monitor = Monitor::default();
            workers.install(|| with_survey(cells, dim, cut, index, |rows| with_survey(aims, dim, 2, at, |aims| {
                let contrast = Contrast::new(rows, aims, &[0; 7], 1, &monitor).unwrap();
                let values = contrast.relevance(rows, &monitor).unwrap();
                (contrast, values)
            })))
        };
        let expected = run(&pool, (0..n as i64).collect(), n, &target, (0..7).collect(), 1);
        // The same rows, turned round: row i of the dataset lies at n − 1 − i.
        let turned = |cells: &[f64]| cells.chunks(dim).rev().flatten().copied().collect::<Vec<_>>();
        let back: Vec<i64> = (0..n as i64).rev().collect();
        let mut found = run(&turned(&pool), back, cut, &turned(&target), (0..7).rev().collect(), threads);
        found.1.reverse();
        prop_assert_eq!(format!("{expected:?}"), format!("{found:?}"));
        let known = Contrast::known(found.0.mean, found.0.directions).unwrap();
        let again = with_survey(&pool, dim, n, (0..n as i64).collect(), |rows| {
            known.relevance(rows, &Monitor::default()).unwrap()
        });
        prop_assert_eq!(again, expected.1);
    }
}
