//! The header of a shard: bytes to a checked layout and back, without a file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::faults::corrupt;
use super::known::Kinds;
use super::schema::Schema;
use super::version::{FORMAT_VERSION, other_version};
use super::{checksum, folder};
use crate::error::Result;
use crate::matrix::Dtype;

/// The most bytes of a header: room for thousands of superseded names, and little to parse.
const MAX_HEADER: u64 = 1 << 20;
/// The data section starts at a multiple of this.
const ALIGNMENT: usize = 64;
/// Bytes of the length in front of the header.
const LENGTH: usize = 8;
/// How every header begins; the digits of its checksum follow.
const SEAL_START: &str = "{\"__metadata__\":{\"header_checksum\":\"xxh3-64:";
const SEAL: usize = LENGTH + SEAL_START.len();

/// A shard that another replaces: its name, and the checksum of its header, so that a later shard of that name is
/// not taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Replaced {
    pub(super) name: String,
    pub(super) header_checksum: u64,
}

/// What the header of a shard says, checked against the size of the file.
#[derive(Debug, PartialEq)]
pub(super) struct Header {
    pub(super) rows: usize,
    pub(super) dim: usize,
    pub(super) dtype: Dtype,
    pub(super) schema_id: String,
    pub(super) columns_checksum: u64,
    pub(super) data_checksum: u64,
    pub(super) rows_checksum: Option<u64>,
    pub(super) nonce: Option<u64>,
    pub(super) header_checksum: u64,
    pub(super) supersedes: Vec<Replaced>,
    /// Where things are in the file.
    pub(super) index: Range<usize>,
    pub(super) record: Option<Range<usize>>,
    pub(super) scale: Range<usize>,
    pub(super) norm: Range<usize>,
    pub(super) loss: Option<Range<usize>>,
    pub(super) num_tokens: Option<Range<usize>>,
    pub(super) gradients: Range<usize>,
}

impl Header {
    /// Which columns there are that may be missing.
    pub(super) fn kinds(&self) -> Kinds {
        Kinds {
            num_tokens: self.num_tokens.is_some(),
            loss: self.loss.is_some(),
            record: self.record.is_some(),
        }
    }

    /// The data section before the gradients.
    pub(super) fn columns(&self) -> Range<usize> {
        self.index.start..self.gradients.start
    }
}

/// What a header is made of.
pub(super) struct Content<'a> {
    pub(super) rows: usize,
    pub(super) dim: usize,
    pub(super) dtype: Dtype,
    pub(super) kinds: Kinds,
    pub(super) schema_id: &'a str,
    pub(super) columns_checksum: u64,
    pub(super) data_checksum: u64,
    pub(super) rows_checksum: Option<u64>,
    /// A number of chance, so that no other shard has this one's checksum, not even one with the same rows and name.
    pub(super) nonce: Option<u64>,
    pub(super) supersedes: &'a [Replaced],
}

/// A tensor as safetensors describes it; offsets count from the start of the data section.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The metadata in the order in which they are written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    header_checksum: String,
    format_version: String,
    schema_id: String,
    rows: String,
    columns_checksum: String,
    data_checksum: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rows_checksum: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
    supersedes: String,
}

/// The header as JSON; serde refuses duplicate and unknown members.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(rename = "__metadata__")]
    metadata: Metadata,
    index: Tensor,
    record: Option<Tensor>,
    scale: Tensor,
    norm: Tensor,
    loss: Option<Tensor>,
    num_tokens: Option<Tensor>,
    gradients: Tensor,
}

/// Only what tells whether [`Raw`] is the shape to expect.
#[derive(Deserialize)]
struct Peek {
    #[serde(rename = "__metadata__")]
    metadata: PeekMetadata,
}

#[derive(Deserialize)]
struct PeekMetadata {
    format_version: String,
}

/// Names of the tensors in the order of the data section; a [`Layout`] has one place for each.
const NAMES: [&str; 7] = ["index", "record", "scale", "norm", "loss", "num_tokens", "gradients"];
type Layout = [Option<Tensor>; 7];

/// The name of a stored dtype in safetensors.
const fn tensor_dtype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::I8 => "I8",
        Dtype::F16 => "F16",
        Dtype::BF16 => "BF16",
        Dtype::F32 => "F32",
        Dtype::F64 => "F64",
    }
}

/// The one layout that a shard with this content has; `None` if it is larger than a `u64` can count.
fn layout(rows: u64, dim: u64, dtype: Dtype, kinds: Kinds) -> Option<Layout> {
    let mut end = 0u64;
    let mut next = |dtype: &str, size: u64, shape: &[u64]| {
        let start = end;
        let cells = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n))?;
        end = start.checked_add(cells.checked_mul(size)?)?;
        Some(Tensor { dtype: dtype.to_string(), shape: shape.to_vec(), data_offsets: [start, end] })
    };
    Some([
        Some(next("I64", 8, &[rows])?),
        if kinds.record { Some(next("I64", 8, &[rows])?) } else { None },
        Some(next("F32", 4, &[rows])?),
        Some(next("F32", 4, &[rows])?),
        if kinds.loss { Some(next("F32", 4, &[rows])?) } else { None },
        if kinds.num_tokens { Some(next("I32", 4, &[rows])?) } else { None },
        Some(next(tensor_dtype(dtype), dtype.size() as u64, &[rows, dim])?),
    ])
}

/// The bytes of a shard before its data section; `None` if they would be more than a reader accepts.
pub(super) fn encode(content: &Content<'_>) -> Option<Vec<u8>> {
    let supersedes: BTreeMap<&str, String> = (content.supersedes.iter())
        .map(|replaced| (&*replaced.name, checksum::text(replaced.header_checksum)))
        .collect();
    let metadata = Metadata {
        header_checksum: checksum::text(0),
        format_version: FORMAT_VERSION.to_string(),
        schema_id: content.schema_id.to_string(),
        rows: content.rows.to_string(),
        columns_checksum: checksum::text(content.columns_checksum),
        data_checksum: checksum::text(content.data_checksum),
        rows_checksum: content.rows_checksum.map(checksum::text),
        nonce: content.nonce.map(|nonce| format!("{nonce:016x}")),
        supersedes: serde_json::to_string(&supersedes).ok()?,
    };
    let (rows, dim) = (content.rows as u64, content.dim as u64);
    let tensors = layout(rows, dim, content.dtype, content.kinds)?;
    let mut bytes = vec![0; LENGTH];
    bytes.extend_from_slice(b"{\"__metadata__\":");
    serde_json::to_writer(&mut bytes, &metadata).ok()?;
    for (name, tensor) in NAMES.iter().zip(&tensors) {
        if let Some(tensor) = tensor {
            bytes.extend_from_slice(format!(",\"{name}\":").as_bytes());
            serde_json::to_writer(&mut bytes, tensor).ok()?;
        }
    }
    bytes.push(b'}');
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), b' ');
    let length = (bytes.len() - LENGTH) as u64;
    bytes[..LENGTH].copy_from_slice(&length.to_le_bytes());
    checksum::seal(&mut bytes, SEAL);
    (length <= MAX_HEADER).then_some(bytes)
}

/// The header of the safetensors file `bytes` without its length, its end, and its checksum if that holds.
fn unseal<'a>(path: &Path, bytes: &'a [u8]) -> Result<(&'a [u8], usize, u64)> {
    let size = || format!("{} bytes", bytes.len());
    let Some((length, _)) = bytes.split_first_chunk::<LENGTH>() else {
        return Err(corrupt(path, "file size", size(), format!("at least {LENGTH} bytes")));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(corrupt(path, "header length", length, format!("at most {MAX_HEADER}")));
    }
    // At most 1 MiB and 8: fits any usize.
    let data = LENGTH + length as usize;
    let Some(sealed) = bytes.get(..data) else {
        return Err(corrupt(path, "file size", size(), format!("at least {data} bytes")));
    };
    let json = &sealed[LENGTH..];
    let digits = json.strip_prefix(SEAL_START.as_bytes()).and_then(|rest| rest.get(..checksum::DIGITS));
    let Some(digits) = digits else {
        return Err(corrupt(path, "header", "no checksum at its start", "a shard of a gradient store"));
    };
    let found = format!("{}{}", checksum::PREFIX, String::from_utf8_lossy(digits));
    let expected = checksum::of_sealed(sealed, SEAL);
    if checksum::parse(&found) != Some(expected) {
        return Err(corrupt(path, "header_checksum", found, checksum::text(expected)));
    }
    Ok((json, data, expected))
}

/// Checks everything that a shard says about itself before its data; `bytes` are the whole file.
///
/// Reads the header and the length of `bytes`, nothing behind the header. `path` is for messages.
///
/// # Errors
/// [`Error::CorruptStore`](crate::Error::CorruptStore), or [`Error::Store`](crate::Error::Store) for another
/// format version.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Header> {
    let (json, data, header_checksum) = unseal(path, bytes)?;
    let version = serde_json::from_slice::<Peek>(json).map(|peek| peek.metadata.format_version);
    if let Some(version) = version.ok().filter(|version| *version != FORMAT_VERSION.to_string()) {
        return Err(other_version(path, version));
    }
    let raw: Raw = serde_json::from_slice(json).map_err(|error| {
        corrupt(path, "header", error, "the tensors and metadata of a gradient store")
    })?;
    let Raw { metadata, index, record, scale, norm, loss, num_tokens, gradients } = raw;
    if data % ALIGNMENT != 0 {
        return Err(corrupt(path, "data section", format!("start at {data}"), "a multiple of 64"));
    }

    let rows = metadata.rows.parse().map_err(|_| corrupt(path, "rows", &metadata.rows, "a number"))?;
    let sum = |field: &str, text: &str| {
        checksum::parse(text).ok_or_else(|| corrupt(path, field, text, "xxh3-64: and 16 hex digits"))
    };
    let columns_checksum = sum("columns_checksum", &metadata.columns_checksum)?;
    let data_checksum = sum("data_checksum", &metadata.data_checksum)?;
    let rows_checksum = metadata.rows_checksum.as_deref();
    let rows_checksum = rows_checksum.map(|text| sum("rows_checksum", text)).transpose()?;
    let nonce = metadata.nonce.as_deref();
    let nonce = nonce
        .map(|text| checksum::number(text).ok_or_else(|| corrupt(path, "nonce", text, "16 hex digits")))
        .transpose()?;
    let supersedes: BTreeMap<String, String> =
        serde_json::from_str(&metadata.supersedes).map_err(|error| {
            corrupt(path, "supersedes", error, "a JSON object: name of a shard → checksum of its header")
        })?;
    if let Some(name) = supersedes.keys().find(|name| !folder::is_shard_name(name)) {
        return Err(corrupt(path, "supersedes", format!("{name:?}"), "names of shards of this folder"));
    }
    let supersedes = (supersedes.into_iter())
        .map(|(name, text)| Ok(Replaced { header_checksum: sum("supersedes", &text)?, name }))
        .collect::<Result<_>>()?;

    // Rows, columns and dtype determine where everything is; the header has to say the same.
    let dtype = Schema::DTYPES.into_iter().find(|&dtype| tensor_dtype(dtype) == gradients.dtype);
    let dtype = dtype.ok_or_else(|| {
        corrupt(path, "gradients", format!("dtype {}", gradients.dtype), "I8, F16, BF16 or F32")
    })?;
    let dim = gradients.shape.get(1).copied().unwrap_or(0);
    if dim == 0 {
        let found = format!("shape {:?}", gradients.shape);
        return Err(corrupt(path, "gradients", found, format!("shape [{rows}, columns]")));
    }
    let kinds =
        Kinds { num_tokens: num_tokens.is_some(), loss: loss.is_some(), record: record.is_some() };
    let expected = layout(rows, dim, dtype, kinds)
        .ok_or_else(|| corrupt(path, "gradients", format!("{rows} × {dim} cells"), "fewer"))?;
    let found = [Some(index), record, Some(scale), Some(norm), loss, num_tokens, Some(gradients)];
    for ((name, found), expected) in NAMES.iter().zip(&found).zip(&expected) {
        if found != expected {
            return Err(corrupt(path, name, show(found), show(expected)));
        }
    }
    let end = found.iter().flatten().map(|tensor| tensor.data_offsets[1]).max().unwrap_or(0);
    let end = (data as u64).checked_add(end);
    if end != Some(bytes.len() as u64) {
        let expected = end.map_or("fewer rows".to_string(), |end| format!("{end} bytes"));
        return Err(corrupt(path, "file size", format!("{} bytes", bytes.len()), expected));
    }

    // All offsets are within the file now, so they fit.
    let [index, record, scale, norm, loss, num_tokens, gradients] = found.map(|tensor| {
        tensor.map(|tensor| {
            let [start, end] = tensor.data_offsets;
            data + start as usize..data + end as usize
        })
    });
    Ok(Header {
        rows: rows as usize,
        dim: dim as usize,
        dtype,
        schema_id: metadata.schema_id,
        columns_checksum,
        data_checksum,
        rows_checksum,
        nonce,
        header_checksum,
        supersedes,
        index: index.unwrap_or_default(),
        record,
        scale: scale.unwrap_or_default(),
        norm: norm.unwrap_or_default(),
        loss,
        num_tokens,
        gradients: gradients.unwrap_or_default(),
    })
}

/// A tensor's description for a message.
fn show(tensor: &Option<Tensor>) -> String {
    serde_json::to_string(tensor).unwrap_or_default()
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
