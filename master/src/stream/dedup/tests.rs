//! First rows over many epochs.

use super::{DedupOptions, StateDedupExec};
use crate::stream::context::{EpochContext, States, Watermarks};
use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::collect;
use datafusion::prelude::SessionConfig;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows `(key, time, id)`.
async fn epoch(
    states: &Arc<States>,
    rows: &[(i64, i64, i64)],
    event_time: Option<usize>,
    time_ms: i64,
    watermarks: Watermarks,
) -> Vec<i64> {
    let column = |of: fn(&(i64, i64, i64)) -> i64| {
        Arc::new(Int64Array::from_iter_values(rows.iter().map(of))) as _
    };
    let columns = [
        ("key", column(|r| r.0)),
        ("time", column(|r| r.1)),
        ("id", column(|r| r.2)),
    ];
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let input = MemorySourceConfig::try_new_exec(&[vec![rows.clone()]], rows.schema(), None);
    let options = DedupOptions {
        op: "0/0".to_owned(),
        query: 0,
        keys: vec![0],
        event_time,
        delay_ms: 0,
        ttl_ms: Some(100),
    };
    let plan = Arc::new(StateDedupExec::new(input.unwrap(), options).unwrap());
    let watermarks = BTreeMap::from([(0, watermarks)]);
    let epoch = Arc::new(EpochContext::new(
        1,
        time_ms,
        watermarks,
        Arc::clone(states),
    ));
    let config = SessionConfig::new().with_extension(Arc::clone(&epoch));
    let task = TaskContext::default().with_session_config(config);
    let first = collect(plan, Arc::new(task)).await.unwrap();
    states.apply(&epoch.take_pending()).unwrap();
    let ids = |batch: &RecordBatch| {
        batch
            .column(2)
            .as_primitive::<Int64Type>()
            .values()
            .to_vec()
    };
    first.iter().flat_map(ids).collect()
}

fn watermarks(before: i64, now: i64) -> Watermarks {
    Watermarks { before, now }
}

#[tokio::test]
async fn the_first_row_of_a_key_passes_once_within_the_watermark() {
    let states = Arc::<States>::default();
    let time = Some(1);
    let rows = [(1, 100, 1), (2, 101, 2), (1, 102, 3)];
    let first = epoch(&states, &rows, time, 0, watermarks(i64::MIN, 50)).await;
    assert_eq!(first, [1, 2]);
    let rows = [(3, 120, 4), (1, 100, 5), (2, 101, 6)];
    let first = epoch(&states, &rows, time, 0, watermarks(50, 100)).await;
    assert_eq!(first, [4], "as old as the watermark is not late");
    let first = epoch(&states, &[(1, 100, 7)], time, 0, watermarks(100, 101)).await;
    assert_eq!(first, [] as [i64; 0]);
    assert_eq!(
        states.size(0).rows,
        2,
        "a key that the watermark passed is forgotten"
    );
    let rows = [(1, 100, 8), (1, 130, 9)];
    let first = epoch(&states, &rows, time, 0, watermarks(101, 200)).await;
    assert_eq!(first, [9], "a late row is no first row");
    assert_eq!(states.size(0).rows, 0);
}

#[tokio::test]
async fn without_an_event_time_a_key_is_known_for_its_time_to_live() {
    let states = Arc::<States>::default();
    let mut passed = Vec::new();
    for (id, time_ms) in [(1, 0), (2, 99), (3, 100), (4, 150)] {
        passed.extend(epoch(&states, &[(1, 0, id)], None, time_ms, Watermarks::NONE).await);
    }
    assert_eq!(passed, [1, 3]);
}
