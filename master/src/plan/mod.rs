//! From SQL to something that can run: statements, tables, a physical plan, the cut.
//!
//! Planning takes DataFusion's `LogicalPlan`, wherever it came from; SQL is only one front end.

mod advice;
mod codecs;
pub mod cut;
mod describe;
pub mod exchange;
pub mod explain;
mod insert;
mod numbers;
mod set;
mod settings;
pub(crate) mod shape;
mod size;
pub mod stage;
mod text;
pub mod windows;

pub(crate) use crate::plan::advice::refuse;
use crate::plan::cut::Cut;
use crate::plan::insert::Insert;
pub use crate::plan::text::{MAX_SQL_BYTES, Placed, parse, statements};
use crate::plan::windows::WindowAnalyzer;
use crate::plan::windows::expand::ExpandWindows;
use crate::registry::Registry;
use datafusion::catalog::TableProvider;
use datafusion::common::TableReference;
use datafusion::config::ConfigOptions;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{
    CreateExternalTable, DdlStatement, LogicalPlan, Statement as LogicalStatement, WriteOp,
};
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{self, Statement as SqlStatement};
use essaim_common::scope::JobScope;
use essaim_common::session::{self, Settings};
use essaim_common::sink::{SinkCommitExec, StreamInsertExec};
use essaim_common::table::{Table, is_stream};
use essaim_common::{Error, ErrorKind, Result};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// What a statement is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// SET, CREATE, DROP: changes the session.
    Setup,
    /// INSERT: writes to a sink.
    Insert,
    /// Anything that yields rows.
    Rows,
}

/// What a statement is for.
pub fn purpose(statement: &Statement) -> Purpose {
    match statement {
        Statement::CreateExternalTable(_) | Statement::Reset(_) => Purpose::Setup,
        Statement::Statement(sql) => match sql.as_ref() {
            SqlStatement::Insert(_) => Purpose::Insert,
            SqlStatement::Set(_)
            | SqlStatement::CreateTable(_)
            | SqlStatement::CreateView { .. }
            | SqlStatement::CreateSchema { .. }
            | SqlStatement::Drop { .. } => Purpose::Setup,
            _ => Purpose::Rows,
        },
        Statement::CopyTo(_) => Purpose::Insert,
        Statement::Explain(_) => Purpose::Rows,
    }
}

/// How a query runs.
#[derive(Debug)]
pub enum Execution {
    /// Cut: stages on the workers, the rest here.
    Tasks(Cut),
    /// One distributed plan of datafusion-distributed. It is planned anew for each attempt.
    Exchange {
        /// Why it is not cut into tasks.
        reason: String,
        /// The plan before it is distributed.
        plan: Arc<dyn ExecutionPlan>,
    },
    /// There is nothing to distribute.
    Master(Arc<dyn ExecutionPlan>),
    /// An INSERT that reads a stream: run epoch by epoch, once a job.
    Stream(Arc<dyn ExecutionPlan>),
}

/// A statement that is ready to run.
#[derive(Debug)]
pub struct Query {
    /// The optimised logical plan.
    pub logical: LogicalPlan,
    pub execution: Execution,
    /// The table of an INSERT.
    pub sink: Option<String>,
}

impl Query {
    /// Whether the query may be started anew after its master died, and its tasks run twice at once.
    pub fn is_restartable(&self) -> bool {
        let plan = match &self.execution {
            Execution::Tasks(cut) => &cut.upper,
            Execution::Master(plan) | Execution::Stream(plan) => plan,
            Execution::Exchange { plan, .. } => plan,
        };
        plan.downcast_ref::<SinkCommitExec>()
            .is_none_or(SinkCommitExec::is_restartable)
    }
}

/// One session: the settings and tables of a job, and how its statements become queries.
pub struct Planner {
    ctx: SessionContext,
    scope: Arc<JobScope>,
    registry: Arc<Registry>,
    changed: HashMap<String, String>,
    /// The settings with which the session began.
    initial: Arc<ConfigOptions>,
}

impl std::fmt::Debug for Planner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Planner({:?})", self.scope)
    }
}

impl Planner {
    /// A fresh session for a run of a job.
    pub fn new(runtime: Arc<RuntimeEnv>, registry: Arc<Registry>, scope: Arc<JobScope>) -> Self {
        let parallel = std::thread::available_parallelism().map_or(2, usize::from);
        let config = session::config(parallel.max(2)).with_extension(Arc::clone(&scope));
        let initial = Arc::clone(config.options());
        // Two aggregates over one partition stay two: the cut needs the partial one.
        let rules = PhysicalOptimizer::new()
            .rules
            .into_iter()
            .filter(|rule| rule.name() != "CombinePartialFinalAggregate");
        let rules = std::iter::once(Arc::new(ExpandWindows) as Arc<_>).chain(rules);
        let state = session::with_essaim(
            SessionStateBuilder::new()
                .with_config(config)
                .with_runtime_env(runtime)
                .with_physical_optimizer_rules(rules.collect())
                .with_analyzer_rule(Arc::new(WindowAnalyzer)),
        )
        .build();
        Self {
            ctx: SessionContext::new_with_state(state),
            scope,
            registry,
            changed: HashMap::new(),
            initial,
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> Settings {
        session::settings(self.ctx.state_ref().read().config_options())
    }

    /// What the session has SET, by name.
    pub fn changed_settings(&self) -> &HashMap<String, String> {
        &self.changed
    }

    /// The session's state now.
    pub fn state(&self) -> SessionState {
        self.ctx.state()
    }

    /// How long to wait for a first worker.
    pub fn worker_timeout(&self) -> Duration {
        Duration::from_secs(self.settings().worker_timeout_s)
    }

    /// Runs a statement that changes the session.
    ///
    /// # Errors
    /// A wrong declaration or setting, named.
    pub async fn set_up(&mut self, statement: Statement) -> Result<()> {
        let plan = self.logical(set::spelled_out(statement)?).await?;
        let set = match &plan {
            LogicalPlan::Statement(LogicalStatement::SetVariable(set)) => {
                if set.variable.starts_with("datafusion.runtime.") {
                    return Err(Error::invalid(format!(
                        "{} belongs to the processes, not to a job: start master and workers with --memory",
                        set.variable
                    )));
                }
                Some((set.variable.clone(), set.value.clone()))
            }
            LogicalPlan::Statement(LogicalStatement::ResetVariable(reset)) => {
                self.changed.remove(&reset.variable);
                None
            }
            LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(table)) => {
                return Err(Error::invalid(format!(
                    "table {} would live in the master's memory: write CREATE VIEW, or CREATE EXTERNAL TABLE and INSERT INTO it",
                    table.name
                )));
            }
            LogicalPlan::Ddl(DdlStatement::CreateExternalTable(table)) => {
                self.check_connector(table)?;
                if table.unbounded {
                    // Two aggregates in place of one `count(DISTINCT …)`: the outer one would see changes of groups
                    // where it needs groups.
                    self.ctx
                        .remove_optimizer_rule("single_distinct_aggregation_to_group_by");
                    // Nor may the first half of an aggregate keep only the groups that lead in one epoch.
                    let state = self.ctx.state_ref();
                    let mut state = state.write();
                    let optimizer = &mut state.config_mut().options_mut().optimizer;
                    optimizer.enable_topk_aggregation = false;
                    optimizer.enable_distinct_aggregation_soft_limit = false;
                }
                None
            }
            _ => None,
        };
        self.ctx
            .execute_logical_plan(plan)
            .await
            .map_err(|error| match &set {
                Some((variable, value)) => set::refused(variable, value, &wrong_text(error)),
                None => wrong_text(error),
            })?;
        self.changed.extend(set);
        let threshold = self.settings().broadcast_threshold;
        let state = self.ctx.state_ref();
        session::set_broadcast_threshold(state.write().config_mut().options_mut(), threshold);
        Ok(())
    }

    /// DataFusion names an unknown connector, but not the known ones.
    fn check_connector(&self, table: &CreateExternalTable) -> Result<()> {
        let state = self.ctx.state_ref();
        let state = state.read();
        let known = state.table_factories();
        if known.contains_key(&table.file_type.to_uppercase()) {
            return Ok(());
        }
        let mut names: Vec<&str> = known.keys().map(String::as_str).collect();
        names.sort_unstable();
        Err(Error::invalid(format!(
            "table {} is STORED AS {}, which is unknown: known are {}",
            table.name,
            table.file_type,
            names.join(", ")
        )))
    }

    /// The tables that an INSERT reads.
    ///
    /// # Errors
    /// A name that is none.
    pub fn tables_read(&self, statement: &Statement) -> Result<Vec<TableReference>> {
        match purpose(statement) {
            Purpose::Insert => self.names_read(statement),
            Purpose::Setup | Purpose::Rows => Ok(Vec::new()),
        }
    }

    /// The tables that a statement reads.
    fn names_read(&self, statement: &Statement) -> Result<Vec<TableReference>> {
        let Statement::Statement(sql) = statement else {
            return Ok(Vec::new());
        };
        let rows = match sql.as_ref() {
            SqlStatement::Insert(ast::Insert {
                source: Some(rows), ..
            }) => rows,
            SqlStatement::Query(rows) => rows,
            SqlStatement::CreateView(view) => &view.query,
            _ => return Ok(Vec::new()),
        };
        let rows = Statement::Statement(Box::new(SqlStatement::Query(rows.clone())));
        Ok(self.ctx.state().resolve_table_references(&rows)?)
    }

    /// What a `CREATE EXTERNAL TABLE` says; `None` for any other statement. Nobody is asked.
    ///
    /// # Errors
    /// A declaration that means nothing.
    pub async fn declaration(
        &self,
        statement: Statement,
    ) -> Result<Option<Box<CreateExternalTable>>> {
        if !matches!(statement, Statement::CreateExternalTable(_)) {
            return Ok(None);
        }
        match self.logical(statement).await? {
            LogicalPlan::Ddl(DdlStatement::CreateExternalTable(table)) => {
                self.check_connector(&table)?;
                Ok(Some(table))
            }
            _ => Ok(None),
        }
    }

    /// A table or view of the session.
    pub async fn table(&self, name: TableReference) -> Option<Arc<dyn TableProvider>> {
        self.ctx.table_provider(name).await.ok()
    }

    /// Plans a statement that yields rows or writes them.
    ///
    /// # Errors
    /// Unknown names and types that do not fit, named; sources out of reach.
    pub async fn query(&mut self, mut statement: Statement) -> Result<Query> {
        if let Some((inner, verbose)) = explained(&statement)? {
            let query = Box::pin(self.query(inner)).await?;
            return explain::explain(self, query, verbose).await;
        }
        let Some(insert) = Insert::prepare(self, &mut statement).await? else {
            let logical = match self.logical(statement).await? {
                LogicalPlan::DescribeTable(table) => describe::rows(table)?,
                logical => logical,
            };
            return self.plan(logical).await;
        };
        let logical = match self.logical(statement).await {
            Ok(logical) => logical,
            Err(error) => return Err(insert.miscounted(self).await.unwrap_or(error)),
        };
        insert.check(&logical)?;
        let columns = insert.pairs(&logical);
        let planned = self.plan(logical).await;
        planned.map_err(|error| match columns {
            Some(columns) if error.to_string().contains("Cast error") => error.with_hint(columns),
            _ => error,
        })
    }

    /// Plans a logical plan.
    ///
    /// # Errors
    /// As [`Planner::query`].
    pub async fn plan(&self, logical: LogicalPlan) -> Result<Query> {
        let sink = match &logical {
            LogicalPlan::Dml(dml) if matches!(dml.op, WriteOp::Insert(_)) => {
                Some(dml.table_name.to_string())
            }
            LogicalPlan::Copy(copy) => Some(copy.output_url.clone()),
            _ => None,
        };
        let planned = self.physical_of(&logical).await;
        let (optimized, physical) = planned.map_err(|e| match &sink {
            Some(sink) => e.context(format!("INSERT INTO {sink}")),
            None => e,
        })?;
        if is_stream(&physical) {
            if !physical.is::<StreamInsertExec>() {
                return Err(Error::invalid(
                    "an UNBOUNDED table has no end, so its rows cannot be selected: INSERT INTO a table in a job (STORED AS CONSOLE to look at them), or leave the word UNBOUNDED out to read what is there now",
                ));
            }
            return Ok(Query {
                // As it was written: the optimizer turns DISTINCT ON into an aggregate like others.
                logical,
                execution: Execution::Stream(physical),
                sink,
            });
        }
        let settings = self.settings();
        let cut = cut::cut(Arc::clone(&physical))?;
        let execution = match settings.execution.as_str() {
            _ if cut.stages.is_empty() => Execution::Master(physical),
            "master" => Execution::Master(physical),
            "tasks" => Execution::Tasks(cut),
            "exchange" => Execution::Exchange {
                reason: "SET essaim.execution = 'exchange'".to_owned(),
                plan: physical,
            },
            "auto" => match cut::needs_exchange(&cut, settings.broadcast_threshold) {
                Some(reason) => Execution::Exchange {
                    reason,
                    plan: physical,
                },
                None => Execution::Tasks(cut),
            },
            other => {
                return Err(Error::invalid(format!(
                    "essaim.execution is '{other}': write 'auto', 'tasks', 'exchange' or 'master'"
                )));
            }
        };
        Ok(Query {
            logical: optimized,
            execution,
            sink,
        })
    }

    /// The physical plan of a logical one, made of the sources as they are now.
    ///
    /// # Errors
    /// As [`Planner::query`].
    pub async fn physical(&self, logical: &LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self.physical_of(logical).await?.1)
    }

    /// Lets go of what the sources keep for the job, such as a snapshot: what is planned next sees them as they are.
    pub async fn release(&self) {
        self.scope.release().await;
    }

    async fn physical_of(
        &self,
        logical: &LogicalPlan,
    ) -> Result<(LogicalPlan, Arc<dyn ExecutionPlan>)> {
        self.scope.set_slots(match self.registry.slots() {
            // Workers are on their way: their number is a guess.
            0 => 4,
            slots => slots,
        });
        let state = self.ctx.state();
        let planned = async {
            let logical = state.optimize(logical)?;
            let planner = state.query_planner();
            let physical = planner.create_physical_plan(&logical, &state).await?;
            Ok::<_, DataFusionError>((logical, physical))
        };
        planned.await.map_err(wrong_text)
    }

    async fn logical(&self, mut statement: Statement) -> Result<LogicalPlan> {
        refuse(&statement)?;
        settings::spell(&mut statement, &self.initial)?;
        windows::rewrite::rewrite(&mut statement)?;
        codecs::check(&statement)?;
        numbers::exponents(&mut statement);
        let mut read = Vec::new();
        for name in self.names_read(&statement).unwrap_or_default() {
            let Some(provider) = self.table(name).await else {
                continue;
            };
            // Without columns each use of one would be an error of its own.
            if let Some(table) = provider.downcast_ref::<Table>().filter(|t| t.is_open()) {
                return Err(table.absent().await);
            }
            read.push(provider);
        }
        let state = self.ctx.state();
        let plan = state.statement_to_plan(statement).await;
        let plan = plan.and_then(numbers::settle);
        let plan = plan.map_err(|error| advice::planned(error, &state, &read))?;
        size::check(&plan)?;
        Ok(plan)
    }
}

/// An error of planning. No data has been read yet: a value that does not fit stands in the text.
fn wrong_text(error: DataFusionError) -> Error {
    let error = Error::from(error);
    match error.kind() {
        ErrorKind::Data => Error::invalid(error.to_string()),
        _ => error,
    }
}

/// The statement inside an EXPLAIN, and whether it is VERBOSE.
fn explained(statement: &Statement) -> Result<Option<(Statement, bool)>> {
    let no_analyze = || {
        Error::invalid(
            "EXPLAIN ANALYZE is not there yet: run the query and look at `essaim status`",
        )
    };
    match statement {
        Statement::Explain(explain) => {
            if explain.options.analyze {
                return Err(no_analyze());
            }
            Ok(Some((
                explain.statement.as_ref().clone(),
                explain.options.verbose,
            )))
        }
        Statement::Statement(sql) => match sql.as_ref() {
            SqlStatement::Explain {
                analyze,
                verbose,
                statement,
                ..
            } => {
                if *analyze {
                    return Err(no_analyze());
                }
                Ok(Some((Statement::Statement(statement.clone()), *verbose)))
            }
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}
