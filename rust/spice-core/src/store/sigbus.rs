//! What is said when a mapped file becomes shorter and the system ends the process with SIGBUS.
//!
//! The signal cannot be turned into an error: the read that raised it has no result. So the handler writes which file it is
//! and hands the signal on to whoever had it before, by default to the system, which ends the process. It does nothing that may
//! not be done in a handler of a signal: it reads atomics, looks for the map that the address lies in, tries the last byte of
//! each other one by giving it to a pipe, which fails instead of raising, and writes to standard error.
//!
//! The last byte alone would not do: a file that becomes shorter loses its pages one after the other, from the first one on,
//! so a map's last byte may still be there when one before it raises the signal.
#![allow(unsafe_code)]

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// So many maps can be named at a time; of more, the last ones are not.
const MOST: usize = 1 << 14;
const WORDS: usize = 31;

/// A map: where it starts and ends, the latter 0 for a free place, and the end of its file's path.
struct Entry {
    start: AtomicUsize,
    end: AtomicUsize,
    path: [AtomicU64; WORDS],
}

static ENTRIES: [Entry; MOST] = [const {
    Entry {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        path: [const { AtomicU64::new(0) }; WORDS],
    }
}; MOST];
/// Where the search for a free place begins.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// An end that no map has: the place is being filled.
const FILLING: usize = usize::MAX;

/// The name of a map as long as it lives.
#[derive(Debug)]
pub(super) struct Named(Option<usize>);

impl Named {
    /// Names the map of these bytes.
    pub(super) fn new(bytes: &[u8], path: &Path) -> Self {
        if bytes.is_empty() {
            return Self(None);
        }
        #[cfg(unix)]
        handler::install();
        let first = NEXT.fetch_add(1, Ordering::Relaxed);
        let take = |&place: &usize| {
            let end = &ENTRIES[place].end;
            end.compare_exchange(0, FILLING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let place = (0..MOST).map(|step| (first + step) % MOST).find(take);
        if let Some(place) = place {
            let path = path.as_os_str().as_encoded_bytes();
            let mut text = [0; 8 * WORDS];
            let shown = &path[path.len().saturating_sub(text.len())..];
            text[..shown.len()].copy_from_slice(shown);
            let words = text.as_chunks().0.iter().map(|&word| u64::from_ne_bytes(word));
            ENTRIES[place]
                .path
                .iter()
                .zip(words)
                .for_each(|(to, word)| to.store(word, Ordering::Relaxed));
            let bytes = bytes.as_ptr_range();
            ENTRIES[place].start.store(bytes.start as usize, Ordering::Relaxed);
            ENTRIES[place].end.store(bytes.end as usize, Ordering::Release);
        }
        Self(place)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            ENTRIES[place].end.store(0, Ordering::Release);
        }
    }
}

#[cfg(unix)]
mod handler {
    use std::io::{Error, ErrorKind};
    use std::mem::zeroed;
    use std::ptr::null_mut;
    use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

    use super::{ENTRIES, Entry, FILLING, WORDS};

    static INSTALLED: AtomicBool = AtomicBool::new(false);
    /// Who had the signal before.
    static BEFORE: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
    static FLAGS: AtomicI32 = AtomicI32::new(0);

    /// Installs the handler, once in a process and its children.
    pub(super) fn install() {
        if INSTALLED.swap(true, Ordering::AcqRel) {
            return;
        }
        // SAFETY: `before` and `action` are plain data that zeros are a value of, and live through the calls.
        unsafe {
            let mut before: libc::sigaction = zeroed();
            if libc::sigaction(libc::SIGBUS, null_mut(), &raw mut before) == 0 {
                BEFORE.store(before.sa_sigaction, Ordering::Release);
                FLAGS.store(before.sa_flags, Ordering::Release);
                set(on_sigbus as *const () as usize, libc::SA_ONSTACK | libc::SA_SIGINFO);
            }
        }
    }

    /// # Safety
    /// `handler` is a handler of signals for these flags.
    unsafe fn set(handler: usize, flags: libc::c_int) {
        // SAFETY: as above; what the handler has to be is this function's condition.
        unsafe {
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = handler;
            action.sa_flags = flags;
            libc::sigaction(libc::SIGBUS, &raw const action, null_mut());
        }
    }

    extern "C" fn on_sigbus(signal: libc::c_int, info: *const libc::siginfo_t, _: *const libc::c_void) {
        // SAFETY: the system gives a handler with SA_SIGINFO what is to be known of the signal; of one that a process has
        // sent, whose code is none above 0, it holds no address.
        let address =
            unsafe { info.as_ref().filter(|info| info.si_code > 0).map(|info| info.si_addr() as usize) };
        ENTRIES.iter().filter(|entry| is_cut(entry, address)).for_each(say);
        // SAFETY: the handler and the flags are those that were there before. A fault happens again when this returns, and a
        // signal that was sent is sent again: then they have it.
        unsafe {
            set(BEFORE.load(Ordering::Acquire), FLAGS.load(Ordering::Acquire));
            libc::raise(signal);
        }
    }

    /// Whether a map is the one with the address that could not be read, or has a last byte that cannot be read.
    fn is_cut(entry: &Entry, address: Option<usize>) -> bool {
        let end = entry.end.load(Ordering::Acquire);
        if end == 0 || end == FILLING {
            return false;
        }
        if address.is_some_and(|address| (entry.start.load(Ordering::Relaxed)..end).contains(&address)) {
            return true;
        }
        let mut ends = [0; 2];
        // SAFETY: the kernel reads the byte, and answers EFAULT where there is none. It fits the empty pipe.
        unsafe {
            if libc::pipe(ends.as_mut_ptr()) != 0 {
                return false;
            }
            let written = libc::write(ends[1], (end - 1) as *const libc::c_void, 1);
            let cut = written < 0 && Error::last_os_error().raw_os_error() == Some(libc::EFAULT);
            ends.iter().for_each(|&end| _ = libc::close(end));
            cut
        }
    }

    fn say(entry: &Entry) {
        let mut path = [0; 8 * WORDS];
        for (to, word) in path.as_chunks_mut().0.iter_mut().zip(&entry.path) {
            *to = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        let length = path.iter().position(|&byte| byte == 0).unwrap_or(path.len());
        let after = b": became shorter while it was read; SIGBUS ends the process\n";
        for part in [&b"spice-rs: "[..], &path[..length], after] {
            // SAFETY: the bytes are there as long as the call takes.
            let written = unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
            if written < 0 && Error::last_os_error().kind() != ErrorKind::Interrupted {
                return;
            }
        }
    }
}
