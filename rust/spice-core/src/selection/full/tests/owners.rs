//! Whoever owns the rows that wait, and whatever becomes of the owners and of what they answer: the picks are the same bits.

use std::cell::Cell;
use std::collections::BTreeSet;

use super::Random;
use crate::matrix::{Dtype, Pool, RowBlock};
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::selection::full::messages::{Answer, Ask, Asked, News, Reply};
use crate::selection::full::owners::{Deal, Local, Owners};
use crate::selection::full::remote::Remote;
use crate::selection::limits::Limits;
use crate::selection::pick::Pick;
use crate::selection::start::{extend, resume};
use crate::selection::{Conditions, Fisher, Method, Search, Selection, Settings, Survey};

thread_local! {
    static DEALT: Cell<Option<Dealt>> = const { Cell::new(None) };
    /// Memories that were lost, and replies that came late or twice.
    static MISHAPS: Cell<usize> = const { Cell::new(0) };
}

/// How the rows of all searches of this thread are dealt out; one owner has them if nothing is said.
pub(in crate::selection::full) fn dealt() -> Option<Dealt> {
    DEALT.get()
}

#[derive(Clone, Copy, Debug)]
enum Whose {
    OneByOne,
    Blocks,
    Anyone,
    /// All are the last one's; the others have none.
    Last,
}

#[derive(Clone, Copy, Debug)]
enum Transport {
    Straight,
    /// Owners lose their memory at any time.
    Forgetful,
    /// What is asked arrives twice and late, and so does what is answered.
    Echoing,
    /// Both.
    Wild,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::selection::full) struct Dealt {
    owners: usize,
    whose: Whose,
    transport: Transport,
    /// Whether messages are bytes.
    remote: bool,
    seed: u64,
}

impl Dealt {
    pub(in crate::selection::full) fn deal(&self, rows: usize) -> Deal {
        let random = Cell::new(Random(self.seed));
        Deal::new(rows, self.owners, |row| match self.whose {
            Whose::OneByOne => row % self.owners,
            Whose::Blocks => row * self.owners / rows,
            Whose::Last => self.owners - 1,
            Whose::Anyone => {
                let mut next = random.replace(Random(0));
                let owner = next.below(self.owners);
                random.set(next);
                owner
            }
        })
    }

    pub(in crate::selection::full) fn reach<'a>(&self, local: Local<'a>) -> Box<dyn Owners + 'a> {
        let owners: Box<dyn Owners + 'a> =
            if self.remote { Box::new(Remote::new(local)) } else { Box::new(local) };
        let forgetful = |owners| Forgetful { owners, random: Random(self.seed) };
        let echo = |owners| {
            let (random, asked, replies) = (Random(self.seed), Vec::new(), Vec::new());
            Box::new(Echoing { owners, random, asked, replies })
        };
        match self.transport {
            Transport::Straight => owners,
            Transport::Forgetful => Box::new(forgetful(owners)),
            Transport::Echoing => echo(owners),
            Transport::Wild => echo(Box::new(forgetful(owners))),
        }
    }
}

/// Owners that lose their memory.
struct Forgetful<'a> {
    owners: Box<dyn Owners + 'a>,
    random: Random,
}

impl Owners for Forgetful<'_> {
    fn ask(&mut self, news: &News<'_>, asks: &[Asked<'_>]) -> Result<Vec<Reply>, crate::Error> {
        let mut replies = Vec::new();
        for asked in asks {
            // Not when the same is asked again: then it is the way that has a fault.
            if self.random.below(4) == 0 {
                self.owners.forget(asked.owner);
                MISHAPS.set(MISHAPS.get() + 1);
            }
            replies.extend(self.owners.ask(news, std::slice::from_ref(asked))?);
        }
        Ok(replies)
    }

    fn forget(&mut self, owner: usize) {
        self.owners.forget(owner);
    }
}

/// A way on which nothing is lost, and all else may happen.
struct Echoing<'a> {
    owners: Box<dyn Owners + 'a>,
    random: Random,
    asked: Vec<Asked<'static>>,
    replies: Vec<Reply>,
}

impl Owners for Echoing<'_> {
    fn ask(&mut self, news: &News<'_>, asks: &[Asked<'_>]) -> Result<Vec<Reply>, crate::Error> {
        let mut replies = self.owners.ask(news, asks)?;
        // Twice, with nothing done in between unless the memory went.
        let repeated = self.owners.ask(news, asks)?;
        for (first, second) in replies.iter().zip(&repeated) {
            let lost = [first, second].map(|reply| matches!(reply.answer, Answer::Forgotten));
            assert!(lost.contains(&true) || format!("{first:?}") == format!("{second:?}"));
        }
        replies.reverse();
        replies.extend(repeated);
        // Something of before arrives, here and there.
        if !self.asked.is_empty() && !self.replies.is_empty() {
            let late = self.asked[self.random.below(self.asked.len())].clone();
            replies.splice(0..0, self.owners.ask(news, &[late])?);
            let late = self.replies[self.random.below(self.replies.len())].clone();
            replies.insert(self.random.below(replies.len()), late);
            MISHAPS.set(MISHAPS.get() + 2);
        }
        for Asked { owner, number, returned, ask } in asks {
            if let Ask::Take(names) = ask {
                let (returned, ask) = (returned.clone(), Ask::Take(names.clone()));
                self.asked.push(Asked { owner: *owner, number: *number, returned, ask });
            }
        }
        let acted = replies.iter().filter(|reply| !matches!(reply.answer, Answer::Forgotten));
        self.replies.extend(acted.take(3).cloned());
        Ok(replies)
    }

    fn forget(&mut self, owner: usize) {
        self.owners.forget(owner);
    }
}

/// A pool and what is asked of it.
struct Case {
    cells: Vec<f64>,
    dim: usize,
    settings: Settings,
    conditions: Conditions,
    k: Option<usize>,
}

impl Case {
    fn new(random: &mut Random) -> Self {
        let (n, dim) = (4 + random.below(90), 1 + random.below(8));
        let mut chance = |one_in: usize| random.below(one_in) == 0;
        let (stochastic, conditional, unlimited) = (chance(6), chance(2), chance(3));
        let powers = [(0.0, 0.0), (-1.0, 1.0), (-4.0, 3.0)][random.below(3)];
        let cells = random.rows(n, dim, powers);
        let settings = Settings {
            alpha: [1.0, 0.01, 30.0][random.below(3)],
            conflict_penalty: [0.0, 0.01, 0.1, 1.0, 10.0][random.below(5)],
            early_stop: [None, None, Some(0.3)][random.below(3)],
            fisher: Fisher::Full,
            method: if stochastic { Method::Stochastic } else { Method::Greedy },
            search: [Search::Lazy, Search::LazyGain][random.below(2)],
            hot_rows: Some([1, 2, 3, 5, 9, 20][random.below(6)]),
            epsilon: 0.3,
            seed: random.below(100) as u64,
        };
        let conditions =
            if conditional && !stochastic { Self::conditions(n, random) } else { Conditions::default() };
        let least = conditions.include.len().max(1);
        let k = least + random.below(n - least);
        Self { cells, dim, settings, conditions, k: (!unlimited).then_some(k) }
    }

    fn conditions(n: usize, random: &mut Random) -> Conditions {
        let mut conditions = Conditions::default();
        let rows: BTreeSet<usize> = (0..3).map(|_| random.below(n)).collect();
        let rows: Vec<Position> = rows.into_iter().map(Position::new).collect();
        match random.below(4) {
            0 => conditions.initial = rows,
            1 => conditions.include = rows[..1].to_vec(),
            2 => conditions.exclude = rows,
            _ => {}
        }
        if random.below(3) == 0 {
            conditions.max_similarity = Some([0.3, 0.9, 0.999][random.below(3)]);
        }
        if random.below(4) == 0 {
            conditions.multiplier = Some((0..n).map(|_| [0.5, 1.0, 3.0][random.below(3)]).collect());
        }
        if random.below(4) == 0 {
            conditions.bonus = Some((0..n).map(|_| [0.0, 0.2, -0.1][random.below(3)]).collect());
        }
        if random.below(2) == 0 {
            let costs = (0..n).map(|_| [0.5, 1.0, 2.0][random.below(3)]).collect();
            conditions.limits = Some(Limits {
                groups: Some((0..n).map(|_| random.below(3)).collect()),
                minima: vec![0.0; 3],
                maxima: vec![4.0, f64::INFINITY, n as f64 / 4.0 + 2.0],
                costs: (random.below(2) == 0).then_some(costs),
                budget: n as f64 / 2.0 + 2.0,
            });
        }
        conditions
    }

    fn survey<T>(&self, check: impl FnOnce(&Survey<'_>) -> T) -> T {
        let n = self.cells.len() / self.dim;
        let block = RowBlock::new(bytemuck::cast_slice(&self.cells), Dtype::F64, n, self.dim).unwrap();
        check(&Survey::new(Pool::new(vec![block]).unwrap(), false, &Monitor::default()).unwrap())
    }

    fn resumed(&self, survey: &Survey<'_>, made: &[Pick]) -> Selection {
        let monitor = Monitor::default();
        resume(survey, &self.settings, &self.conditions, self.k, (made, &[]), &monitor).unwrap()
    }
}

/// All that is the same whoever owns the rows, line by line.
fn decided(selection: &Selection) -> Vec<String> {
    let Selection { picks, stop, log_dets, near_duplicates, .. } = selection;
    let blind = |pick: &Pick| format!("{:?}", Pick { rows_read: 0, ..*pick });
    let lines = picks.iter().map(blind);
    lines.chain([format!("{stop:?} {log_dets:?} {near_duplicates:?}")]).collect()
}

/// Calls `check` with and without owners, and compares what comes of it.
fn alike(dealt: Dealt, what: &str, run: impl Fn() -> Selection) {
    DEALT.set(None);
    let expected = decided(&run());
    DEALT.set(Some(dealt));
    let found = decided(&run());
    DEALT.set(None);
    for (pick, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "pick {pick}, {what} {dealt:?}");
    }
    assert_eq!(found.len(), expected.len(), "{what} {dealt:?}");
}

/// Runs a search whose owner is reached by bytes.
pub(in crate::selection::full) fn over_bytes<T>(run: impl FnOnce() -> T) -> T {
    let (whose, transport) = (Whose::Last, Transport::Straight);
    DEALT.set(Some(Dealt { owners: 1, whose, transport, remote: true, seed: 1 }));
    let found = run();
    DEALT.set(None);
    found
}

/// A whole run under conditions.
pub(in crate::selection::full) fn resumed(
    survey: &Survey<'_>,
    settings: &Settings,
    conditions: &Conditions,
) -> Selection {
    resume(survey, settings, conditions, None, (&[], &[]), &Monitor::default()).unwrap()
}

/// Ways that the rows of a search can be dealt out.
fn any(seed: u64, random: &mut Random) -> Dealt {
    Dealt {
        owners: 1 + random.below(8),
        whose: [Whose::OneByOne, Whose::Blocks, Whose::Anyone, Whose::Last][random.below(4)],
        transport: [Transport::Straight, Transport::Forgetful, Transport::Echoing, Transport::Wild]
            [random.below(4)],
        remote: random.below(2) == 0,
        seed: 2 * seed + 1,
    }
}

#[test]
fn picks_are_the_same_bits_whoever_owns_the_rows() {
    MISHAPS.set(0);
    for seed in 0..1500 {
        let mut random = Random(seed);
        (0..3).for_each(|_| _ = random.next());
        let case = Case::new(&mut random);
        let dealt = any(seed, &mut random);
        case.survey(|survey| alike(dealt, &format!("seed {seed}"), || case.resumed(survey, &[])));
    }
    assert!(MISHAPS.get() > 10_000, "{}", MISHAPS.get());
}

#[test]
fn runs_that_go_on_do_so_whoever_owns_the_rows() {
    for seed in 0..400 {
        let mut random = Random(seed);
        (0..3).for_each(|_| _ = random.next());
        let mut case = Case::new(&mut random);
        case.settings.method = Method::Greedy;
        // What was skipped as a near-duplicate is part of a checkpoint, which is not what is tested here.
        case.conditions.max_similarity = None;
        let dealt = any(seed, &mut random);
        case.survey(|survey| {
            let made = case.resumed(survey, &[]).picks;
            let cut = random.below(made.len() + 1);
            let what = format!("seed {seed}, {cut} of {} picks", made.len());
            alike(dealt, &what, || case.resumed(survey, &made[..cut]));
        });
    }
}

#[test]
fn pools_that_have_grown_do_so_whoever_owns_the_rows() {
    for seed in 0..400 {
        let mut random = Random(seed);
        (0..3).for_each(|_| _ = random.next());
        let mut case = Case::new(&mut random);
        case.settings.method = Method::Greedy;
        let n = case.cells.len() / case.dim;
        let old: Vec<bool> = (0..n).map(|row| row == 0 || random.below(5) > 0).collect();
        // The earlier run had the old rows alone.
        let exclude = (0..n).filter(|&row| !old[row]).map(Position::new).collect();
        case.conditions = Conditions { exclude, ..Conditions::default() };
        let dealt = any(seed, &mut random);
        case.survey(|survey| {
            let made = case.resumed(survey, &[]).picks;
            alike(dealt, &format!("seed {seed}"), || {
                extend(survey, &case.settings, case.k, &made, &old, &Monitor::default()).unwrap()
            });
        });
    }
}

#[test]
fn longer_runs_are_the_same_bits_through_many_epochs() {
    for (seed, penalty) in [(1, 0.0), (2, 0.1), (3, 1.0), (4, 0.1)] {
        let mut random = Random(seed);
        let (n, dim) = (2500, 24);
        let case = Case {
            cells: random.rows(n, dim, (-1.0, 1.0)),
            dim,
            settings: Settings { conflict_penalty: penalty, hot_rows: Some(40), ..Settings::default() },
            conditions: Conditions::default(),
            k: Some(300),
        };
        case.survey(|survey| {
            for transport in [Transport::Straight, Transport::Forgetful, Transport::Wild] {
                for remote in [false, true] {
                    let dealt = Dealt { owners: 5, whose: Whose::Anyone, transport, remote, seed };
                    alike(dealt, &format!("{penalty}"), || case.resumed(survey, &[]));
                }
            }
        });
    }
}
