//! What becomes of a commit when staged rows, the answer or the master are gone.

use crate::harness::{Place, job, postgres, run, url, write};
use arrow::array::{ArrayRef, Int32Array, RecordBatch};
use essaim_common::connector::{Begin, Part, PlannedSink, SinkRun, TableSpec};
use essaim_common::options::Options;
use essaim_common::secret::Secret;
use essaim_common::{ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn batch(first: i32) -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int32Array::from_iter_values(first..first + 1000));
    RecordBatch::try_from_iter([("id", ids)]).unwrap()
}

/// A sink for the table `t` of a place, at a location of its own.
async fn plan(place: &Place, location: String, run: &SinkRun) -> PlannedSink {
    let options = [("table".to_owned(), format!("{}.t", place.schema))];
    let spec = TableSpec {
        name: "t".to_owned(),
        schema: None,
        location: Secret::new(location),
        options: Options::new("t", options.iter().map(|(k, v)| (k, v))).unwrap(),
        primary_key: Vec::new(),
        unbounded: false,
    };
    let sink = postgres().table(spec).await.unwrap().sink.unwrap();
    sink.plan(&batch(0).schema(), false, run).await.unwrap()
}

async fn stage(planned: &PlannedSink) -> Vec<Part> {
    assert_eq!(planned.committer.begin().await.unwrap(), Begin::Fresh);
    vec![
        write(planned, vec![batch(0)]).await.unwrap(),
        write(planned, vec![batch(1000)]).await.unwrap(),
    ]
}

const COUNT: &str = "SELECT count(*) FROM t";
const STAGED: &str = "SELECT count(*) FROM pg_class WHERE relname LIKE 'essaim_staging%' \
     AND relnamespace = current_schema()::regnamespace";

#[tokio::test]
async fn rows_that_the_server_lost_before_the_commit_are_missed() {
    let mut place = Place::new().await;
    place
        .run("CREATE TABLE t (id int); INSERT INTO t VALUES (-1)")
        .await;
    let run = run(&job(), 1);
    let planned = plan(&place, url(), &run).await;
    let parts = stage(&planned).await;
    // What recovery does to an unlogged table.
    place.run(&format!("TRUNCATE {}", parts[1].payload)).await;
    let error = planned.committer.commit(parts).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    for words in ["holds 0 of the 1000 rows", "Run the job again"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(place.text(COUNT).await, "1");
    planned.committer.abort().await;
    assert_eq!(place.text(STAGED).await, "0");
    // The same run again.
    let parts = stage(&planned).await;
    planned.committer.commit(parts).await.unwrap();
    assert_eq!(place.text(COUNT).await, "2001");
    place.drop().await;
}

#[tokio::test]
async fn a_late_master_leaves_what_its_successor_staged() {
    let mut place = Place::new().await;
    let job = job();
    let old = plan(&place, url(), &run(&job, 9)).await;
    let parts = stage(&old).await;
    let new = plan(&place, url(), &run(&job, 10)).await;
    let staged = stage(&new).await;
    assert_eq!(place.text(STAGED).await, "2", "the older one's are gone");
    // A task of the older one ends late, and only then its master sees that it has been superseded.
    write(&old, vec![batch(0)]).await.unwrap();
    assert!(old.committer.commit(parts).await.is_err());
    old.committer.abort().await;
    assert_eq!(place.text(STAGED).await, "2");
    new.committer.commit(staged).await.unwrap();
    assert_eq!(place.text(COUNT).await, "2000");
    assert_eq!(place.text(STAGED).await, "0");
    place.drop().await;
}

/// A way to the server that can be cut behind the next COMMIT, so that its answer is lost. Returns its location.
async fn proxy(cut: Arc<AtomicBool>) -> String {
    let url = url();
    let (login, rest) = url.split_once('@').unwrap();
    let (server, database) = rest.split_once('/').unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("{login}@{}/{database}", listener.local_addr().unwrap());
    let server = server.to_owned();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.unwrap();
            tokio::spawn(forward(client, server, Arc::clone(&cut)));
        }
    });
    location
}

async fn forward(
    mut client: TcpStream,
    mut server: TcpStream,
    cut: Arc<AtomicBool>,
) -> std::io::Result<()> {
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                server.write_all(&asked[..read]).await?;
                let commits = asked[..read].windows(7).any(|words| words == b"COMMIT\0");
                if commits && cut.swap(false, Ordering::SeqCst) {
                    // The server has answered; nobody hears it.
                    server.readable().await?;
                    return Ok(());
                }
            }
            read = server.read(&mut answered) => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                client.write_all(&answered[..read]).await?;
            }
        }
    }
}

async fn commit_unheard(place: &Place) -> Result<()> {
    let cut = Arc::new(AtomicBool::new(false));
    let planned = plan(place, proxy(Arc::clone(&cut)).await, &run(&job(), 1)).await;
    let parts = stage(&planned).await;
    cut.store(true, Ordering::SeqCst);
    let outcome = planned.committer.commit(parts).await;
    assert!(!cut.load(Ordering::SeqCst), "the connection was cut");
    planned.committer.abort().await;
    outcome
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_asked_about() {
    let mut place = Place::new().await;
    place.run("CREATE TABLE t (id int)").await;
    commit_unheard(&place).await.unwrap();
    assert_eq!(place.text(COUNT).await, "2000");
    assert_eq!(place.text(STAGED).await, "0");
    // A server that ends the session while it commits has rolled back.
    place
        .run(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'; \
             CREATE CONSTRAINT TRIGGER die AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW EXECUTE FUNCTION die()",
        )
        .await;
    let error = commit_unheard(&place).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(
        error.to_string().contains("nothing was committed"),
        "{error}"
    );
    assert_eq!(place.text(COUNT).await, "2000");
    assert_eq!(place.text(STAGED).await, "0");
    place.drop().await;
}
