//! What the upper half of a plan knows of the epoch that it runs in: an extension of its context.

use crate::stream::state::{Delta, KeyedState, Snapshot};
use arrow::datatypes::SchemaRef;
use essaim_common::{Error, Result};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// The watermarks of an INSERT, ms since the epoch; [`i64::MIN`] while there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// What the epoch before left: rows too late for it have been dropped below the cut.
    pub before: i64,
    /// With the rows of this epoch: what it closes is final.
    pub now: i64,
}

impl Watermarks {
    /// Before any row has told the time.
    pub const NONE: Self = Self {
        before: i64::MIN,
        now: i64::MIN,
    };
}

/// One epoch, as the stateful operators above the cut see it. They read state as the last epoch left it, and put their
/// changes down here; the changes are applied once the sinks have committed.
#[derive(Debug)]
pub struct EpochContext {
    pub epoch: u64,
    /// Wall-clock time at which the epoch was planned, ms; the same when the epoch is run again.
    pub time_ms: i64,
    /// By the INSERT's position in the job.
    pub watermarks: BTreeMap<u32, Watermarks>,
    /// Shared by all epochs of the job.
    states: Arc<States>,
    /// What the operators want changed, by operator.
    pending: Mutex<BTreeMap<String, Delta>>,
}

impl EpochContext {
    /// One attempt at an epoch.
    pub fn new(
        epoch: u64,
        time_ms: i64,
        watermarks: BTreeMap<u32, Watermarks>,
        states: Arc<States>,
    ) -> Self {
        Self {
            epoch,
            time_ms,
            watermarks,
            states,
            pending: Mutex::default(),
        }
    }

    /// The watermarks of the INSERT at position `query`.
    pub fn watermarks(&self, query: u32) -> Watermarks {
        self.watermarks
            .get(&query)
            .copied()
            .unwrap_or(Watermarks::NONE)
    }

    /// The state of operator `op`, for reading; see [`States::open`].
    ///
    /// # Errors
    /// Those of [`States::open`].
    pub fn state(
        &self,
        op: &str,
        schema: &SchemaRef,
        key_columns: usize,
    ) -> Result<Arc<RwLock<KeyedState>>> {
        self.states.open(op, schema, key_columns)
    }

    /// What operator `op` wants changed once the epoch is committed.
    ///
    /// # Errors
    /// It said so already: an operator runs once in an epoch.
    pub fn put_pending(&self, op: &str, delta: Delta) -> Result<()> {
        match self.pending.lock().entry(op.to_owned()) {
            Entry::Vacant(vacant) => {
                vacant.insert(delta);
                Ok(())
            }
            Entry::Occupied(_) => Err(Error::internal(format!(
                "operator {op} ran twice in epoch {}",
                self.epoch
            ))),
        }
    }

    /// What all operators want changed, by operator. Call it when the sinks have taken all rows.
    pub fn take_pending(&self) -> BTreeMap<String, Delta> {
        std::mem::take(&mut self.pending.lock())
    }
}

/// The size of some states.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateSize {
    pub rows: usize,
    /// In memory.
    pub bytes: usize,
}

/// All states of a job, by operator. The id of an operator begins with its INSERT's position: `<query>/…`.
#[derive(Debug, Default)]
pub struct States(RwLock<BTreeMap<String, Arc<RwLock<KeyedState>>>>);

impl States {
    /// The state of an operator; an empty one if there is none yet. The first `key_columns` columns of `schema` are
    /// the key.
    ///
    /// # Errors
    /// The state that is there has other columns, as the query has been changed; a type that cannot be kept.
    pub fn open(
        &self,
        op: &str,
        schema: &SchemaRef,
        key_columns: usize,
    ) -> Result<Arc<RwLock<KeyedState>>> {
        let place = |error: Error| error.context(format!("operator {op}"));
        let mut states = self.0.write();
        if let Some(state) = states.get(op) {
            let checked = state.read().check(schema, key_columns);
            return checked.map(|()| Arc::clone(state)).map_err(place);
        }
        let state = KeyedState::new(Arc::clone(schema), key_columns).map_err(place)?;
        let state = Arc::new(RwLock::new(state));
        states.insert(op.to_owned(), Arc::clone(&state));
        Ok(state)
    }

    /// Puts a state that was read from a checkpoint in place of what is there.
    pub fn put(&self, op: &str, state: KeyedState) {
        let state = Arc::new(RwLock::new(state));
        self.0.write().insert(op.to_owned(), state);
    }

    /// Changes the states, when an epoch has been committed or is read from a checkpoint.
    ///
    /// # Errors
    /// A delta of other columns than its state's (kind `Invalid`). The states are not to be used any more then.
    pub fn apply(&self, pending: &BTreeMap<String, Delta>) -> Result<()> {
        for (op, delta) in pending {
            let state = self.open(op, delta.upserts.schema_ref(), delta.key_columns)?;
            let applied = state.write().apply(delta);
            applied.map_err(|error| error.context(format!("operator {op}")))?;
        }
        Ok(())
    }

    /// All states as they are now, by operator, to be written while they change.
    pub fn snapshot(&self) -> BTreeMap<String, Snapshot> {
        let states = self.0.read();
        states
            .iter()
            .map(|(op, state)| (op.clone(), state.read().snapshot()))
            .collect()
    }

    /// The size of all states of the INSERT at position `query`.
    pub fn size(&self, query: u32) -> StateSize {
        let prefix = format!("{query}/");
        let states = self.0.read();
        let of_query = states.iter().filter(|(op, _)| op.starts_with(&prefix));
        of_query.fold(StateSize::default(), |size, (_, state)| {
            let state = state.read();
            StateSize {
                rows: size.rows + state.rows(),
                bytes: size.bytes + state.bytes(),
            }
        })
    }
}
