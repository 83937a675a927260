//! What a job finds of a feed after a restart, and how much of it waits.

use super::*;
use crate::sources::feed::entry::Meta;
use crate::sources::feed::plan::{Format, OnError};
use crate::sources::kafka::timestamps::EpochUnit;
use arrow::datatypes::Schema;
use tokio::sync::mpsc;

/// A journal in memory, the same for every start.
#[derive(Debug, Default)]
struct Memory {
    kept: Mutex<Journaled>,
    /// Calls that fail before the next one does not.
    failures: Mutex<usize>,
}

#[derive(Debug, Clone, Default)]
struct Shared(Arc<Memory>);

#[async_trait]
impl Journal for Shared {
    async fn append(&self, entries: &[Bytes]) -> Result<i64> {
        let mut failures = self.0.failures.lock();
        if *failures > 0 {
            *failures -= 1;
            return Err(Error::unavailable("the state dir is away"));
        }
        let mut kept = self.0.kept.lock();
        kept.entries.extend_from_slice(entries);
        Ok(kept.end())
    }

    async fn compact(&self, below: i64, summary: Bytes) -> Result<()> {
        let mut kept = self.0.kept.lock();
        let gone = (below - kept.first) as usize;
        kept.entries.drain(..gone);
        kept.first = below;
        kept.summary = Some(summary);
        Ok(())
    }
}

#[async_trait]
impl Journals for Shared {
    async fn open(&self) -> Result<(Arc<dyn Journal>, Journaled)> {
        let kept = self.0.kept.lock().clone();
        Ok((Arc::new(self.clone()), kept))
    }
}

/// What the test tells the feed to do.
enum Order {
    Put(Vec<Entry>),
    Trouble,
    Answered,
    Fail,
}

/// A feed that does what it is told, and tells with which marks it began and what is done.
#[derive(Debug)]
struct Told {
    orders: tokio::sync::Mutex<mpsc::Receiver<Order>>,
    done: mpsc::Sender<Marks>,
}

#[async_trait]
impl Feed for Told {
    async fn run(&self, marks: Marks, inbox: &Inbox) -> Error {
        let mut orders = self.orders.lock().await;
        self.done.send(marks).await.unwrap();
        while let Some(order) = orders.recv().await {
            match order {
                Order::Put(entries) => inbox.put(&entries).await.unwrap(),
                Order::Trouble => inbox.in_trouble(&Error::unavailable("away")),
                Order::Answered => inbox.answered(),
                Order::Fail => return Error::invalid("no such page"),
            }
            self.done.send(Marks::new()).await.unwrap();
        }
        std::future::pending().await
    }
}

struct Start {
    stream: FeedStream,
    orders: mpsc::Sender<Order>,
    done: mpsc::Receiver<Marks>,
    marks: Marks,
}

impl Start {
    async fn new(journal: &Shared) -> Self {
        let (orders, received) = mpsc::channel(1);
        let (done, told) = mpsc::channel(1);
        let feed = Told {
            orders: tokio::sync::Mutex::new(received),
            done,
        };
        let plan = RowPlan {
            format: Format::Raw,
            timestamp_unit: EpochUnit::Milliseconds,
            on_error: OnError::Fail,
            metadata: Vec::new(),
        };
        let schema = Arc::new(Schema::empty());
        let stream = FeedStream::new(Arc::new(feed), schema, plan, StreamOptions::default());
        stream.open(journal).await.unwrap();
        let mut start = Self {
            stream,
            orders,
            done: told,
            marks: Marks::new(),
        };
        start.marks = start.done.recv().await.unwrap();
        start
    }

    async fn order(&mut self, order: Order) {
        self.orders.send(order).await.unwrap();
        self.done.recv().await.unwrap();
    }

    async fn latest(&self, from: i64) -> i64 {
        let found = self.stream.available(&at(from)).await.unwrap();
        number(&found.latest).unwrap().unwrap()
    }
}

/// Entries with these numbers, each its own mark.
fn entries(numbers: std::ops::Range<u32>, size: usize) -> Vec<Entry> {
    let entry = |n| Entry {
        meta: Meta {
            origin: "update".to_owned(),
            id: None,
            status: None,
            at_ms: 0,
        },
        mark: Some(mark("last", &format!("{n}"))),
        payload: Bytes::from(vec![b'x'; size]),
    };
    numbers.map(entry).collect()
}

#[tokio::test]
async fn a_new_start_finds_what_was_not_forgotten() {
    let journal = Shared::default();
    let mut first = Start::new(&journal).await;
    assert_eq!(first.marks, Marks::new());
    assert_eq!(first.stream.start().await.unwrap(), at(0));
    // Nothing is lost when the state dir is away for a while, and nothing is there twice.
    *journal.0.failures.lock() = 1;
    first.order(Order::Put(entries(0..7, 10))).await;
    first.order(Order::Put(entries(7..9, 10))).await;
    assert_eq!(first.latest(0).await, 9);
    first.stream.committed(&at(4)).await.unwrap();
    assert!(first.stream.available(&at(3)).await.is_err());
    drop(first);

    let second = Start::new(&journal).await;
    assert_eq!(second.marks, Marks::from([mark("last", "8")]));
    assert_eq!(second.stream.start().await.unwrap(), at(4));
    assert_eq!(second.latest(4).await, 9);
    let splits = second.stream.splits(&at(5), &at(9), 4).unwrap();
    assert_eq!(splits.len(), 1, "too little to cut");
    assert_eq!(splits[0].rows, Some(4));
    let packed = Bytes::copy_from_slice(&splits[0].payload[8..]);
    assert_eq!(unpack(packed).unwrap(), entries(5..9, 10));
    second.stream.committed(&at(9)).await.unwrap();
    drop(second);

    let third = Start::new(&journal).await;
    assert_eq!(third.marks, Marks::from([mark("last", "8")]));
    assert_eq!(third.latest(9).await, 9);
}

#[tokio::test]
async fn what_waits_is_bounded_and_so_is_an_epoch() {
    let mut start = Start::new(&Shared::default()).await;
    let mib = 1 << 20;
    for n in 0..9 {
        start
            .order(Order::Put(entries(n * 8..n * 8 + 8, mib)))
            .await;
        if (n + 1) * 8 >= 64 {
            break;
        }
    }
    assert_eq!(
        start.latest(0).await,
        15,
        "16 MiB, of which each entry is a little more than one"
    );
    let splits = start.stream.splits(&at(0), &at(15), 4).unwrap();
    assert_eq!(splits.len(), 4);
    // The next are not taken before some have gone.
    start
        .orders
        .send(Order::Put(entries(64..65, 1)))
        .await
        .unwrap();
    let waits = tokio::time::timeout(Duration::from_millis(50), start.done.recv()).await;
    assert!(waits.is_err());
    start.stream.committed(&at(15)).await.unwrap();
    start.done.recv().await.unwrap();
    assert_eq!(start.latest(60).await, 65);
}

#[tokio::test]
async fn a_server_that_was_never_heard_is_an_error() {
    let journal = Shared::default();
    let mut start = Start::new(&journal).await;
    start.order(Order::Trouble).await;
    assert!(
        start
            .stream
            .available(&at(0))
            .await
            .unwrap_err()
            .is_transient()
    );
    start.order(Order::Answered).await;
    assert_eq!(start.latest(0).await, 0);
    // One that was heard is waited for, now and after a restart.
    start.order(Order::Put(entries(0..1, 1))).await;
    start.order(Order::Trouble).await;
    assert_eq!(start.latest(1).await, 1);
    let mut next = Start::new(&journal).await;
    next.order(Order::Trouble).await;
    assert_eq!(next.latest(1).await, 1);
    // What cannot be helped is told when the rest has been read.
    next.orders.send(Order::Fail).await.unwrap();
    while next.stream.available(&at(1)).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(next.latest(0).await, 1);
    let error = next.stream.available(&at(1)).await.unwrap_err();
    assert_eq!(error.to_string(), "no such page");
}

#[tokio::test]
async fn positions_of_another_source_are_refused() {
    let start = Start::new(&Shared::default()).await;
    let other = Offsets(BTreeMap::from([("toots[3]".to_owned(), 1)]));
    let error = start
        .stream
        .available(&other)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("toots[3]"), "{error}");
}
