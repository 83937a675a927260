//! What lives as long as one run of a job on the master, and what a worker keeps warm between tasks.

use crate::connector::SinkRun;
use crate::error::Result;
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

type Resource = Arc<dyn Any + Send + Sync>;

/// One run of a job on the master. An extension of the session's configuration while it is planned.
pub struct JobScope {
    job: String,
    generation: u64,
    slots: AtomicUsize,
    query: AtomicU32,
    resources: tokio::sync::Mutex<HashMap<String, Resource>>,
}

impl std::fmt::Debug for JobScope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JobScope({} generation {})", self.job, self.generation)
    }
}

impl JobScope {
    /// A run of `job`, for a cluster of `slots` slots.
    pub fn new(job: impl Into<String>, generation: u64, slots: usize) -> Arc<Self> {
        Arc::new(Self {
            job: job.into(),
            generation,
            slots: AtomicUsize::new(slots),
            query: AtomicU32::new(0),
            resources: tokio::sync::Mutex::default(),
        })
    }

    /// The job's id.
    pub fn job(&self) -> &str {
        &self.job
    }

    /// How many slots the cluster has.
    pub fn slots(&self) -> usize {
        self.slots.load(Ordering::Relaxed)
    }

    /// The cluster has grown or shrunk.
    pub fn set_slots(&self, slots: usize) {
        self.slots.store(slots, Ordering::Relaxed);
    }

    /// Moves on to another query of the job.
    pub fn set_query(&self, query: u32) {
        self.query.store(query, Ordering::Relaxed);
    }

    /// The commit's name for the query that is being planned.
    pub fn sink_run(&self) -> SinkRun {
        SinkRun {
            job: self.job.clone(),
            query: self.query.load(Ordering::Relaxed),
            generation: self.generation,
            epoch: 0,
        }
    }

    /// Something that all scans of the job share and that ends with the job, e.g. a transaction whose snapshot
    /// the workers adopt: made at the first call for its key.
    ///
    /// # Errors
    /// Those of `make`.
    pub async fn resource<T, F>(&self, key: &str, make: F) -> Result<Arc<T>>
    where
        T: Any + Send + Sync,
        F: Future<Output = Result<T>>,
    {
        let key = format!("{} {key}", std::any::type_name::<T>());
        let mut resources = self.resources.lock().await;
        if let Some(found) = resources.get(&key)
            && let Ok(found) = Arc::clone(found).downcast::<T>()
        {
            return Ok(found);
        }
        let made = Arc::new(make.await?);
        resources.insert(key, Arc::clone(&made) as Resource);
        Ok(made)
    }

    /// Lets go of everything that the run kept.
    pub async fn release(&self) {
        self.resources.lock().await.clear();
    }
}

/// Connections that a process keeps between tasks and epochs, by connector: an extension of the session's
/// configuration wherever tasks run.
#[derive(Default)]
pub struct Warm {
    pools: parking_lot::Mutex<HashMap<TypeId, Resource>>,
}

impl std::fmt::Debug for Warm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Warm")
    }
}

impl Warm {
    /// The connector's own pool, made empty at the first call.
    pub fn of<T: Any + Send + Sync + Default>(&self) -> Arc<T> {
        let mut pools = self.pools.lock();
        let pool = pools
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Arc::new(T::default()) as Resource);
        Arc::clone(pool).downcast::<T>().unwrap_or_default()
    }
}
