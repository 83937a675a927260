//! The two decoders alone, on one core: JSON messages and binary COPY into Arrow.

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use essaim_bench::messages::write_message;
use essaim_common::sources::kafka::decode::{JsonDecoder, Slices};
use essaim_common::sources::kafka::timestamps::EpochUnit;
use essaim_common::sources::postgres::decode::Decoder;
use essaim_common::sources::postgres::types::Kind;
use std::hint::black_box;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rows of a batch, DataFusion's default.
const ROWS: usize = 8192;

/// All columns of [`essaim_bench::messages::COLUMNS`], or only those that the Kafka bench asks for.
fn json(c: &mut Criterion) {
    let mut records = Slices::default();
    let mut message = String::new();
    for number in 0..ROWS as u64 {
        write_message(number, &mut message);
        records.push(Some(message.as_bytes()));
    }
    let all = [
        ("id", DataType::Int64),
        ("key", DataType::Utf8View),
        ("value", DataType::Float64),
        ("user_name", DataType::Utf8View),
        ("country", DataType::Utf8View),
        (
            "created_at",
            DataType::Timestamp(TimeUnit::Nanosecond, None),
        ),
        ("ok", DataType::Boolean),
        ("content", DataType::Utf8View),
    ];
    let mut group = c.benchmark_group("json");
    group.throughput(Throughput::Elements(ROWS as u64));
    for (name, columns) in [("2 of 8 fields", &all[1..3]), ("8 of 8 fields", &all[..])] {
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, data_type)| Field::new(*name, data_type.clone(), true))
            .collect();
        let schema = Arc::new(Schema::new(fields));
        let mut decoder = match JsonDecoder::new(schema, EpochUnit::Milliseconds, ROWS) {
            Ok(decoder) => decoder,
            Err(error) => panic!("{name}: {error}"),
        };
        group.bench_function(name, |b| b.iter(|| black_box(decoder.decode(&records))));
    }
    group.finish();
}

/// Rows as the server sends them: one message each.
fn copy(c: &mut Criterion) {
    let numbers = vec![
        ("key".to_owned(), Kind::Int4),
        ("quantity".to_owned(), Kind::Int4),
        ("amount".to_owned(), Kind::Float8),
        ("price".to_owned(), Kind::Int8),
    ];
    let mut mixed = numbers.clone();
    mixed.push(("created_at".to_owned(), Kind::Timestamptz));
    mixed.push(("code".to_owned(), Kind::text()));
    mixed.push(("note".to_owned(), Kind::text()));
    let mut group = c.benchmark_group("copy");
    group.throughput(Throughput::Elements(ROWS as u64));
    for (name, columns) in [("4 numbers", numbers), ("7 columns", mixed)] {
        let rows: Vec<Vec<u8>> = (0..ROWS).map(|number| row(number, columns.len())).collect();
        let mut decoder = Decoder::new(&columns, ROWS);
        if let Err(error) = decoder.decode(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0") {
            panic!("{name}: {error}");
        }
        group.bench_function(name, |b| {
            b.iter(|| {
                for row in &rows {
                    if let Err(error) = decoder.decode(row) {
                        panic!("{name}: {error}");
                    }
                }
                black_box(decoder.take())
            });
        });
    }
    group.finish();
}

/// One row in COPY's binary form, of the first `columns` columns.
fn row(number: usize, columns: usize) -> Vec<u8> {
    let code = format!("code-{:010}", number % 10_000);
    let note = format!("a note of some forty bytes, number {number}");
    let fields: [&[u8]; 7] = [
        &(number as i32 % 1000).to_be_bytes(),
        &(number as i32 % 97).to_be_bytes(),
        &(number as f64 / 100.0).to_be_bytes(),
        &(number as i64 * 31).to_be_bytes(),
        &(number as i64 * 1_000_000).to_be_bytes(),
        code.as_bytes(),
        note.as_bytes(),
    ];
    let mut row = (columns as i16).to_be_bytes().to_vec();
    for field in &fields[..columns] {
        row.extend_from_slice(&(field.len() as i32).to_be_bytes());
        row.extend_from_slice(field);
    }
    row
}

criterion_group!(decoders, json, copy);
criterion_main!(decoders);
