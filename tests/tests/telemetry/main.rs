//! What operators see from outside: metrics that are right, log lines that say whose they are, traces that hold together.

mod logs;
mod metrics;
mod scrape;
mod traces;

use essaim_tests::kafka::Topic;
use serde_json::json;

/// A stream of events with the time in `at`.
fn declare_events(topic: &Topic, on_error: &str) -> String {
    format!(
        "CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT, at TIMESTAMP, kind VARCHAR)
         STORED AS KAFKA LOCATION '{}'
         OPTIONS (format 'json', event_time 'at', watermark_delay '10 seconds', on_error '{on_error}');\n",
        topic.location()
    )
}

/// Event number `n`: one a second from 2026-01-01 on.
fn event(n: i64) -> String {
    let at = 1_767_225_600_000_i64 + n * 1000;
    json!({"id": n, "at": at, "kind": format!("kind {}", n % 5)}).to_string()
}

/// Counts the events of each minute and kind into table `per_minute`.
const COUNT_EVENTS: &str = "INSERT INTO per_minute
    SELECT window_start, window_end, kind, count(*) AS events
    FROM events GROUP BY window(at, INTERVAL '1 minute'), kind;";
