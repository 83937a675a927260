//! What comes from the network and is broken is refused by every decoder, never a panic.

use anyhow::Result;
use arrow::array::{ArrayRef, Int64Array, ListArray, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use bytes::Bytes;
use datafusion::prelude::SessionContext;
use datafusion_proto::bytes::{
    physical_plan_from_bytes_with_extension_codec, physical_plan_to_bytes_with_extension_codec,
};
use essaim_common::codec::EssaimCodec;
use essaim_common::ipc::{Decoder, Encoder, decode_schema};
use essaim_common::sources::kafka::decode::{JsonDecoder, Slices};
use essaim_common::sources::kafka::timestamps::EpochUnit;
use essaim_common::sources::postgres;
use essaim_common::sources::postgres::types::Kind;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const ROUNDS: usize = 2_000;

/// Some bytes of `valid` changed, left out or put in.
fn broken(random: &mut StdRng, valid: &[u8]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for _ in 0..random.random_range(1..6) {
        if bytes.is_empty() {
            break;
        }
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..4) {
            0 => bytes[at] = random.random(),
            1 => bytes[at] ^= 1 << random.random_range(0..8),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, random.random()),
        }
    }
    bytes
}

/// Feeds a decoder with what is nearly `valid`; it may refuse all of it.
fn feed(name: &str, valid: &[u8], mut decode: impl FnMut(&[u8])) {
    let mut random = StdRng::seed_from_u64(11);
    for round in 0..ROUNDS {
        let bytes = broken(&mut random, valid);
        let outcome = catch_unwind(AssertUnwindSafe(|| decode(&bytes)));
        assert!(
            outcome.is_ok(),
            "{name} panics in round {round} at {bytes:?}"
        );
    }
}

fn batch() -> Result<RecordBatch> {
    let lists = ListArray::from_iter_primitive::<Int64Type, _, _>([
        Some(vec![Some(1), None]),
        None,
        Some(vec![]),
    ]);
    let columns: [(&str, ArrayRef); 3] = [
        (
            "n",
            Arc::new(Int64Array::from(vec![Some(1), None, Some(3)])),
        ),
        (
            "s",
            Arc::new(StringViewArray::from(vec![
                "a",
                "bb",
                "a text that is not inlined",
            ])),
        ),
        ("l", Arc::new(lists)),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}

#[test]
fn broken_rows_of_another_process_are_refused() -> Result<()> {
    let batch = batch()?;
    let mut encoder = Encoder::new(&batch.schema())?;
    let mut chunks = encoder.encode(&batch)?;
    chunks.extend(encoder.finish()?);
    let valid = chunks.concat();
    assert_eq!(
        Decoder::default().decode(Bytes::from(valid.clone()))?,
        [batch]
    );
    // Sixteen bytes that say they are two gigabytes.
    let boasts = [
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f][..],
        &[0; 8],
    ]
    .concat();
    let error = decode_schema(&boasts).unwrap_err().to_string();
    assert!(error.contains("longer than its message"), "{error}");
    feed("Arrow IPC", &valid, |bytes| {
        let _ = Decoder::default().decode(Bytes::copy_from_slice(bytes));
        let _ = decode_schema(bytes);
    });
    Ok(())
}

#[tokio::test]
async fn a_broken_plan_is_refused() -> Result<()> {
    let session = SessionContext::new();
    let sql = "SELECT column1 % 3 AS k, count(*), avg(column1) FROM (VALUES (1), (2), (3)) GROUP BY 1 HAVING count(*) > 0 ORDER BY 1 LIMIT 2";
    let plan = session.sql(sql).await?.create_physical_plan().await?;
    let valid = physical_plan_to_bytes_with_extension_codec(plan, &EssaimCodec)?;
    let context = session.task_ctx();
    // As a worker does: Arrow panics at the broken rows of a plan's VALUES, and that ends the task alone.
    let decode = |bytes: &[u8]| {
        let decode =
            || physical_plan_from_bytes_with_extension_codec(bytes, &context, &EssaimCodec);
        catch_unwind(AssertUnwindSafe(decode)).map(|plan| plan.map(drop))
    };
    assert!(matches!(decode(&valid), Ok(Ok(()))));
    feed("the plan codec", &valid, |bytes| {
        let _ = decode(bytes);
    });
    Ok(())
}

#[test]
fn a_broken_copy_is_refused() -> Result<()> {
    let kinds = [
        DataType::Int64,
        DataType::Utf8View,
        DataType::Decimal128(38, 10),
    ];
    let columns: Vec<(String, Kind)> = kinds
        .iter()
        .map(|kind| ("c".to_owned(), Kind::for_arrow(kind)))
        .collect();
    let mut valid = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    // 7, "text", 1.5 as the manual's numeric: 2 digits, weight 0, positive, scale 1.
    valid.extend(b"\0\x03\0\0\0\x08\0\0\0\0\0\0\0\x07\0\0\0\x04text");
    valid.extend(b"\0\0\0\x0c\0\x02\0\0\0\0\0\x01\0\x01\x13\x88");
    valid.extend(b"\xff\xff");
    let mut decoder = postgres::decode::Decoder::new(&columns, 16);
    decoder.decode(&valid)?;
    assert!(decoder.is_complete() && decoder.rows() == 1);
    feed("the COPY decoder", &valid, |bytes| {
        let mut decoder = postgres::decode::Decoder::new(&columns, 16);
        if decoder.decode(bytes).is_ok() {
            let _ = decoder.take();
        }
    });
    Ok(())
}

#[test]
fn a_broken_record_costs_nobody_but_itself() -> Result<()> {
    let fields = vec![
        Field::new("id", DataType::Int64, true),
        Field::new("text", DataType::Utf8View, true),
        Field::new_list(
            "tags",
            Field::new_list_field(DataType::Utf8View, true),
            true,
        ),
    ];
    let mut decoder = JsonDecoder::new(Arc::new(Schema::new(fields)), EpochUnit::Milliseconds, 64)?;
    let valid = br#"{"id": 7, "text": "a \u00e9 b", "tags": ["x", null]}"#;
    feed("the JSON decoder", valid, |bytes| {
        let mut records = Slices::default();
        records.push(Some(valid));
        records.push(Some(bytes));
        records.push(Some(valid));
        let decoded = decoder.decode(&records);
        let (rows, bad) = decoded.map_or((0, 0), |d| (d.rows.num_rows(), d.bad.len()));
        assert!(rows + bad == 3 && bad <= 1, "{rows} rows, {bad} bad");
    });
    Ok(())
}
