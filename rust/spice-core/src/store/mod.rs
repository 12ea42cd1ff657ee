//! The gradient store: one folder of immutable files that anything able to read safetensors can open.
//!
//! # The format, version 1
//!
//! All numbers are little-endian. `xxh3-64:` is followed by 16 lower-case hex digits.
//!
//! ```text
//! store/
//!   store.json                                schema and provenance, written once
//!   shard-<writer>-<sequence>.safetensors     committed rows, never changed afterwards
//!   .tmp-*                                    unfinished or forgotten; ignored
//!   .lock                                     locked by whoever replaces shards; its length counts how often
//!   damaged-*                                 set aside by a repair; ignored
//!   unfinished.json                           what an extraction says of itself while it goes on; ignored here
//!   grown.json                                the data that the rows belong to since more have come; ignored here
//!   extraction.json                           what an extraction was asked for; ignored here
//!   .extracting                               locked by the extraction that is going on; ignored here
//! ```
//!
//! **`store.json`** is a JSON object of at most 16 MiB, 2²⁰ values and 127 levels with exactly the members `format_version` (1),
//! `schema_id`, `dim` (columns, 1 to 2³²), `dtype` (`"int8"`, `"float16"`, `"bfloat16"` or `"float32"`),
//! `reduction` (of the loss over tokens: `"sum"`, `"mean"` or null for unknown), `provenance` (any object),
//! `written_by` (free text) and, last, `checksum`. The file ends with the bytes
//! `"checksum": "xxh3-64:<16 hex>"\n}\n`; the checksum is taken over the whole file with these 16 digits
//! replaced by `0`. `schema_id` is the XXH3-128, as 32 hex digits, of the JSON object of `format_version`,
//! `dim`, `dtype`, `reduction` and `provenance`, without spaces, with the members of all objects sorted by
//! their UTF-8 bytes, and with strings and numbers written as in the file.
//!
//! **A shard** is a safetensors file: the length `n` of the header (u64), `n` bytes of JSON, the data section.
//! Here `n` is at most 1 MiB, spaces pad the header so that the data section starts at a multiple of 64, and
//! the tensors are exactly these, in this order and without gaps (so that each is aligned to its cells):
//!
//! ```text
//! index       I64 (rows,)               row of the dataset, at least 0
//! record      I64 (rows,)    optional   hash of what is learned from the sample
//! scale       F32 (rows,)               row = scale × stored; finite, above 0
//! norm        F32 (rows,)               2-norm of the row before it was rounded to dtype
//! loss        F32 (rows,)    optional   loss of the sample, finite
//! num_tokens  I32 (rows,)    optional   learned tokens of the sample, at least 0
//! gradients   I8 | F16 | BF16 | F32 (rows, dim)
//! ```
//!
//! The header begins with the bytes `{"__metadata__":{"header_checksum":"xxh3-64:<16 hex>"`; this checksum is
//! taken over the length and the header, with these 16 digits replaced by `0`. The other metadata are
//! `format_version` (`"1"`), `schema_id` (as in `store.json`), `rows` (decimal), `columns_checksum` (over the
//! data section before `gradients`), `data_checksum` (over the whole data section), optionally `rows_checksum` and `nonce`
//! (16 hex digits of chance, so that a shard with the same rows and name as an earlier one has another checksum), and
//! `supersedes` (a JSON object: name of a shard → its `header_checksum`). `rows_checksum` is the sum over the rows, modulo 2⁶⁴,
//! of the XXH3-64 of 16 bytes: `scale`, `norm`, `loss` and `num_tokens` of the row, four bytes of 255 in place of a column that
//! is not there, and of the 8 of its `record` after them where there is one; its seed is the XXH3-64 of the row's stored cells,
//! whose seed is `index`. So it does not depend on how
//! rows are spread over shards, and [`Reader::fingerprint`] of a store stays the same when that changes. Unknown tensors, members or metadata are refused: another set comes with another
//! version. The place and the rule of the two self-checksums hold for every version.
//!
//! # Rules
//!
//! - *Visible if and only if complete.* A shard is written under a temporary name, the file is synced, then linked to
//!   its own name, which must be new (where there are no hard links: renamed), then the folder is synced, and only then the
//!   rows count as committed. A file that could not be synced is never synced again, which might succeed for nothing, but
//!   written anew. A new folder is synced in its parent. A killed writer loses what it had not committed and
//!   damages nothing. `store.json` appears in the same way, so of two creators one wins and the other compares.
//!   [`WriterOptions::fsync`] alone can relax the syncing, of one writer's shards.
//! - *No coordination.* Writers have different names; any number of them fills one store. The order of rows is
//!   that of the shards' names, then that of the file. One dataset index in two shards is an error.
//! - *Superseded shards do not exist.* A shard whose name and header checksum are in the `supersedes` of any other is
//!   skipped, its own list is still honoured, and a cycle is an error. Removing superseded files later changes nothing;
//!   a later shard of such a name is another shard. A compaction writes one shard in place of several, and a deletion one
//!   in place of one, so the moment in which the new one gets its name is the moment in which the old ones stop to
//!   count. Whoever does that holds the lock.
//! - *A reader lists the folder again if shards were replaced meanwhile*, because a compaction between two names of one listing
//!   could hide both a shard and its successor from it. Whoever replaces shards makes `.lock` a byte longer, after the successors
//!   have their names and before the first of the old ones goes; the reader compares its length before the listing with that after
//!   the last shard has been opened.
//! - *The scale of floats is a power of two*, so it costs no precision. It is 1 unless cells would overflow, or cells of
//!   2⁻¹⁰ of the row's largest would be subnormal; that of `int8` has at most 16 significant bits. So scale × stored is
//!   exact in `f32`. See [`Writer`] for the bounds on the rounding error.
//! - *Nothing outside the folder is read*: names with separators are no names of shards; links, pipes and devices are refused,
//!   as a lock too.
//! - *No number is trusted*: what a file states about sizes is held against its length before anything is taken by it.
//! - *Optional columns* are there for all rows of a store or count as absent: [`Reader::loss`] is `None` unless every
//!   shard with rows has the column. A writer may not leave out what all earlier shards have.
//! - *Opening reads no gradients*: sizes, headers, the columns before them and their checksums.
//!   [`Reader::verify`] reads everything.
//!
//! # What this cannot protect from
//!
//! Gradients are read through memory maps, and the store itself never rewrites or shortens a shard. If another program does,
//! that is an error with the file's name where it can be: lengths are looked at before each pass over the rows and, while
//! one goes on, some twenty times a second ([`Reader::check_lengths`]), and a shard that was written to is held against its
//! checksums when the pass has ended ([`Reader::check_touched`]). Between two looks the system ends the process that reads
//! behind the end of a file with SIGBUS; then a line on standard error names the file. A file that gets the name of
//! an open shard does not matter. Checksums find
//! accidents, not a forger. A writer knows the rows that were there when it was created, so two writers
//! that run at the same time can both write one row; whoever opens the store then is told, and a [`repair`] keeps one of two rows that
//! are the same to the bit. On network file systems another
//! machine may see new names late, and a shard that it removes takes the map of it away here (SIGBUS): there, stores are to be
//! compacted while nobody reads them. A merge or conversion that is killed leaves a folder `.tmp-spice-*` beside its target, which
//! the next one of that target removes.

#[cfg(target_endian = "big")]
compile_error!("the gradient store maps little-endian files; big-endian hosts are not supported");

mod aside;
mod background;
mod budget;
mod buffer;
mod bytes;
mod cells;
mod checksum;
mod compact;
mod copies;
mod derive;
mod duplicates;
mod faults;
mod folder;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod header;
mod known;
mod lock;
mod mapped_file;
mod mmap;
mod names;
mod observer;
mod opening;
mod options;
mod reader;
mod repair;
mod schema;
mod shard;
mod sigbus;
mod verify;
mod version;
mod writer;

pub use compact::{Compacted, compact, delete};
pub use copies::Dropped;
pub use derive::{Differing, Merged, convert, merge};
pub use known::Known;
pub use mapped_file::MappedFile;
pub use observer::Observer;
pub use options::WriterOptions;
pub use reader::{Info, Reader};
pub use repair::{Damaged, Repaired, repair};
pub use schema::{Reduction, Schema};
pub use verify::Verified;
pub use version::FORMAT_VERSION;
pub use writer::Writer;
