//! Offsets that hold no record: markers of transactions, aborted records, compacted holes.

use crate::support::*;
use rdkafka::producer::Producer;

fn numbers(from: i64, to: i64) -> Vec<Record> {
    (from..to)
        .map(|n| {
            let mut record = Record::json(&format!("{{\"n\":{n}}}"));
            record.key = Some(format!("k{n}").into_bytes());
            record
        })
        .collect()
}

async fn total(topic: &str, options: &str) -> serde_json::Value {
    let ctx = session();
    declare(&ctx, "n BIGINT", topic, options).await.unwrap();
    let rows = rows(
        &ctx,
        "SELECT count(*) AS c, sum(n) AS s, max(_offset) AS o FROM t",
    )
    .await
    .unwrap();
    rows[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn markers_and_aborted_records_are_no_rows() {
    let topic = topic(1, &[]).await;
    let producer = transactional();
    // Offsets 0..5 and a marker, 6..16 aborted and a marker, 17..20 and a marker, 21..31 aborted and a marker.
    for (from, to, commit) in [
        (0, 5, true),
        (100, 110, false),
        (5, 8, true),
        (110, 120, false),
    ] {
        producer.begin_transaction().unwrap();
        send(&producer, &topic, &numbers(from, to));
        if commit {
            producer.commit_transaction(TIMEOUT).unwrap();
        } else {
            producer.abort_transaction(TIMEOUT).unwrap();
        }
    }
    assert_eq!(
        total(&topic, "").await,
        serde_json::json!({"c":8,"s":28,"o":19})
    );
    assert_eq!(
        total(&topic, "isolation_level 'read_uncommitted'").await,
        serde_json::json!({"c":28,"s":2218,"o":30})
    );
    // Ranges whose end lies among aborted records, on a marker, or right before one.
    for (end, count) in [
        (5, 5),
        (6, 5),
        (10, 5),
        (16, 5),
        (17, 5),
        (18, 6),
        (20, 8),
        (25, 8),
    ] {
        let options = format!("ending_offsets '{{\"{topic}\":{{\"0\":{end}}}}}'");
        assert_eq!(
            total(&topic, &options).await["c"],
            serde_json::json!(count),
            "end {end}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_aborted_records_only_is_empty() {
    let topic = topic(1, &[]).await;
    let producer = transactional();
    producer.begin_transaction().unwrap();
    send(&producer, &topic, &numbers(0, 1000));
    producer.abort_transaction(TIMEOUT).unwrap();
    assert_eq!(total(&topic, "").await["c"], serde_json::json!(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_holds_the_end_back() {
    let topic = topic(1, &[]).await;
    produce(&topic, &numbers(0, 10));
    let producer = transactional();
    producer.begin_transaction().unwrap();
    send(&producer, &topic, &numbers(100, 105));
    // Plain records after the open transaction wait for it too.
    produce(&topic, &numbers(10, 20));
    assert_eq!(
        total(&topic, "").await,
        serde_json::json!({"c":10,"s":45,"o":9})
    );
    producer.commit_transaction(TIMEOUT).unwrap();
    assert_eq!(total(&topic, "").await["c"], serde_json::json!(25));
}

#[tokio::test(flavor = "multi_thread")]
async fn compacted_holes_are_passed() {
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "50"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("max.compaction.lag.ms", "100"),
        ("delete.retention.ms", "0"),
    ];
    let topic = topic(1, &settings).await;
    let key = |n: i64, value: i64| {
        let mut record = Record::json(&format!("{{\"n\":{value}}}"));
        record.key = Some(format!("k{n}").into_bytes());
        record
    };
    for round in 0..50 {
        produce(&topic, &[key(round % 3, round)]);
    }
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    // Compaction is the broker's own affair: each look adds a record, whose segment makes the ones before cleanable.
    loop {
        let found = total(&topic, "").await;
        let (records, last) = (found["c"].as_i64().unwrap(), found["o"].as_i64().unwrap());
        if records < last + 1 - 10 {
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "not compacted: {found}"
        );
        produce(&topic, &[key(last % 3, last)]);
    }
    // A range that ends among the holes.
    let options = format!("ending_offsets '{{\"{topic}\":{{\"0\":20}}}}'");
    let found = total(&topic, &options).await;
    assert!(found["c"].as_i64().unwrap() < 20, "{found}");
}
