//! Declarations, times and positions; the whole cluster is in the tests' own crate.

use super::*;
use crate::error::ErrorKind;
use crate::secret::Secret;
use crate::stream::Offsets;
use chrono::{DateTime, TimeDelta, Utc};

async fn declare(unbounded: bool, options: &[(&str, &str)]) -> Result<ConnectorTable> {
    let given: Vec<(String, String)> = options
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let spec = TableSpec {
        name: "t".to_owned(),
        schema: None,
        location: Secret::new(String::new()),
        options: Options::new("t", given.iter().map(|(k, v)| (k, v))).unwrap(),
        primary_key: Vec::new(),
        unbounded,
    };
    Generator.table(spec).await
}

#[tokio::test]
async fn a_wrong_declaration_says_what_to_write() {
    for (unbounded, options, part) in [
        (false, vec![], "option number_of_rows is missing"),
        (false, vec![("number_of_rows", "-1")], "number_of_rows '-1'"),
        (
            true,
            vec![("number_of_rows", "many")],
            "number_of_rows 'many'",
        ),
        (true, vec![("rows_per_second", "0")], "write at least 1"),
        (true, vec![("start_time", "soon")], "start_time 'soon'"),
        (
            true,
            vec![("rows_per_seconds", "1")],
            "did you mean rows_per_second?",
        ),
        (
            true,
            vec![("watermark_delay", "late")],
            "watermark_delay 'late'",
        ),
        (
            false,
            vec![("number_of_rows", "9223372036854775807")],
            "raise rows_per_second",
        ),
    ] {
        let error = declare(unbounded, &options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        let message = error.to_string();
        assert!(
            message.contains("table t") && message.contains(part),
            "{message}"
        );
    }
}

fn rows(rate: i64, range: Range) -> (Vec<i64>, Vec<i64>) {
    let rows = Rows::new(rate, 7);
    (
        rows.times(&range).values().to_vec(),
        rows.seeds(&range).values().to_vec(),
    )
}

#[test]
fn a_row_is_the_same_in_whatever_range_it_is_made() {
    for rate in [1, 3, 7, 1000, 999_999, 1_000_000, 3_000_001] {
        let start_us = -5;
        let whole = Range {
            start: 0,
            end: 10_000,
            start_us,
        };
        let (times, seeds) = rows(rate, whole);
        let wanted = (0..10_000).map(|value| Rows::new(rate, 7).time(start_us, value).unwrap());
        assert_eq!(times, wanted.collect::<Vec<_>>(), "{rate} a second");
        let part = Range {
            start: 1234,
            end: 4321,
            start_us,
        };
        let found = rows(rate, part);
        assert_eq!(
            found,
            (times[1234..4321].to_vec(), seeds[1234..4321].to_vec())
        );
    }
}

#[tokio::test]
async fn rows_come_by_the_clock_and_not_sooner() {
    let options = [("rows_per_second", "10"), ("number_of_rows", "25")];
    let table = declare(true, &options).await.unwrap();
    let stream = RowStream {
        table: "t".to_owned(),
        rows: Rows::new(10, 0),
        number_of_rows: Some(25),
        start_us: None,
        options: StreamOptions::default(),
    };
    let start = stream.start().await.unwrap();
    let began: DateTime<Utc> = {
        let name = start.0.keys().next().unwrap();
        name.strip_prefix("t since ").unwrap().parse().unwrap()
    };
    let due = |from: &Offsets, ms| {
        let found = stream
            .available_at(from, began + TimeDelta::milliseconds(ms))
            .unwrap();
        assert_eq!(&found.start, from);
        assert!(found.latest.0.keys().eq(from.0.keys()));
        *found.latest.0.values().next().unwrap()
    };
    let counts: Vec<_> = [-1, 0, 99, 100, 1000, 2399, 2400, 9000]
        .map(|ms| due(&start, ms))
        .into();
    assert_eq!(counts, [0, 1, 1, 2, 11, 24, 25, 25]);
    // A clock that was set back takes nothing away.
    let later = Offsets(start.0.keys().map(|name| (name.clone(), 20)).collect());
    assert_eq!(due(&later, 100), 20);

    // Splits are all of what lies between, each with the partition and the time of row 0.
    let far = Offsets(start.0.keys().map(|name| (name.clone(), 5000)).collect());
    let stream = table.source.unwrap().stream().unwrap();
    let splits = stream.splits(&later, &far, 16).unwrap();
    let labels: Vec<_> = splits.iter().map(|split| split.label.as_str()).collect();
    assert_eq!(
        labels,
        ["20..1265", "1265..2510", "2510..3755", "3755..5000"]
    );
    for split in &splits {
        assert!(start.0.contains_key(&split.partition));
        let range: Range = serde_json::from_slice(&split.payload).unwrap();
        assert_eq!(range.start_us, began.timestamp_micros());
    }
    assert!(stream.splits(&far, &far, 16).unwrap().is_empty());
    let foreign = Offsets([("toots[0]".to_owned(), 5)].into());
    let error = stream.available(&foreign).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
