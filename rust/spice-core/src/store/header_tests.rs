use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::error::Error;

fn replaced() -> Replaced {
    Replaced { name: "shard-a-000000.safetensors".to_string(), header_checksum: 3 }
}

/// A shard of `rows × dim` cells of `dtype`, data all zero bytes.
fn shard(rows: usize, dim: usize, dtype: Dtype, loss: bool, num_tokens: bool) -> Vec<u8> {
    shard_of(rows, dim, dtype, Kinds { num_tokens, loss, record: false })
}

fn shard_of(rows: usize, dim: usize, dtype: Dtype, kinds: Kinds) -> Vec<u8> {
    let supersedes = vec![replaced()];
    let Kinds { num_tokens, loss, record } = kinds;
    let width = 16 + 4 * usize::from(loss) + 4 * usize::from(num_tokens) + 8 * usize::from(record);
    let data = vec![0; rows * (width + dim * dtype.size())];
    let content = Content {
        rows,
        dim,
        dtype,
        kinds,
        schema_id: "0123",
        columns_checksum: 1,
        data_checksum: 2,
        rows_checksum: None,
        nonce: None,
        supersedes: &supersedes,
    };
    [encode(&content).unwrap(), data].concat()
}

#[test]
fn the_checksum_of_rows_may_be_missing_and_is_read_back() {
    let without = shard(2, 3, Dtype::F16, true, true);
    assert_eq!(parse_here(&without).unwrap().rows_checksum, None);
    let end = r#""data_checksum":"xxh3-64:0000000000000002","#;
    let with = |text: &str| {
        let json = json_of(&without).replace(end, &format!(r#"{end}"rows_checksum":{text},"#));
        forged(json.trim_end(), without.len() - LENGTH - json_of(&without).len())
    };
    let found = parse_here(&with(r#""xxh3-64:00000000000000ff""#)).unwrap();
    assert_eq!((found.rows_checksum, found.data_checksum), (Some(255), 2));
    for bad in [r#""255""#, "255", r#""""#] {
        assert!(matches!(parse_here(&with(bad)), Err(Error::CorruptStore { .. })), "{bad}");
    }
}

#[test]
fn a_nonce_may_be_missing_and_makes_checksums_differ() {
    let without = shard(2, 3, Dtype::F16, true, true);
    assert_eq!(parse_here(&without).unwrap().nonce, None);
    let end = r#""data_checksum":"xxh3-64:0000000000000002","#;
    let with = |text: &str| {
        let json = json_of(&without).replace(end, &format!(r#"{end}"nonce":{text},"#));
        parse_here(&forged(json.trim_end(), without.len() - LENGTH - json_of(&without).len()))
    };
    let [one, other] =
        [r#""00000000000000ff""#, r#""00000000000000fe""#].map(|text| with(text).unwrap());
    assert_eq!((one.nonce, other.nonce), (Some(255), Some(254)));
    assert_ne!(one.header_checksum, other.header_checksum);
    for bad in [r#""ff""#, "255", r#""""#, r#""00000000000000FF""#, r#""+0000000000000ff""#] {
        assert!(matches!(with(bad), Err(Error::CorruptStore { .. })), "{bad}");
    }
}

/// A file with this header and this much data; the header's checksum is put in place.
fn forged(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = vec![0; LENGTH];
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), b' ');
    let length = (bytes.len() - LENGTH) as u64;
    bytes[..LENGTH].copy_from_slice(&length.to_le_bytes());
    checksum::seal(&mut bytes, SEAL);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn json_of(bytes: &[u8]) -> String {
    let length = u64::from_le_bytes(bytes[..LENGTH].try_into().unwrap()) as usize;
    String::from_utf8(bytes[LENGTH..LENGTH + length].to_vec()).unwrap()
}

fn parse_here(bytes: &[u8]) -> Result<Header> {
    parse(&PathBuf::from("shard"), bytes)
}

#[test]
fn the_header_is_these_bytes() {
    let bytes = shard(2, 3, Dtype::F16, true, true);
    let golden = concat!(
        r#"{"__metadata__":{"header_checksum":"xxh3-64:ef14a4bdcdf582a8","format_version":"1","schema_id":"0123","#,
        r#""rows":"2","columns_checksum":"xxh3-64:0000000000000001","data_checksum":"xxh3-64:0000000000000002","#,
        r#""supersedes":"{\"shard-a-000000.safetensors\":\"xxh3-64:0000000000000003\"}"},"#,
        r#""index":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},"#,
        r#""scale":{"dtype":"F32","shape":[2],"data_offsets":[16,24]},"#,
        r#""norm":{"dtype":"F32","shape":[2],"data_offsets":[24,32]},"#,
        r#""loss":{"dtype":"F32","shape":[2],"data_offsets":[32,40]},"#,
        r#""num_tokens":{"dtype":"I32","shape":[2],"data_offsets":[40,48]},"#,
        r#""gradients":{"dtype":"F16","shape":[2,3],"data_offsets":[48,60]}}"#,
    );
    assert_eq!(json_of(&bytes).trim_end(), golden);
    assert_eq!((bytes.len() - 60) % ALIGNMENT, 0);
}

#[test]
fn hashes_of_records_follow_the_index() {
    let kinds = Kinds { num_tokens: true, ..Kinds::default() };
    assert_eq!(shard_of(3, 1, Dtype::I8, kinds), shard(3, 1, Dtype::I8, false, true));
    let bytes = shard_of(3, 1, Dtype::I8, Kinds { record: true, ..kinds });
    let golden = concat!(
        r#""index":{"dtype":"I64","shape":[3],"data_offsets":[0,24]},"#,
        r#""record":{"dtype":"I64","shape":[3],"data_offsets":[24,48]},"#,
        r#""scale":{"dtype":"F32","shape":[3],"data_offsets":[48,60]},"#,
    );
    assert!(json_of(&bytes).contains(golden), "{}", json_of(&bytes));
    assert!(json_of(&bytes).contains(r#""format_version":"1""#));
    // Every tensor lies at a multiple of its cells' size, whatever the rows.
    let header = parse_here(&bytes).unwrap();
    assert_eq!((header.record.unwrap().start % 8, header.scale.start % 4), (0, 0));
    for (from, to) in [
        (
            r#""dtype":"I64","shape":[3],"data_offsets":[24,48]"#,
            r#""dtype":"I64","shape":[3],"data_offsets":[0,24]"#,
        ),
        (r#""record":{"dtype":"I64""#, r#""record":{"dtype":"F64""#),
    ] {
        let json = json_of(&bytes);
        assert!(json.contains(from), "{from}");
        let data = bytes.len() - LENGTH - json.len();
        assert!(matches!(
            parse_here(&forged(&json.replacen(from, to, 1), data)),
            Err(Error::CorruptStore { .. })
        ));
    }
}

#[test]
fn another_reader_of_safetensors_agrees() {
    let bytes = shard(2, 3, Dtype::BF16, false, true);
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let gradients = file.tensor("gradients").unwrap();
    assert_eq!(gradients.shape(), [2, 3]);
    assert_eq!(gradients.dtype(), safetensors::Dtype::BF16);
    let header = parse_here(&bytes).unwrap();
    assert_eq!(gradients.data().as_ptr(), bytes[header.gradients.clone()].as_ptr());
    assert_eq!((header.rows, header.dim, header.dtype), (2, 3, Dtype::BF16));
    assert!(header.loss.is_none());
    assert_eq!(header.supersedes, [replaced()]);
}

#[test]
fn no_rows_is_a_shard() {
    let header = parse_here(&shard(0, 5, Dtype::F32, false, false)).unwrap();
    assert_eq!((header.rows, header.dim), (0, 5));
    assert!(header.gradients.is_empty());
}

#[test]
fn well_sealed_lies_are_refused() {
    let bytes = shard(2, 3, Dtype::F16, false, false);
    let json = json_of(&bytes);
    let data = 2 * (16 + 6);
    assert!(parse_here(&forged(&json, data)).is_ok());
    for (from, to) in [
        // Offsets past the end, overlapping, reversed, with a gap.
        (r#""data_offsets":[32,44]"#, r#""data_offsets":[32,18446744073709551615]"#),
        (r#""data_offsets":[16,24]"#, r#""data_offsets":[0,8]"#),
        (r#""data_offsets":[16,24]"#, r#""data_offsets":[24,16]"#),
        (r#""data_offsets":[16,24]"#, r#""data_offsets":[-1,24]"#),
        // Shapes and dtypes.
        (r#""shape":[2,3]"#, r#""shape":[2,18446744073709551615]"#),
        (r#""shape":[2,3]"#, r#""shape":[2,0]"#),
        (r#""shape":[2,3]"#, r#""shape":[6]"#),
        (r#""shape":[2,3]"#, r#""shape":[2,3,1]"#),
        (r#""shape":[2,3]"#, r#""shape":[3,2]"#),
        (r#""shape":[2,3]"#, r#""shape":[]"#),
        (r#""dtype":"F16""#, r#""dtype":"BOOL""#),
        (r#""dtype":"F16""#, r#""dtype":"F32""#),
        (r#""dtype":"I64""#, r#""dtype":"U64""#),
        // Rows that the tensors do not have.
        (r#""rows":"2""#, r#""rows":"3""#),
        (r#""rows":"2""#, r#""rows":"18446744073709551615""#),
        (r#""rows":"2""#, r#""rows":"-2""#),
        (r#""rows":"2""#, r#""rows":"99999999999999999999999""#),
        (r#""rows":"2""#, r#""rows":2"#),
        // Members that are missing, unknown or there twice.
        (r#""norm":"#, r#""norms":"#),
        (r#""norm":"#, r#""index":"#),
        (r#""rows":"2","#, ""),
        (r#""rows":"2","#, r#""rows":"2","more":"","#),
        // Names that lead out of the folder.
        (r#"shard-a-000000"#, r#"../shard-a"#),
        (r#"\"shard-a-000000.safetensors\""#, r#"\"store.json\""#),
        (r#"{\"shard-a-000000.safetensors\":\"xxh3-64:0000000000000003\"}"#, "[]"),
        (r#"\"xxh3-64:0000000000000003\""#, "3"),
        (r#"xxh3-64:0000000000000003"#, "xxh3-64:3"),
        (r#"xxh3-64:0000000000000001"#, "md5:0000000000000001"),
    ] {
        assert!(json.contains(from), "{from}");
        let error = parse_here(&forged(&json.replacen(from, to, 1), data)).unwrap_err();
        assert!(matches!(error, Error::CorruptStore { .. }), "{from} -> {to}: {error}");
    }
    for lie in [data - 1, data + 1, 0] {
        assert!(matches!(parse_here(&forged(&json, lie)), Err(Error::CorruptStore { .. })));
    }
}

#[test]
fn another_version_is_named_and_not_called_damage() {
    let json = json_of(&shard(2, 3, Dtype::F16, false, false));
    let error =
        parse_here(&forged(&json.replace(r#""format_version":"1""#, r#""format_version":"2""#), 44));
    assert!(matches!(error, Err(Error::Store { ref field, .. }) if field == "format_version"));
}

#[test]
fn lengths_and_nesting_are_bounded() {
    for length in [MAX_HEADER + 1, u64::MAX, u64::MAX - 7, 1 << 40] {
        assert!(parse_here(&length.to_le_bytes()).is_err());
    }
    let start = format!("{SEAL_START}0000000000000000\",\"x\":");
    let bomb = format!("{start}{}", "[".repeat(500_000));
    assert!(matches!(parse_here(&forged(&bomb, 0)), Err(Error::CorruptStore { .. })));
    assert!(parse_here(&forged(&format!("{start}{}", "{\"a\":".repeat(100_000)), 0)).is_err());
}

#[test]
fn every_cut_is_found() {
    let bytes = shard(2, 3, Dtype::F16, true, true);
    for length in 0..bytes.len() {
        assert!(matches!(parse_here(&bytes[..length]), Err(Error::CorruptStore { .. })), "{length}");
    }
}

#[test]
fn every_changed_byte_of_the_header_is_found() {
    let bytes = shard(1, 1, Dtype::F32, true, true);
    let header = parse_here(&bytes).unwrap();
    for position in 0..header.index.start {
        for flip in [1, 0x20, 0x80] {
            let mut changed = bytes.clone();
            changed[position] ^= flip;
            assert!(matches!(parse_here(&changed), Err(Error::CorruptStore { .. })), "{position}");
        }
    }
}

proptest! {
    #[test]
    fn headers_come_back(
        rows in 0usize..50,
        dim in 1usize..50,
        dtype in prop::sample::select(Schema::DTYPES.to_vec()),
        loss: bool,
        num_tokens: bool,
        record: bool,
    ) {
        let kinds = Kinds { num_tokens, loss, record };
        let bytes = shard_of(rows, dim, dtype, kinds);
        let header = parse_here(&bytes).unwrap();
        prop_assert_eq!((header.rows, header.dim, header.dtype), (rows, dim, dtype));
        prop_assert_eq!(header.kinds(), kinds);
        prop_assert_eq!(header.record.map_or(0, |range| range.len()), 8 * rows * usize::from(record));
        prop_assert_eq!(header.gradients.len(), rows * dim * dtype.size());
        prop_assert_eq!(header.gradients.end, bytes.len());
        prop_assert_eq!(header.gradients.start % dtype.size(), 0);
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(parse_here(&bytes).is_err());
    }

    #[test]
    fn any_sealed_text_is_parsed_or_refused(
        json in r#"[ -~]{0,40}(\{"dtype":"F32","shape":\[[0-9]{1,20}(,[0-9]{1,20})?\],"data_offsets":\[[0-9]{1,20},[0-9]{1,20}\]\}){0,3}[ -~]{0,40}"#,
        data in 0usize..100,
    ) {
        let json = format!("{SEAL_START}0000000000000000\"{json}");
        prop_assert!(parse_here(&forged(&json, data)).is_err());
    }
}
