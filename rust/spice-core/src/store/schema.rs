//! What a store holds and where it comes from, and `store.json`, which says so.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_128;

use super::checksum;
use super::faults::corrupt;
use super::version::{FORMAT_VERSION, other_version};
use crate::error::{Error, Result};
use crate::matrix::Dtype;

/// The most bytes of `store.json`.
pub(super) const MAX_BYTES: u64 = 16 << 20;
/// The most columns of a row.
const MAX_DIM: u64 = 1 << 32;
/// The most values in `store.json`, as [`values`] counts them: in memory each can take a hundred times its text.
const MAX_VALUES: usize = 1 << 20;

/// How the loss of a sample was reduced over its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// The sum over the learned tokens.
    Sum,
    /// The mean over the learned tokens.
    Mean,
}

impl Reduction {
    /// `sum` or `mean`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Mean => "mean",
        }
    }

    /// The inverse of [`Reduction::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Sum, Self::Mean].into_iter().find(|reduction| reduction.name() == name)
    }
}

/// What all writers of a store agree on.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    /// Number of columns.
    pub dim: usize,
    /// Type of the stored cells, one of [`Schema::DTYPES`].
    pub dtype: Dtype,
    /// Reduction of the loss whose gradients these are, if known.
    pub reduction: Option<Reduction>,
    /// Where the rows come from: projection, model, tokenizer, dataset; any JSON.
    pub provenance: Map<String, Value>,
}

/// The members of `store.json` in their order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format_version: u32,
    schema_id: String,
    dim: u64,
    dtype: String,
    reduction: Option<Reduction>,
    provenance: Map<String, Value>,
    written_by: String,
    checksum: String,
}

/// Only what tells whether [`File`] is the shape to expect.
#[derive(Deserialize)]
struct Peek {
    #[serde(default)]
    format_version: Value,
}

/// A parsed `store.json`.
#[derive(Debug)]
pub(super) struct StoreFile {
    pub(super) schema: Schema,
    pub(super) written_by: String,
}

/// What surrounds the digits of the checksum at the end of `store.json`.
const SEAL_END: &str = "\"\n}\n";

/// Where the digits of the checksum begin, if `bytes` end as a sealed `store.json` does.
pub(super) fn seal_position(bytes: &[u8]) -> Option<usize> {
    let at = bytes.len().checked_sub(checksum::DIGITS + SEAL_END.len())?;
    let before = format!("\"checksum\": \"{}", checksum::PREFIX);
    (bytes[..at].ends_with(before.as_bytes()) && bytes.ends_with(SEAL_END.as_bytes())).then_some(at)
}

impl Schema {
    /// The dtypes that can be stored.
    pub const DTYPES: [Dtype; 4] = [Dtype::I8, Dtype::F16, Dtype::BF16, Dtype::F32];

    /// Whether `dim` and `dtype` can be stored.
    fn check(&self) -> Result<()> {
        if self.dim == 0 {
            return Err(Error::invalid(
                "dim",
                0,
                "at least 1",
                "Give the number of columns of the rows.",
            ));
        }
        if self.dim as u64 > MAX_DIM {
            return Err(Error::invalid(
                "dim",
                self.dim,
                format!("at most {MAX_DIM}"),
                "Project the gradients to fewer columns.",
            ));
        }
        if !Self::DTYPES.contains(&self.dtype) {
            return Err(Error::invalid(
                "dtype",
                self.dtype.name(),
                "int8, float16, bfloat16 or float32",
                "Gradients carry no more precision than float32; store that.",
            ));
        }
        Ok(())
    }

    /// What the schema id is a hash of.
    fn content(&self) -> Value {
        json!({
            "format_version": FORMAT_VERSION,
            "dim": self.dim,
            "dtype": self.dtype.name(),
            "reduction": self.reduction,
            "provenance": self.provenance,
        })
    }

    /// A hash of all fields, 32 hex digits.
    pub fn id(&self) -> String {
        let mut text = String::new();
        canonical(&self.content(), &mut text);
        format!("{:032x}", xxh3_128(text.as_bytes()))
    }

    /// The bytes of `store.json`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the schema cannot be stored.
    pub(super) fn encode(&self, written_by: &str) -> Result<Vec<u8>> {
        self.check()?;
        let file = File {
            format_version: FORMAT_VERSION,
            schema_id: self.id(),
            dim: self.dim as u64,
            dtype: self.dtype.name().to_string(),
            reduction: self.reduction,
            provenance: self.provenance.clone(),
            written_by: written_by.to_string(),
            checksum: checksum::text(0),
        };
        let mut bytes = serde_json::to_vec_pretty(&file).map_err(|error| unfit(&error))?;
        bytes.push(b'\n');
        if bytes.len() as u64 > MAX_BYTES {
            return Err(unfit(&format!("{} bytes of JSON", bytes.len())));
        }
        if let Some(at) = seal_position(&bytes) {
            checksum::seal(&mut bytes, at);
        }
        // A provenance that JSON cannot carry back, such as one nested too deeply, must not reach the disk.
        match Self::decode(Path::new(super::folder::SCHEMA_FILE), &bytes) {
            Ok(back) if back.schema.id() == self.id() => Ok(bytes),
            Ok(_) => Err(unfit(&"values that change when written as JSON")),
            Err(error) => Err(unfit(&error)),
        }
    }

    /// Parses `store.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::CorruptStore`], or [`Error::Store`] for another format version.
    pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<StoreFile> {
        let at = seal_position(bytes).ok_or_else(|| {
            corrupt(path, "checksum", "no checksum at the end of the file", "a store.json of spice-rs")
        })?;
        let found = String::from_utf8_lossy(&bytes[at..at + checksum::DIGITS]);
        let found = format!("{}{found}", checksum::PREFIX);
        let expected = checksum::of_sealed(bytes, at);
        if checksum::parse(&found) != Some(expected) {
            return Err(corrupt(path, "checksum", found, checksum::text(expected)));
        }
        let invalid = |error: serde_json::Error| corrupt(path, "JSON", error, "a valid store.json");
        let found = values(bytes);
        if found > MAX_VALUES {
            let found = format!("{found} values");
            return Err(corrupt(path, "JSON", found, format!("at most {MAX_VALUES}")));
        }
        let Peek { format_version } = serde_json::from_slice(bytes).map_err(invalid)?;
        if format_version != json!(FORMAT_VERSION) {
            return Err(other_version(path, format_version));
        }
        let file: File = serde_json::from_slice(bytes).map_err(invalid)?;
        let dtype = Dtype::from_name(&file.dtype).filter(|dtype| Self::DTYPES.contains(dtype));
        let dtype = dtype.ok_or_else(|| {
            corrupt(
                path,
                "dtype",
                format!("{:?}", file.dtype),
                "\"int8\", \"float16\", \"bfloat16\" or \"float32\"",
            )
        })?;
        let dim = usize::try_from(file.dim).ok().filter(|_| (1..=MAX_DIM).contains(&file.dim));
        let dim = dim.ok_or_else(|| corrupt(path, "dim", file.dim, format!("1 to {MAX_DIM}")))?;
        let schema = Self { dim, dtype, reduction: file.reduction, provenance: file.provenance };
        if schema.id() != file.schema_id {
            return Err(corrupt(path, "schema_id", file.schema_id, schema.id()));
        }
        Ok(StoreFile { schema, written_by: file.written_by })
    }

    /// Refuses to join a store whose schema is `self` with rows of the schema `asked`.
    ///
    /// # Errors
    /// [`Error::StoreMismatch`] that names the first field that differs.
    pub(super) fn join(&self, path: &Path, asked: &Self) -> Result<()> {
        let Some((field, found, expected)) = difference("", &self.content(), &asked.content()) else {
            return Ok(());
        };
        Err(Error::StoreMismatch {
            path: path.to_path_buf(),
            field,
            found,
            expected,
            remedy: "Use the settings that the store was made with, or write to another folder."
                .to_string(),
        })
    }
}

fn unfit(found: &dyn std::fmt::Display) -> Error {
    Error::invalid(
        "provenance",
        found,
        "plain JSON, at most 100 levels deep, a million values and less than 16 MiB",
        "Record names, numbers and hashes, and not the things themselves.",
    )
}

/// No fewer than the values in a JSON text, lists and objects included: each comes after one of `[{:,` or is the whole.
fn values(json: &[u8]) -> usize {
    let (mut count, mut quoted, mut escaped) = (1, false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' | b':' | b',' if !quoted => count += 1,
            _ => {}
        }
    }
    count
}

/// JSON without spaces and with sorted members: equal values have equal text.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|&(key, _)| key);
            out.push('{');
            for (position, (key, value)) in members.into_iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

/// The first place where two values differ: (path of the field, found, expected).
fn difference(path: &str, found: &Value, expected: &Value) -> Option<(String, String, String)> {
    let inside = |name: &str| if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
    match (found, expected) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            keys.into_iter().find_map(|key| match (a.get(key), b.get(key)) {
                (Some(a), Some(b)) => difference(&inside(key), a, b),
                (a, b) => Some((inside(key), show(a), show(b))),
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => (a.iter().zip(b).enumerate())
            .find_map(|(position, (a, b))| difference(&inside(&position.to_string()), a, b)),
        _ if found == expected => None,
        _ => Some((path.to_string(), show(Some(found)), show(Some(expected)))),
    }
}

/// A value for a message: short.
fn show(value: Option<&Value>) -> String {
    const LONGEST: usize = 120;
    let Some(value) = value else { return "nothing".to_string() };
    let text = value.to_string();
    if text.chars().count() <= LONGEST {
        return text;
    }
    let start: String = text.chars().take(LONGEST).collect();
    format!("{start}…")
}

/// The error for a schema of cells that are not stored, which no open store has.
pub(super) fn no_cells(schema: &Schema) -> Error {
    Error::invalid(
        "dtype",
        schema.dtype.name(),
        "int8, float16, bfloat16 or float32",
        "Use float32 or a smaller one.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        let Value::Object(provenance) =
            json!({"b": {"seed": 7}, "a": [0.1, 1e-300, "é\n", null, 1u64 << 63]})
        else {
            unreachable!()
        };
        Schema { dim: 8, dtype: Dtype::F16, reduction: Some(Reduction::Sum), provenance }
    }

    #[test]
    fn the_schema_survives_the_file() {
        let bytes = schema().encode("test").unwrap();
        let back = Schema::decode(Path::new("x"), &bytes).unwrap();
        assert_eq!(back.schema, schema());
        assert_eq!(back.written_by, "test");
    }

    #[test]
    fn the_id_of_a_schema_never_changes() {
        // Golden: stores on disk depend on it.
        let schema = Schema {
            dim: 8,
            dtype: Dtype::F16,
            reduction: None,
            provenance: Map::from_iter([("b".to_string(), json!({"y": 1, "x": [true, null]}))]),
        };
        let mut text = String::new();
        canonical(&schema.content(), &mut text);
        let golden = r#"{"dim":8,"dtype":"float16","format_version":1,"provenance":{"b":{"x":[true,null],"y":1}},"reduction":null}"#;
        assert_eq!(text, golden);
        assert_eq!(schema.id(), format!("{:032x}", xxh3_128(golden.as_bytes())));
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_found() {
        let bytes = schema().encode("test").unwrap();
        for position in 0..bytes.len() {
            for flip in [1, 0x20, 0x80] {
                let mut changed = bytes.clone();
                changed[position] ^= flip;
                assert!(Schema::decode(Path::new("x"), &changed).is_err(), "{position}");
            }
            assert!(Schema::decode(Path::new("x"), &bytes[..position]).is_err(), "{position}");
        }
    }

    #[test]
    fn provenance_that_json_cannot_carry_is_refused() {
        let mut deep = json!(1);
        for _ in 0..200 {
            deep = json!([deep]);
        }
        let mut schema = schema();
        schema.provenance.insert("deep".to_string(), deep);
        assert!(matches!(schema.encode("test"), Err(Error::InvalidInput { .. })));
    }

    #[test]
    fn a_mismatch_names_the_field() {
        let mut other = schema();
        other.provenance["b"]["seed"] = json!(8);
        let error = schema().join(Path::new("s"), &other).unwrap_err().to_string();
        assert!(error.contains("provenance.b.seed: found 7, expected 8"), "{error}");
        other = schema();
        other.dim = 9;
        assert!(schema().join(Path::new("s"), &other).unwrap_err().to_string().contains("dim: found 8"));
        other = schema();
        other.provenance.remove("a");
        assert!(
            schema().join(Path::new("s"), &other).unwrap_err().to_string().contains("expected nothing")
        );
        assert!(schema().join(Path::new("s"), &schema()).is_ok());
    }
}
