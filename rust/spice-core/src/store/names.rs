//! Names of the files that a store is.

/// The name of the schema file.
pub(super) const SCHEMA_FILE: &str = "store.json";
const SHARD_START: &str = "shard-";
const SHARD_END: &str = ".safetensors";

/// The file name of a shard.
pub(super) fn shard_name(writer: &str, sequence: u64) -> String {
    format!("{SHARD_START}{writer}-{sequence:06}{SHARD_END}")
}

/// The sequence number in a shard's file name, if `writer` wrote it.
pub(super) fn shard_sequence(name: &str, writer: &str) -> Option<u64> {
    name.strip_prefix(SHARD_START)?
        .strip_prefix(writer)?
        .strip_prefix('-')?
        .strip_suffix(SHARD_END)?
        .parse()
        .ok()
}

/// Whether `name` is the plain file name of a shard: it cannot lead out of the folder.
pub(super) fn is_shard_name(name: &str) -> bool {
    name.starts_with(SHARD_START) && name.ends_with(SHARD_END) && !name.contains(['/', '\\', '\0'])
}
