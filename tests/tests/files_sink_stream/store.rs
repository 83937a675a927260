//! A store in memory without renames, as S3 is, whose calls give way to others and fail when they are told to.

use async_trait::async_trait;
use datafusion::execution::object_store::ObjectStoreRegistry;
use datafusion::object_store::memory::InMemory;
use datafusion::object_store::path::Path;
use datafusion::object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use essaim_common::object_stores;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::fmt;
use std::sync::{Arc, Mutex};
use url::Url;

#[derive(Debug)]
pub struct Faulty {
    inner: Arc<InMemory>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Calls until one fails, and all behind it.
    left: Option<usize>,
    /// The first call to fail does its work, only its answer is lost.
    answer_lost: bool,
    random: StdRng,
}

enum Fate {
    Works,
    AnswerLost,
    Fails,
}

fn failure() -> Error {
    Error::Generic {
        store: "faulty",
        source: "out of reach".into(),
    }
}

impl Faulty {
    /// The store of `bucket`, e.g. `s3://x`, for all of the process.
    pub fn register(bucket: &str, seed: u64) -> Arc<Self> {
        let store = Arc::new(Self {
            inner: Arc::new(InMemory::new()),
            state: Arc::new(Mutex::new(State {
                left: None,
                answer_lost: false,
                random: StdRng::seed_from_u64(seed),
            })),
        });
        let url = Url::parse(bucket).unwrap();
        object_stores::registry().register_store(&url, Arc::clone(&store) as _);
        store
    }

    /// The same without faults.
    pub fn whole(&self) -> &dyn ObjectStore {
        self.inner.as_ref()
    }

    pub async fn names(&self) -> Vec<String> {
        let files = self.inner.list(None);
        let names = files.map_ok(|file| file.location.to_string());
        names.try_collect().await.unwrap()
    }

    pub fn fail_after(&self, calls: usize, answer_lost: bool) {
        let mut state = self.state.lock().unwrap();
        state.left = Some(calls);
        state.answer_lost = answer_lost;
    }

    pub fn heal(&self) {
        self.state.lock().unwrap().left = None;
    }

    async fn fate(&self) -> Fate {
        fate(&self.state).await
    }

    async fn call<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match self.fate().await {
            Fate::Works => work.await,
            Fate::AnswerLost => {
                let _ = work.await;
                Err(failure())
            }
            Fate::Fails => Err(failure()),
        }
    }
}

async fn fate(state: &Mutex<State>) -> Fate {
    let pauses = state.lock().unwrap().random.random_range(0..4);
    for _ in 0..pauses {
        tokio::task::yield_now().await;
    }
    let mut state = state.lock().unwrap();
    let state = &mut *state;
    match &mut state.left {
        None => Fate::Works,
        Some(0) if state.answer_lost => {
            state.answer_lost = false;
            Fate::AnswerLost
        }
        Some(0) => Fate::Fails,
        Some(left) => {
            *left -= 1;
            Fate::Works
        }
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.call(self.inner.put_opts(location, payload, opts))
            .await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.call(self.inner.put_multipart_opts(location, opts))
            .await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.call(self.inner.get_opts(location, options)).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (inner, state) = (Arc::clone(&self.inner), Arc::clone(&self.state));
        let deleted = locations.and_then(move |path| {
            let (inner, state) = (Arc::clone(&inner), Arc::clone(&state));
            async move {
                use datafusion::object_store::ObjectStoreExt;
                match fate(&state).await {
                    Fate::Works => inner.delete(&path).await?,
                    Fate::AnswerLost => {
                        let _ = inner.delete(&path).await;
                        return Err(failure());
                    }
                    Fate::Fails => return Err(failure()),
                }
                Ok(path)
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, state) = (Arc::clone(&self.inner), Arc::clone(&self.state));
        let prefix = prefix.cloned();
        let listed = async move {
            match fate(&state).await {
                Fate::Works => Ok(inner.list(prefix.as_ref())),
                Fate::AnswerLost | Fate::Fails => Err(failure()),
            }
        };
        futures::stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.call(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.call(self.inner.copy_opts(from, to, options)).await
    }
}
