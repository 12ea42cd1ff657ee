//! Hot rows: their values do not depend on how they came to be hot, nor on who else is.

use super::{Picked, Random, made_hot, name_of, named, rows, with_run};
use crate::rows::Position;
use crate::selection::full::epoch::Epoch;
use crate::selection::full::gram::Gram;
use crate::selection::full::hot::Hot;
use crate::selection::places::{Place, Slot};

#[test]
fn hot_values_do_not_depend_on_when_a_row_became_hot() {
    for (dim, powers) in [(3, (0.0, 0.0)), (20, (-6.0, 3.0)), (90, (-1.0, 1.0))] {
        let (n, picks) = (100, 80);
        let cells = Random(4).rows(n, dim, powers);
        with_run(&cells, dim, 1.0, 0.0, |run| {
            let mut picked = Picked::new(&run);
            let width = picked.epoch.width(picks);
            let all = |hot: &mut Hot, epoch: &Epoch<'_>| {
                hot.insert(rows(picks..n).map(named), epoch, &run).unwrap();
            };
            let (mut always, mut lagging) = (Hot::new(dim, width), Hot::new(dim, width));
            all(&mut always, &picked.epoch);
            all(&mut lagging, &picked.epoch);
            for pick in 0..picks {
                let ended = picked.push(Position::new(pick), &run);
                lagging.leave_below((0.02 * (pick % 7) as f64).ln_1p(), &run);
                for hot in [&mut always, &mut lagging] {
                    if ended {
                        hot.whiten(0, &picked.epoch, &run).unwrap();
                    } else {
                        hot.follow(&picked.epoch, &run);
                    }
                }
                if pick % 9 != 0 {
                    continue;
                }
                lagging.catch_up(&picked.epoch, &run);
                let late = made_hot(rows(picks..n), &picked.epoch, &run);
                for slot in late.slots() {
                    let count = picked.epoch.picks();
                    let bits = |hot: &Hot| {
                        let numbers = hot.coordinates(slot)[..count].iter().chain(hot.whitened(slot));
                        let numbers = numbers.copied().chain([hot.value(slot), hot.gain(slot)]);
                        numbers.map(f64::to_bits).collect::<Vec<_>>()
                    };
                    assert_eq!(bits(&always), bits(&late), "{dim}, pick {pick}, slot {slot:?}");
                    assert_eq!(bits(&lagging), bits(&late), "{dim}, pick {pick}, slot {slot:?}");
                }
            }
            assert!(picked.epochs > 1);
        });
    }
}

#[test]
fn a_row_that_leaves_takes_nothing_of_the_others_with_it() {
    let (n, dim) = (40, 7);
    let cells = Random(5).rows(n, dim, (0.0, 0.0));
    with_run(&cells, dim, 1.0, 0.0, |run| {
        let mut picked = Picked::new(&run);
        let mut hot = Hot::new(dim, 16);
        hot.insert(rows(10..n).map(named), &picked.epoch, &run).unwrap();
        for pick in 0..10 {
            picked.push(Position::new(pick), &run);
            hot.follow(&picked.epoch, &run);
            hot.remove(Slot::new(pick % hot.len()));
            hot.remove(Slot::new(hot.len() - 1));
            for slot in hot.slots() {
                let (row, first) = (hot.position(slot), Slot::new(0));
                let alone = made_hot([row], &picked.epoch, &run);
                assert_eq!(hot.name(slot), Some(name_of(row)));
                assert_eq!(hot.value(slot).to_bits(), alone.value(first).to_bits());
                assert_eq!(hot.whitened(slot), alone.whitened(first));
            }
        }
    });
}

#[test]
fn inner_products_taken_at_once_are_those_taken_one_by_one() {
    let (n, dim) = (75, 9000); // three tiles of rows, three chunks of columns
    let cells = Random(9).rows(n, dim, (-1.0, 1.0));
    with_run(&cells, dim, 1.0, 0.0, |run| {
        let backwards: Vec<Position> = rows(0..n).rev().collect();
        let mut by_gram = Epoch::new(run.survey, 1.0, true, run.monitor);
        by_gram.use_gram(Gram::new(&backwards, &run).unwrap());
        let by_rows = Epoch::new(run.survey, 1.0, true, run.monitor);
        assert!(by_rows.is_endless());
        let values = |mut epoch: Epoch<'_>| {
            let mut values = Vec::new();
            for pick in 0..30 {
                let hot = made_hot(rows(pick..n), &epoch, &run);
                assert!(hot.len() > 0);
                values.extend(hot.slots().map(|slot| hot.value(slot).to_bits()));
                let (row, slot) = (Position::new(pick), Slot::new(0));
                epoch.push(row, hot.whitened(slot), hot.coordinates(slot), hot.value(slot));
            }
            values
        };
        assert_eq!(values(by_gram), values(by_rows));
    });
}
