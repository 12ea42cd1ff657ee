//! Checksums as text, and the checksum of bytes that contain it.

use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

/// What precedes the digits: the name of the hash.
pub(super) const PREFIX: &str = "xxh3-64:";
/// Hex digits of a checksum.
pub(super) const DIGITS: usize = 16;

/// `xxh3-64:` and 16 lower-case hex digits.
pub(super) fn text(checksum: u64) -> String {
    format!("{PREFIX}{checksum:016x}")
}

/// The inverse of [`text`]; `None` for anything that it does not produce.
pub(super) fn parse(text: &str) -> Option<u64> {
    text.strip_prefix(PREFIX).and_then(number)
}

/// The number that 16 lower-case hex digits say; `None` for anything else.
pub(super) fn number(digits: &str) -> Option<u64> {
    let number = u64::from_str_radix(digits, 16).ok()?;
    (format!("{number:016x}") == digits).then_some(number)
}

/// The checksum of `bytes`.
pub(super) fn of(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// The checksum of a row's stored cells.
pub(super) fn of_cells(index: [u8; 8], cells: &[u8]) -> u64 {
    xxh3_64_with_seed(cells, u64::from_le_bytes(index))
}

/// What a row adds to the `rows_checksum` of its shard, given [`of_cells`]; of `loss` and `num_tokens`, one that is not
/// there has four bytes of 255, and `record` has none.
pub(super) fn of_row(scale_norm_loss_tokens: [[u8; 4]; 4], record: Option<[u8; 8]>, cells: u64) -> u64 {
    let values = scale_norm_loss_tokens.as_flattened();
    match record {
        None => xxh3_64_with_seed(values, cells),
        Some(record) => {
            let mut more = [0; 24];
            more[..16].copy_from_slice(values);
            more[16..].copy_from_slice(&record);
            xxh3_64_with_seed(&more, cells)
        }
    }
}

/// What [`of_row`] takes for a column that is not there: no loss and no number of tokens.
pub(super) const ABSENT: [u8; 4] = [255; 4];

/// The checksum of `bytes` with the [`DIGITS`] bytes from `at` replaced by `0`; `at` is in range.
pub(super) fn of_sealed(bytes: &[u8], at: usize) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&bytes[..at]);
    hasher.update(&[b'0'; DIGITS]);
    hasher.update(&bytes[at + DIGITS..]);
    hasher.digest()
}

/// Writes the checksum of `bytes` into its own place at `at`.
pub(super) fn seal(bytes: &mut [u8], at: usize) {
    let checksum = of_sealed(bytes, at);
    bytes[at..at + DIGITS].copy_from_slice(&text(checksum).as_bytes()[PREFIX.len()..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_text_is_read() {
        assert_eq!(parse(&text(0xabc)), Some(0xabc));
        for bad in ["", "xxh3-64:", "xxh3-64:ABCDEF0123456789", "xxh3-64:+bcdef0123456789", "md5:0"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_changed_byte_breaks_the_seal() {
        let mut bytes = *b"some text, then 0000000000000000 and more";
        seal(&mut bytes, 16);
        for position in 0..bytes.len() {
            let mut changed = bytes;
            changed[position] ^= 1;
            let digits = std::str::from_utf8(&changed[16..32]).unwrap();
            let found = parse(&format!("{PREFIX}{digits}"));
            assert_ne!(found, Some(of_sealed(&changed, 16)), "{position}");
        }
    }
}
