//! Writes valid inputs for the targets that would hardly find any by themselves: `seeds FOLDER`.

use arrow::array::{ArrayRef, Int64Array, ListArray, RecordBatch, StringViewArray};
use arrow::datatypes::Int64Type;
use datafusion_proto::bytes::physical_plan_to_bytes_with_extension_codec;
use essaim_common::codec::EssaimCodec;
use essaim_common::ipc::Encoder;
use mongodb::bson::{DateTime, doc};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

/// Where a piece of two bytes cuts: at the beginning.
const UNCUT: [u8; 2] = [0, 0];

const TABLES: [&str; 2] = [
    "CREATE EXTERNAL TABLE l STORED AS GENERATOR LOCATION '' OPTIONS (number_of_rows '100')",
    "CREATE EXTERNAL TABLE r STORED AS GENERATOR LOCATION '' OPTIONS (number_of_rows '10')",
];

const QUERIES: [&str; 6] = [
    "SELECT value FROM l WHERE value % 3 = 1 LIMIT 5",
    "SELECT value % 3 AS k, count(*), avg(value), min(value) FROM l GROUP BY 1 HAVING count(*) > 0 ORDER BY 1",
    "SELECT l.value, upper('x' || r.value) FROM l JOIN r ON l.value = r.value AND l.value < r.value + 3",
    "SELECT value, row_number() OVER (PARTITION BY value % 2 ORDER BY value) FROM l",
    "SELECT value FROM l UNION ALL SELECT value FROM r ORDER BY value DESC",
    "SELECT CASE WHEN value > 3 THEN CAST(value AS DECIMAL(10, 2)) END, make_array(value, 1), date_trunc('day', now()) FROM r",
];

const RECORDS: &str = r#"{"id": 7, "text": "a \u00e9 b", "price": 1.5, "amount": 3.25, "ok": true, "at": 1767225600000, "day": "2026-01-01", "who": {"n": 1, "s": "x"}, "tags": ["x", null]}

{"id": "x"}
{"id": 8, "at": "2026-01-01T00:00:00Z", "who": null, "tags": []}"#;

const EVENTS: &str = "\u{feff}: hello\r\nretry: 1000\nid: 8\nevent: update\ndata: {\"a\": 1}\ndata: b\n\nid\ndata:x\r\r";

const ANSWER: &str = r#"{"next": "abc", "items": {"list": [{"id": 1, "list": [2]}, {"id": null}]}, "more": [1.5e3, "\ud83d\ude00"]}"#;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: seeds FOLDER")?;
    let write = |target: &str, name: &str, seed: &[u8]| {
        let folder = Path::new(&folder).join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("seed-{name}")), seed)
    };
    write("kafka_json", "records", RECORDS.as_bytes())?;
    write("sse", "events", &[&UNCUT, EVENTS.as_bytes()].concat())?;
    write("http", "answer", ANSWER.as_bytes())?;
    write("arrow_ipc", "rows", &[&UNCUT[..], &rows()?].concat())?;
    write("postgres_copy", "row", &[&UNCUT[..], &copied()].concat())?;
    write("bson", "document", &document()?)?;
    for (number, plan) in plans()?.into_iter().enumerate() {
        write("plan", &number.to_string(), &plan)?;
    }
    Ok(())
}

fn rows() -> Result<Vec<u8>, Box<dyn Error>> {
    let lists = [Some(vec![Some(1), None]), None, Some(vec![])];
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
        (
            "l",
            Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists)),
        ),
    ];
    let batch = RecordBatch::try_from_iter(columns)?;
    let mut encoder = Encoder::new(&batch.schema())?;
    let mut chunks = encoder.encode(&batch)?;
    chunks.extend(encoder.finish()?);
    Ok(chunks.concat())
}

/// One row of [`essaim_fuzz::copied_columns`].
fn copied() -> Vec<u8> {
    let mut copy = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\x09".to_vec();
    let cells: [&[u8]; 9] = [
        b"\x01",
        &7_i64.to_be_bytes(),
        &1.5_f64.to_be_bytes(),
        // 1.5: 2 digits, weight 0, positive, scale 1.
        b"\0\x02\0\0\0\0\0\x01\0\x01\x13\x88",
        b"text",
        b"\0\xff",
        &100_i32.to_be_bytes(),
        &1_000_000_i64.to_be_bytes(),
        // One dimension with nulls, of int4 (23), from 1: 5 and NULL.
        b"\0\0\0\x01\0\0\0\x01\0\0\0\x17\0\0\0\x02\0\0\0\x01\0\0\0\x04\0\0\0\x05\xff\xff\xff\xff",
    ];
    for cell in cells {
        copy.extend((cell.len() as u32).to_be_bytes());
        copy.extend(cell);
    }
    copy.extend(b"\xff\xff");
    copy
}

fn document() -> Result<Vec<u8>, Box<dyn Error>> {
    let document = doc! {
        "id": 7_i64, "text": "a", "price": 1.5, "amount": "3.25", "ok": true, "at": DateTime::from_millis(0),
        "day": DateTime::from_millis(86_400_000), "who": {"n": 1, "s": "x"}, "tags": ["x", null], "more": {"a": [1, 2.5]},
    };
    Ok(document.to_vec()?)
}

fn plans() -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let session = essaim_fuzz::session();
    tokio::runtime::Builder::new_current_thread()
        .build()?
        .block_on(async {
            for table in TABLES {
                session.sql(table).await?;
            }
            let mut plans = Vec::new();
            for query in QUERIES {
                let plan = session.sql(query).await?.create_physical_plan().await?;
                plans.push(
                    physical_plan_to_bytes_with_extension_codec(plan, &EssaimCodec)?.to_vec(),
                );
            }
            Ok(plans)
        })
}
