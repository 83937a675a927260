//! The DataFusion session that master and workers share: settings, functions, memory, connectors.

use crate::codec::EssaimCodec;
use crate::connector::Connector;
use crate::error::{Error, Result};
use crate::object_stores;
use crate::scope::Warm;
use crate::sinks::files::Format;
use crate::sources::files::FileTableFactory;
use crate::table::TableFactory;
use datafusion::catalog::TableProviderFactory;
use datafusion::common::extensions_options;
use datafusion::config::{ConfigExtension, ConfigOptions};
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::cache::cache_manager::CacheManagerConfig;
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::SessionConfig;
use datafusion_distributed::DistributedExt;
use std::num::NonZeroUsize;
use std::sync::Arc;

extensions_options! {
    /// Settings of a job: `SET essaim.<name> = <value>`.
    pub struct Settings {
        /// How a query is spread: 'auto', 'tasks' (cut at its aggregate), 'exchange' (one distributed plan), 'master'.
        pub execution: String, default = "auto".to_owned()
        /// Splits that a source is asked for, per slot of the cluster: more are retried and balanced in smaller pieces.
        pub splits_per_slot: usize, default = 4
        /// Attempts of a task (or of a whole exchange) before the job fails.
        pub max_attempts: usize, default = 4
        /// Whether a straggler is run a second time on another worker.
        pub speculation: bool, default = true
        /// A task is a straggler once it has taken so many times the median of its stage.
        pub speculation_multiplier: f64, default = 1.5
        /// The largest input, in bytes, that is sent whole to every worker for a join.
        pub broadcast_threshold: usize, default = 64 * 1024 * 1024
        /// Slots that the job may hold at a time; 0 for as many as there are.
        pub max_slots: usize, default = 0
        /// How long a query waits for a first worker, in seconds.
        pub worker_timeout_s: u64, default = 60
        /// How often a streaming job runs an epoch: an interval such as '500 milliseconds', '0' for as fast as it goes,
        /// or 'available_now' for what is there now and then an end.
        pub trigger: String, default = "0".to_owned()
        /// Which rows of its result a streaming INSERT writes: 'append', 'update', 'complete', or 'auto' for what fits.
        pub output_mode: String, default = "auto".to_owned()
        /// How often a streaming job reads the tables again that it joins its streams with; '0' for every epoch.
        pub table_refresh: String, default = "0".to_owned()
        /// How long a group without a window is kept after its last change; '0' for ever.
        pub state_ttl: String, default = "0".to_owned()
        /// The largest state of a streaming job, in bytes.
        pub max_state_bytes: u64, default = 1024 * 1024 * 1024
        /// The largest result of a query that is sent to a client, in bytes of Arrow IPC.
        pub max_result_bytes: u64, default = 16 * 1024 * 1024 * 1024
        /// How often an epoch may fail in a row before its job does; 0 for 30 times until the first is committed, and for
        /// ever from then on.
        pub max_epoch_attempts: usize, default = 0
    }
}

impl ConfigExtension for Settings {
    const PREFIX: &'static str = "essaim";
}

impl Settings {
    /// Slots that the job may hold at a time.
    pub fn slot_limit(&self) -> usize {
        match self.max_slots {
            0 => usize::MAX,
            slots => slots,
        }
    }
}

/// The settings in force; the defaults where a session has none.
pub fn settings(options: &ConfigOptions) -> Settings {
    options
        .extensions
        .get::<Settings>()
        .cloned()
        .unwrap_or_default()
}

/// All connectors. One line each.
pub fn connectors() -> Vec<Arc<dyn Connector>> {
    vec![
        Arc::new(crate::sources::generator::Generator),
        Arc::new(crate::sources::postgres::Postgres),
        Arc::new(crate::sources::kafka::Kafka),
        Arc::new(crate::sources::mongodb::Mongodb),
        Arc::new(crate::sources::files::Files),
        Arc::new(crate::sources::http::Http),
        Arc::new(crate::sources::sse::Sse),
        Arc::new(crate::sinks::console::Console),
    ]
}

/// The connector STORED AS `name`.
///
/// # Errors
/// There is none of that name.
pub fn connector(name: &str) -> Result<Arc<dyn Connector>> {
    connectors()
        .into_iter()
        .find(|connector| connector.name() == name)
        .ok_or_else(|| Error::internal(format!("there is no connector {name}")))
}

/// Memory and spill files of a process. `memory_bytes` bounds what all its operators reserve together.
///
/// # Errors
/// No temporary folder can be made.
pub fn runtime(memory_bytes: u64) -> Result<Arc<RuntimeEnv>> {
    const NAMED_IN_ERRORS: NonZeroUsize = NonZeroUsize::new(3).expect("3 is not 0");
    let pool = FairSpillPool::new(usize::try_from(memory_bytes).unwrap_or(usize::MAX));
    let pool = TrackConsumersPool::new(pool, NAMED_IN_ERRORS);
    Ok(Arc::new(
        RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(pool))
            .with_object_store_registry(object_stores::registry())
            // A listing that is remembered misses the files of the next INSERT.
            .with_cache_manager(CacheManagerConfig::default().with_list_files_cache_limit(0))
            .build()?,
    ))
}

/// The configuration that planning and execution share.
pub fn config(target_partitions: usize) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(target_partitions)
        .with_information_schema(true)
        .with_option_extension(Settings::default())
        .with_extension(Arc::new(Warm::default()));
    let options = config.options_mut();
    // 0.1 + 0.2 is 0.3, as in PostgreSQL and Spark.
    options.sql_parser.parse_float_as_decimal = true;
    // A task is one partition of its stage: nothing below the cut may mix partitions of its own accord.
    options.optimizer.enable_round_robin_repartition = false;
    // Filters that one operator fills in while another runs do not cross processes.
    options.optimizer.enable_dynamic_filter_pushdown = false;
    options.optimizer.enable_join_dynamic_filter_pushdown = false;
    options.optimizer.enable_topk_dynamic_filter_pushdown = false;
    options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    // A scalar subquery becomes a join: its value could not reach the workers otherwise.
    options
        .optimizer
        .enable_physical_uncorrelated_scalar_subquery = false;
    set_broadcast_threshold(options, Settings::default().broadcast_threshold);
    config
}

/// Lets the planner choose what is sent whole to every worker: a side of a join of at most `bytes`, or of as many rows
/// of 64 bytes where only the rows are known.
pub fn set_broadcast_threshold(options: &mut ConfigOptions, bytes: usize) {
    options.optimizer.hash_join_single_partition_threshold = bytes;
    options.optimizer.hash_join_single_partition_threshold_rows = bytes / 64;
}

/// Functions, connectors and codec on top of `builder`.
pub fn with_essaim(builder: SessionStateBuilder) -> SessionStateBuilder {
    let mut builder = builder.with_default_features();
    // Spark's functions only where DataFusion has none of that name: SQL keeps one meaning.
    {
        let known = builder.scalar_functions().get_or_insert_default();
        let names: std::collections::HashSet<String> =
            known.iter().map(|f| f.name().to_owned()).collect();
        known.extend(
            datafusion_spark::all_default_scalar_functions()
                .into_iter()
                .filter(|f| !names.contains(f.name())),
        );
        known.extend(crate::functions::scalar_functions());
    }
    {
        let known = builder.aggregate_functions().get_or_insert_default();
        let ours = crate::functions::aggregate_functions();
        known.retain(|f| ours.iter().all(|of_ours| of_ours.name() != f.name()));
        known.extend(ours);
        let names: std::collections::HashSet<String> =
            known.iter().map(|f| f.name().to_owned()).collect();
        known.extend(
            datafusion_spark::all_default_aggregate_functions()
                .into_iter()
                .filter(|f| !names.contains(f.name())),
        );
    }
    // The first planner that knows an expression plans it.
    builder
        .expr_planners()
        .get_or_insert_default()
        .insert(0, Arc::new(crate::functions::list_field::ListFieldPlanner));
    let factories = builder.table_factories().get_or_insert_default();
    for connector in connectors() {
        factories.insert(
            connector.name().to_owned(),
            Arc::new(TableFactory(connector)) as Arc<dyn TableProviderFactory>,
        );
    }
    for format in Format::ALL {
        factories.insert(
            format.name().to_owned(),
            Arc::new(FileTableFactory(format)) as Arc<dyn TableProviderFactory>,
        );
    }
    builder.with_distributed_user_codec(EssaimCodec)
}
