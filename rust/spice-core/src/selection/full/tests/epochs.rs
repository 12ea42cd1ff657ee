//! Epochs: what a pick takes from a value, and what rounding does.

use super::{Picked, Random, made_hot, rows, with_run};
use crate::rows::Position;
use crate::selection::full::epoch::Epoch;
use crate::selection::places::Place;

#[test]
fn what_a_pick_takes_from_a_value_is_its_direction_squared() {
    for (dim, powers) in [(5, (-1.0, 1.0)), (70, (0.0, 1.0)), (150, (-3.0, 2.0))] {
        let (n, picks) = (130, 110);
        let cells = Random(6).rows(n, dim, powers);
        with_run(&cells, dim, 1.0, 0.0, |run| {
            let mut picked = Picked::new(&run);
            let rest: Vec<Position> = rows(picks..n).collect();
            let mut before = picked.values(&rest, &run);
            let mut row_cells = vec![0.0; dim];
            for pick in 0..picks {
                picked.push(Position::new(pick), &run);
                picked.directions.extend(&picked.epoch).unwrap();
                assert_eq!(picked.directions.window().end(), pick + 1);
                let after = picked.values(&rest, &run);
                let (direction, errors) = picked.directions.window().range(pick, pick + 1);
                let norm = direction.iter().map(|&cell| f64::from(cell).powi(2)).sum::<f64>().sqrt();
                assert!(norm < 1.0 + 1e-6);
                for ((&row, before), after) in rest.iter().zip(&before).zip(&after) {
                    run.survey.load(row, &mut row_cells);
                    let along: f64 =
                        row_cells.iter().zip(direction).map(|(g, &w)| g * f64::from(w)).sum();
                    let length = run.survey.norm_sq(row).sqrt();
                    let fall = (before - after).max(0.0);
                    // (|g·w| ± e‖g‖)², and what the difference of the two values has lost.
                    let (error, lost) = (f64::from(errors[0]) * length, 1e-9 * before);
                    let (least, most) = ((along.abs() - error).max(0.0), along.abs() + error);
                    assert!(least * least <= fall + lost, "{dim}, pick {pick}: {along} {fall}");
                    assert!(most * most >= fall - lost, "{dim}, pick {pick}: {along} {fall}");
                }
                before = after;
            }
            assert!(picked.epochs > 1);
        });
    }
}

#[test]
fn one_epoch_or_many_give_the_same_values_but_for_rounding() {
    for (dim, alpha) in [(4, 1.0), (64, 0.1), (100, 5.0)] {
        let (n, picks) = (150, 120);
        let cells = Random(7).rows(n, dim, (-0.5, 0.5));
        with_run(&cells, dim, alpha, 0.0, |run| {
            let mut many = Picked::new(&run);
            let mut one = Picked::new(&run);
            one.epoch = Epoch::new(run.survey, alpha, true, run.monitor);
            assert!(one.epoch.is_endless() && !many.epoch.is_endless());
            let rest: Vec<Position> = rows(picks..n).collect();
            for pick in 0..picks {
                many.push(Position::new(pick), &run);
                one.push(Position::new(pick), &run);
                let values = |epoch: &Epoch<'_>| -> Vec<f64> {
                    let hot = made_hot(rest.iter().copied(), epoch, &run);
                    hot.slots().map(|slot| hot.value(slot)).collect()
                };
                let (of_many, of_one) = (values(&many.epoch), values(&one.epoch));
                let expected = many.values(&rest, &run);
                for ((&row, expected), (many, one)) in
                    rest.iter().zip(&expected).zip(of_many.iter().zip(&of_one))
                {
                    assert!(
                        (many - expected).abs() <= 1e-11 * expected,
                        "{dim}, pick {pick}, row {row}"
                    );
                    // In one epoch digits are lost as q falls.
                    let lost = 1e-13 * run.survey.norm_sq(row);
                    assert!((one - expected).abs() <= lost + 1e-11 * expected);
                }
            }
            assert!(many.epochs > 1 && one.epochs == 1);
        });
    }
}

#[test]
fn an_epoch_is_doubtful_before_a_winner_has_lost_its_digits() {
    let (n, dim) = (60, 30);
    let cells = Random(8).rows(n, dim, (3.0, 4.0));
    with_run(&cells, dim, 1.0, 0.0, |run| {
        let mut picked = Picked::new(&run);
        let mut rest: Vec<Position> = rows(0..n).collect();
        let (mut kept, mut doubts) = (0, 0);
        while rest.len() > 10 {
            let winner = |picked: &Picked<'_>| {
                let hot = made_hot(rest.iter().copied(), &picked.epoch, &run);
                let best = hot.slots().max_by(|&a, &b| hot.value(a).total_cmp(&hot.value(b))).unwrap();
                (best, hot.value(best))
            };
            let (mut best, mut value) = winner(&picked);
            if picked.epoch.is_doubtful(value) {
                picked.restart(&run);
                doubts += 1;
                (best, value) = winner(&picked);
                assert!(!picked.epoch.is_doubtful(value), "at the start of an epoch nothing is lost");
            } else {
                kept += 1;
            }
            let expected = picked.values(&rest, &run);
            let excused = 1e-10_f64
                .max(1e-16 * picked.rows.iter().map(|&row| run.survey.norm_sq(row)).sum::<f64>());
            let most = expected.iter().copied().fold(0.0, f64::max);
            assert!((value / most - 1.0).abs() <= excused, "{value} {most}");
            picked.epoch.limit(value);
            picked.push(rest.swap_remove(best.get()), &run);
        }
        assert!((1..20).contains(&doubts), "{doubts}");
        assert!(kept > 25, "long rows alone are no reason to start anew: {kept}");
    });
}
