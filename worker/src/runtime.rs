//! The threads that tasks compute on: apart from those that answer, so that a worker that is busy is still heard.

use essaim_common::{Error, Result};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Responses of a task that wait to be sent, each at most a chunk of rows.
const AHEAD: usize = 2;

/// The threads. Dropped, they end when what they compute comes to its next pause.
#[derive(Debug)]
pub(crate) struct TaskThreads(Option<Runtime>);

impl TaskThreads {
    /// As many as there are cores.
    ///
    /// # Errors
    /// The system gives none.
    pub(crate) fn start() -> Result<Self> {
        Builder::new_multi_thread()
            .thread_name("task")
            .enable_all()
            .build()
            .map(|runtime| Self(Some(runtime)))
            .map_err(|e| Error::internal(format!("no threads for tasks: {e}")))
    }

    /// What runs something on them.
    pub(crate) fn handle(&self) -> Handle {
        // It is there until it is dropped.
        self.0
            .as_ref()
            .map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for TaskThreads {
    fn drop(&mut self) {
        // Waiting for them is not for an async thread.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Computes a stream on `threads`; it ends there when what is returned is dropped.
pub(crate) fn computed_on<T: Send + 'static>(
    threads: &Handle,
    mut items: BoxStream<'static, T>,
) -> BoxStream<'static, T> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let work = threads.spawn(async move {
        while let Some(item) = items.next().await {
            if sender.send(item).await.is_err() {
                break;
            }
        }
    });
    let state = (receiver, AbortOnDropHandle::new(work));
    stream::unfold(state, |(mut receiver, work)| async move {
        let item = receiver.recv().await?;
        Some((item, (receiver, work)))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc as blocking;
    use std::time::Duration;
    use tokio::sync::oneshot;

    const LONG: Duration = Duration::from_secs(20);

    // On one thread, so that whoever blocks it blocks the test.
    #[tokio::test]
    async fn a_stream_that_blocks_its_thread_leaves_its_reader_free() {
        let threads = TaskThreads::start().unwrap();
        let (go, wait) = blocking::channel();
        let items = stream::once(async move { wait.recv_timeout(LONG).unwrap() }).boxed();
        let mut items = computed_on(&threads.handle(), items);
        let free = async { go.send(7).unwrap() };
        let (item, ()) = tokio::join!(items.next(), free);
        assert_eq!(item, Some(7));
        assert_eq!(items.next().await, None);
    }

    #[tokio::test]
    async fn a_stream_ends_when_nobody_reads_it_any_more() {
        let threads = TaskThreads::start().unwrap();
        let (held, gone) = oneshot::channel::<()>();
        let items = stream::once(async move {
            let _held = held;
            std::future::pending::<u8>().await
        });
        drop(computed_on(&threads.handle(), items.boxed()));
        assert!(gone.await.is_err(), "it is dropped, not completed");
    }
}
