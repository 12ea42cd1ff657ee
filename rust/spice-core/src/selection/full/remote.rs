//! Owners that share nothing with the search: what goes to them and what comes back is bytes.

use super::factor::Factor;
use super::messages::{Asked, News, Reply};
use super::owner::Owner;
use super::owners::{Local, Owners};
use super::window::Window;
use super::wire::{Known, Part, Progress, Returning, Sizes, call, read_call, read_returning, returning};
use crate::error::Result;
use crate::selection::run::Run;

#[cfg(test)]
thread_local! {
    /// Messages of this thread, as long as somebody listens.
    pub(super) static HEARD: std::cell::RefCell<Option<Vec<Vec<u8>>>> = const { std::cell::RefCell::new(None) };
}

/// An owner elsewhere, with what it has been told of the selection.
pub(super) struct Far<'a> {
    owner: Owner<'a>,
    window: Window,
    /// Picks that it has heard of.
    selected: usize,
    /// Picks before the epoch, and its factor.
    factor: Option<(usize, Factor)>,
}

impl<'a> Far<'a> {
    pub(super) const fn new(owner: Owner<'a>) -> Self {
        Self { owner, window: Window::new(0), selected: 0, factor: None }
    }

    /// Answers a call by rules that it knows by itself.
    ///
    /// # Errors
    /// [`crate::Error::InvalidInput`] if it is none; whatever stops the owner.
    pub(super) fn answer(&mut self, bytes: &[u8], rules: &Run<'_>, sizes: Sizes) -> Result<Vec<u8>> {
        let (progress, question) = read_call(bytes, sizes)?;
        let known = Known {
            end: self.window.end(),
            factor: self.factor.as_ref().map(|&(epoch_start, _)| epoch_start),
        };
        // An older call has been answered, and tells nothing new.
        if progress.selected < self.selected || !progress.continues(known) {
            return Ok(returning(&Returning::Behind));
        }
        progress.extend(&mut self.window, sizes.dim);
        let Progress { selected, mean, books, latest, epoch_start, factor, .. } = progress;
        match factor {
            Part::None => self.factor = None,
            Part::Same => {}
            Part::New(factor) => self.factor = Some((epoch_start, factor)),
        }
        self.selected = selected;
        let mut run = rules.follower();
        run.follow(selected, mean, books);
        let news = News {
            run: &run,
            window: &self.window,
            epoch_start,
            factor: self.factor.as_ref().map(|(_, factor)| factor),
            mean: latest,
        };
        Ok(returning(&Returning::Reply(self.owner.answer(&news, &question.asked())?)))
    }
}

/// The way to such owners.
pub(super) struct Remote<'a> {
    owners: Vec<Far<'a>>,
    known: Vec<Known>,
}

impl<'a> Remote<'a> {
    pub(super) fn new(local: Local<'a>) -> Self {
        let owners: Vec<Far<'a>> = local.0.into_iter().map(Far::new).collect();
        Self { known: vec![Known::default(); owners.len()], owners }
    }
}

impl Owners for Remote<'_> {
    fn ask(&mut self, news: &News<'_>, asks: &[Asked<'_>]) -> Result<Vec<Reply>> {
        let run = news.run;
        let mut replies = Vec::with_capacity(asks.len());
        for asked in asks {
            let owner = &mut self.owners[asked.owner];
            let sizes = Sizes {
                rows: owner.owner.rows(),
                pool: run.survey.len(),
                dim: run.survey.dim(),
                groups: run.books().map_or(0, |books| books.by_group.len()),
            };
            let known = &mut self.known[asked.owner];
            loop {
                let message = call(news, asked, *known);
                let bytes = owner.answer(&message, run, sizes)?;
                #[cfg(test)]
                HEARD.with_borrow_mut(|heard| {
                    heard.iter_mut().for_each(|heard| {
                        heard.extend([message.clone(), bytes.clone()]);
                    })
                });
                match read_returning(&bytes, sizes)? {
                    Returning::Behind => *known = Known::default(),
                    Returning::Reply(reply) => {
                        replies.push(reply);
                        break;
                    }
                }
            }
            *known = Known { end: news.window.end(), factor: news.factor.map(|_| news.epoch_start) };
        }
        Ok(replies)
    }

    fn forget(&mut self, owner: usize) {
        let far = &mut self.owners[owner];
        far.owner.forget();
        (far.window, far.selected, far.factor) = (Window::new(0), 0, None);
    }
}
