//! Epochs of a streaming job when sessions die, masters stall and others take over: each epoch is there once.

use crate::harness::{Place, connect, job, postgres, run, stream, url};
use arrow::array::{ArrayRef, Int64Array, ListArray, RecordBatch};
use arrow::datatypes::Int64Type;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use essaim_common::ErrorKind;
use essaim_common::connector::TableSpec;
use essaim_common::options::Options;
use essaim_common::secret::Secret;
use essaim_common::stream::{OutputMode, StreamSink};
use essaim_tests::postgres::{PrivateServer, rows as texts};
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How the rows travel.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// With the statement that inserts them.
    Parameters,
    /// By COPY, as an array among the columns needs.
    Copy,
}

/// The rows of an epoch: one key of its own, and one that every epoch writes.
fn rows(epoch: i64, way: Way) -> RecordBatch {
    let keys: ArrayRef = Arc::new(Int64Array::from(vec![epoch, -1]));
    let values: ArrayRef = Arc::new(Int64Array::from(vec![epoch, epoch]));
    let lists = [Some(vec![Some(epoch), None]), None];
    let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists));
    let mut columns = vec![("k", keys), ("v", values)];
    columns.extend((way == Way::Copy).then_some(("a", lists)));
    RecordBatch::try_from_iter(columns).unwrap()
}

async fn open(
    place: &Place,
    upsert: bool,
    way: Way,
    job: &str,
    generation: u64,
) -> Arc<dyn StreamSink> {
    let schema = place.schema.clone();
    open_at(&url(), &schema, upsert, way, job, generation).await
}

/// The same on another server.
async fn open_at(
    url: &str,
    schema: &str,
    upsert: bool,
    way: Way,
    job: &str,
    generation: u64,
) -> Arc<dyn StreamSink> {
    let mut options = vec![("table".to_owned(), format!("{schema}.t"))];
    if upsert {
        options.push(("mode".to_owned(), "upsert".to_owned()));
        options.push(("key".to_owned(), "k".to_owned()));
    }
    let spec = TableSpec {
        name: "t".to_owned(),
        schema: None,
        location: Secret::new(url.to_owned()),
        options: Options::new("t", options.iter().map(|(k, v)| (k, v))).unwrap(),
        primary_key: Vec::new(),
        unbounded: false,
    };
    let mode = match upsert {
        true => OutputMode::Update,
        false => OutputMode::Append,
    };
    let sink = postgres().table(spec).await.unwrap().sink.unwrap();
    sink.stream(&rows(0, way).schema(), mode, &run(job, generation))
        .await
        .unwrap()
}

/// Ends the sessions of a job's sinks, whatever they are doing.
async fn kill(sql: &mut sqlx::PgConnection, job: &str) {
    let job = job.replace('-', "");
    sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE $1",
    )
    .bind(format!("essaim {job}\\_%"))
    .execute(sql)
    .await
    .unwrap();
}

/// Commits epochs at random moments of dying sessions and changing generations; checks what is there.
async fn schedule(seed: u64, upsert: bool, way: Way) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut place = Place::new().await;
    let mut killer = connect().await;
    let job = job();
    let mut generation = 1;
    let mut sink = open(&place, upsert, way, &job, generation).await;
    assert_eq!(sink.begin().await.unwrap(), None);
    let mut old: Option<(u64, Arc<dyn StreamSink>)> = None;
    let last_epoch = 30;
    let mut epoch = 0;
    while epoch <= last_epoch {
        let number = u64::try_from(epoch).unwrap();
        match random.random_range(0..10) {
            0 => {
                let before = generation;
                generation += random.random_range(0..3);
                let new = open(&place, upsert, way, &job, generation).await;
                let committed = new.begin().await.unwrap();
                assert_eq!(committed, number.checked_sub(1), "seed {seed}");
                old = Some((before, std::mem::replace(&mut sink, new)));
            }
            1 => {
                // An epoch that is there already.
                if let Some(before) = number.checked_sub(1) {
                    let again = sink
                        .commit(before, stream(vec![rows(epoch - 1, way)]))
                        .await;
                    assert!(again.is_ok_and(|rows| rows == 0), "seed {seed}");
                }
            }
            2 => {
                if let Some((its, old)) = old.take() {
                    let done = old.commit(number, stream(vec![rows(epoch, way)])).await;
                    if its == generation {
                        // It has lost its session, not its right to write.
                        assert_eq!(done.unwrap(), 2, "seed {seed}");
                        epoch += 1;
                    } else {
                        assert_eq!(done.unwrap_err().kind(), ErrorKind::Invalid, "seed {seed}");
                    }
                }
            }
            3..=6 => {
                let pause = Duration::from_micros(random.random_range(0..8000));
                let death = async {
                    tokio::time::sleep(pause).await;
                    kill(&mut killer, &job).await;
                };
                let commit = sink.commit(number, stream(vec![rows(epoch, way)]));
                let (done, ()) = tokio::join!(commit, death);
                match done {
                    Ok(_) => epoch += 1,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
                }
            }
            _ => {
                sink.commit(number, stream(vec![rows(epoch, way)]))
                    .await
                    .unwrap();
                epoch += 1;
            }
        }
    }
    let keys = "SELECT k || ' ' || v FROM t WHERE k >= 0 ORDER BY k";
    let expected: Vec<String> = (0..=last_epoch).map(|e| format!("{e} {e}")).collect();
    assert_eq!(place.texts(keys).await, expected, "seed {seed}");
    let shared = place.texts("SELECT v FROM t WHERE k = -1 ORDER BY v").await;
    let expected: Vec<String> = match upsert {
        true => vec![last_epoch.to_string()],
        false => (0..=last_epoch).map(|e| e.to_string()).collect(),
    };
    assert_eq!(shared, expected, "seed {seed}");
    let commits = "SELECT generation || ' ' || epoch FROM essaim_commits";
    let last = sink.begin().await.unwrap();
    assert_eq!(last, u64::try_from(last_epoch).ok());
    assert_eq!(
        place.texts(commits).await,
        [format!("{generation} {last_epoch}")]
    );
    place.drop().await;
}

#[tokio::test]
async fn every_epoch_is_appended_once_while_sessions_die() {
    for seed in 0..4 {
        for way in [Way::Parameters, Way::Copy] {
            schedule(seed, false, way).await;
        }
    }
}

#[tokio::test]
async fn every_epoch_is_upserted_once_while_sessions_die() {
    for seed in 100..104 {
        for way in [Way::Parameters, Way::Copy] {
            schedule(seed, true, way).await;
        }
    }
}

#[tokio::test]
async fn a_master_that_stalls_within_an_epoch_gives_way_to_its_successor() {
    let way = Way::Copy;
    for upsert in [false, true] {
        let mut place = Place::new().await;
        let job = job();
        let old = open(&place, upsert, way, &job, 1).await;
        assert_eq!(old.begin().await.unwrap(), None);
        old.commit(0, stream(vec![rows(0, way)])).await.unwrap();
        // It has the lock and is within the COPY when its rows stop coming.
        let (seen, stalled) = tokio::sync::oneshot::channel();
        let mut seen = Some(seen);
        let first = futures::stream::iter([Ok(rows(1, way))]);
        let endless = first.chain(futures::stream::poll_fn(move |_| {
            seen.take().map(|seen| seen.send(()));
            std::task::Poll::Pending
        }));
        let endless = RecordBatchStreamAdapter::new(rows(1, way).schema(), endless);
        let stuck = Arc::clone(&old);
        let stuck = tokio::spawn(async move { stuck.commit(1, Box::pin(endless)).await });
        stalled.await.unwrap();

        let start = Instant::now();
        let new = open(&place, upsert, way, &job, 2).await;
        assert_eq!(new.begin().await.unwrap(), Some(0));
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(new.commit(1, stream(vec![rows(1, way)])).await.unwrap(), 2);
        stuck.abort();
        assert!(stuck.await.unwrap_err().is_cancelled());
        for _ in 0..2 {
            let error = old.commit(2, stream(vec![rows(2, way)])).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert!(error.to_string().contains("another master"), "{error}");
        }
        let error = old.begin().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        // Its attempt to begin did not disturb the successor.
        assert_eq!(new.commit(2, stream(vec![rows(2, way)])).await.unwrap(), 2);
        let keys = "SELECT k FROM t WHERE k >= 0 ORDER BY k";
        assert_eq!(place.texts(keys).await, ["0", "1", "2"]);
        place.drop().await;
    }
}

/// Waits until the server takes connections again.
async fn is_up(server: &PrivateServer) {
    let up = essaim_tests::wait_for("the server", essaim_tests::SOON, async || {
        Ok(server.connect().await.ok().map(drop))
    });
    up.await.unwrap();
}

/// Commits again while the server is not reachable, as a job does.
async fn once_it_is_up<C: Future<Output = essaim_common::Result<u64>>>(
    commit: impl Fn() -> C,
) -> u64 {
    essaim_tests::wait_for("the server", essaim_tests::SOON, async || {
        match commit().await {
            Err(error) if error.kind() == ErrorKind::Unavailable => Ok(None),
            done => Ok(Some(done?)),
        }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn every_epoch_is_there_once_though_the_server_is_killed_and_comes_back() {
    let mut server = PrivateServer::start().await.unwrap();
    let mut random = StdRng::seed_from_u64(1);
    for (upsert, way) in [
        (false, Way::Parameters),
        (true, Way::Parameters),
        (false, Way::Copy),
        (true, Way::Copy),
    ] {
        let job = job();
        let sink = open_at(&server.url, "public", upsert, way, &job, 1).await;
        assert_eq!(sink.begin().await.unwrap(), None);
        let last_epoch = 5;
        for epoch in 0..=last_epoch {
            let number = u64::try_from(epoch).unwrap();
            let commit = || sink.commit(number, stream(vec![rows(epoch, way)]));
            if epoch % 2 == 0 {
                // The connection is lost between two epochs: none of them notices.
                server.kill().unwrap();
                server.restart().unwrap();
                is_up(&server).await;
                assert_eq!(once_it_is_up(commit).await, 2);
                continue;
            }
            let pause = Duration::from_micros(random.random_range(0..5000));
            let death = async {
                tokio::time::sleep(pause).await;
                server.kill().unwrap();
                server.restart().unwrap();
            };
            let (done, ()) = tokio::join!(commit(), death);
            is_up(&server).await;
            if let Err(error) = done {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                once_it_is_up(commit).await;
            }
        }
        assert_eq!(sink.begin().await.unwrap(), u64::try_from(last_epoch).ok());
        let mut sql = server.connect().await.unwrap();
        let found = texts(
            &mut sql,
            "SELECT k || ' ' || v FROM t WHERE k >= 0 ORDER BY k",
        )
        .await
        .unwrap();
        let expected: Vec<_> = (0..=last_epoch)
            .map(|epoch| vec![Some(format!("{epoch} {epoch}"))])
            .collect();
        assert_eq!(found, expected, "{way:?}, upsert {upsert}");
        let shared = texts(&mut sql, "SELECT v FROM t WHERE k = -1 ORDER BY v")
            .await
            .unwrap();
        let expected: Vec<_> = match upsert {
            true => vec![vec![Some(last_epoch.to_string())]],
            false => (0..=last_epoch)
                .map(|e| vec![Some(e.to_string())])
                .collect(),
        };
        assert_eq!(shared, expected, "{way:?}, upsert {upsert}");
        essaim_tests::postgres::run(&mut sql, "DROP TABLE t")
            .await
            .unwrap();
    }
}
