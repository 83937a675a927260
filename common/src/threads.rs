//! Threads to compute on, apart from those that answer: a process that is busy is still heard, and still hears.

use crate::error::{Error, Result};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

/// Plans and expressions are walked by recursion. Memory is taken only as far down as it goes.
pub const STACK: usize = 128 << 20;
/// Items that wait for their reader, each at most a chunk of rows.
const AHEAD: usize = 2;

/// The threads. Dropped, they end when what they compute comes to its next pause.
#[derive(Debug)]
pub struct Threads(Option<Runtime>);

impl Threads {
    /// As many as there are cores, of this name (at most 15 bytes).
    ///
    /// # Errors
    /// The system gives none.
    pub fn start(name: &str) -> Result<Self> {
        Builder::new_multi_thread()
            .thread_name(name)
            .thread_stack_size(STACK)
            .enable_all()
            .build()
            .map(|runtime| Self(Some(runtime)))
            .map_err(|e| Error::internal(format!("no threads to compute on: {e}")))
    }

    /// What runs something on them.
    pub fn handle(&self) -> Handle {
        // It is there until it is dropped.
        self.0
            .as_ref()
            .map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Waiting for them is not for an async thread.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Computes a stream on `threads`, in the span of the caller; it ends there when what is returned is dropped. A panic of
/// it is its reader's.
pub fn computed_on<T: Send + 'static>(
    threads: &Handle,
    mut items: BoxStream<'static, T>,
) -> BoxStream<'static, T> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let compute = async move {
        while let Some(item) = items.next().await {
            if sender.send(item).await.is_err() {
                break;
            }
        }
    };
    let work = AbortOnDropHandle::new(threads.spawn(compute.in_current_span()));
    stream::unfold(Some((receiver, work)), |state| async {
        let (mut receiver, work) = state?;
        if let Some(item) = receiver.recv().await {
            return Some((item, Some((receiver, work))));
        }
        match work.await {
            Ok(()) => None,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The threads are gone, and the process is about to be: this is not the end of the rows.
                Err(_) => std::future::pending().await,
            },
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::mpsc as blocking;
    use std::time::Duration;
    use tokio::sync::oneshot;

    const LONG: Duration = Duration::from_secs(20);

    // On one thread, so that whoever blocks it blocks the test.
    #[tokio::test]
    async fn a_stream_that_blocks_its_thread_leaves_its_reader_free() {
        let threads = Threads::start("test").unwrap();
        let (go, wait) = blocking::channel();
        let items = stream::once(async move { wait.recv_timeout(LONG).unwrap() }).boxed();
        let mut items = computed_on(&threads.handle(), items);
        let free = async { go.send(7).unwrap() };
        let (item, ()) = tokio::join!(items.next(), free);
        assert_eq!(item, Some(7));
        assert_eq!(items.next().await, None);
    }

    #[tokio::test]
    async fn a_panic_is_not_the_end_of_the_rows() {
        let threads = Threads::start("test").unwrap();
        let items = stream::iter([1, 2]).map(|item| {
            assert_eq!(item, 1, "the second breaks");
            item
        });
        let mut items = computed_on(&threads.handle(), items.boxed());
        assert_eq!(items.next().await, Some(1));
        let broken = std::panic::AssertUnwindSafe(items.next()).catch_unwind();
        assert!(broken.await.is_err());
    }

    #[tokio::test]
    async fn a_stream_ends_when_nobody_reads_it_any_more() {
        let threads = Threads::start("test").unwrap();
        let (held, gone) = oneshot::channel::<()>();
        let items = stream::once(async move {
            let _held = held;
            std::future::pending::<u8>().await
        });
        drop(computed_on(&threads.handle(), items.boxed()));
        assert!(gone.await.is_err(), "it is dropped, not completed");
    }
}
