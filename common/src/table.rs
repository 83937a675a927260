//! The tables that a job declares: `CREATE EXTERNAL TABLE … STORED AS <connector>` becomes one of these.

use crate::check::{Finding, Incoming};
use crate::connector::{Connector, ConnectorTable, ScanRequest, Sink, Split, TableSpec};
use crate::error::Error;
use crate::options::Options;
use crate::scan::ScanExec;
use crate::scope::JobScope;
use crate::session::settings;
use crate::sink::{SinkCommitExec, SinkWriteExec, StreamInsertExec};
use crate::stream::StreamSource;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider, TableProviderFactory};
use datafusion::common::{Constraint, Result};
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{CreateExternalTable, Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;
use std::sync::Arc;

/// A table of a connector, as a query sees it.
#[derive(Debug)]
pub struct Table {
    name: String,
    connector: &'static str,
    schema: SchemaRef,
    unbounded: bool,
    /// Options that only a stream would use, of a table that is none.
    unused: Vec<&'static str>,
    table: ConnectorTable,
}

/// What only an UNBOUNDED table does something with.
const OF_STREAMS: [&str; 3] = ["event_time", "watermark_delay", "idle_timeout"];

impl Table {
    /// A table of `connector`, which is read continuously if it is `unbounded`.
    pub fn new(
        name: String,
        connector: &'static str,
        unbounded: bool,
        table: ConnectorTable,
    ) -> Self {
        Self {
            name,
            connector,
            schema: table
                .schema
                .clone()
                .unwrap_or_else(|| Arc::new(Schema::empty())),
            unbounded,
            unused: Vec::new(),
            table,
        }
    }

    /// The same table, which knows which options of its declaration do nothing.
    pub fn declared_by(mut self, command: &CreateExternalTable) -> Self {
        if !self.unbounded {
            let named = |option: &&str| {
                let mut names = command.options.keys();
                names.any(|name| {
                    let name = name.strip_prefix("format.").unwrap_or(name);
                    name.eq_ignore_ascii_case(option)
                })
            };
            self.unused = OF_STREAMS.into_iter().filter(named).collect();
        }
        self
    }

    /// Whether the table takes its columns from the first INSERT, because none are declared or found.
    pub fn is_open(&self) -> bool {
        self.table.schema.is_none()
    }

    /// Why an open table cannot be read: what is not there, and where that was looked for.
    pub async fn absent(&self) -> Error {
        let absent = match &self.table.sink {
            Some(sink) => sink.absent().await,
            None => Ok(format!("it is only a source of {}", self.connector)),
        };
        match absent {
            Ok(what) => Error::invalid(format!(
                "table {} does not exist yet, so it cannot be read: {what}; if the job is to make it, INSERT INTO it first, or declare its columns",
                self.name
            )),
            Err(error) => error.context(format!("table {}", self.name)),
        }
    }

    /// The connector's name.
    pub fn connector(&self) -> &'static str {
        self.connector
    }

    /// What the source finds before anybody reads it.
    ///
    /// # Errors
    /// The server is out of reach, or refuses to answer.
    pub async fn source_findings(&self) -> Result<Vec<Finding>, Error> {
        let mut found = Vec::new();
        if !self.unused.is_empty() {
            found.push(Finding::warning(
                format!(
                    "it is not UNBOUNDED, so it is read once, up to its end, without {}",
                    self.unused.join(", ")
                ),
                "write CREATE UNBOUNDED EXTERNAL TABLE for a streaming job, or leave the options out",
            ));
        }
        if let Some(source) = &self.table.source {
            found.extend(source.findings(self.unbounded).await?);
        }
        Ok(found)
    }

    /// What the sink finds before anybody writes to it.
    ///
    /// # Errors
    /// The server is out of reach, or refuses to answer.
    pub async fn sink_findings(&self, incoming: &Incoming<'_>) -> Result<Vec<Finding>, Error> {
        match &self.table.sink {
            Some(sink) => sink.findings(incoming).await,
            None => Ok(Vec::new()),
        }
    }

    /// The same open table with the columns of an INSERT.
    pub fn with_schema(&self, schema: SchemaRef) -> Self {
        Self {
            name: self.name.clone(),
            connector: self.connector,
            schema: Arc::clone(&schema),
            unbounded: self.unbounded,
            unused: self.unused.clone(),
            table: ConnectorTable {
                schema: Some(schema),
                source: self.table.source.clone(),
                sink: self.table.sink.clone(),
            },
        }
    }
}

fn scope(name: &str, state: &dyn Session) -> Result<Arc<JobScope>, Error> {
    state
        .config()
        .get_extension::<JobScope>()
        .ok_or_else(|| Error::internal(format!("table {name} is planned outside of a job")))
}

/// The plan that writes `input` to `sink`: commit above write, or for a stream what each epoch writes to.
///
/// # Errors
/// Rows that do not fit the sink; planning outside of a job.
pub async fn insert(
    name: &str,
    connector: &'static str,
    sink: &Arc<dyn Sink>,
    state: &dyn Session,
    input: Arc<dyn ExecutionPlan>,
    insert_op: InsertOp,
) -> Result<Arc<dyn ExecutionPlan>> {
    let run = scope(name, state)?.sink_run();
    let overwrite = matches!(insert_op, InsertOp::Overwrite);
    if is_stream(&input) {
        if overwrite {
            return Err(Error::invalid(format!(
                "INSERT OVERWRITE {name} reads a stream: write INSERT INTO, and SET essaim.output_mode = 'complete' if each epoch is to replace all rows"
            ))
            .into());
        }
        let sink = Arc::clone(sink);
        return Ok(Arc::new(StreamInsertExec::new(name, sink, run, input)));
    }
    let planned = sink
        .plan(&input.schema(), overwrite, &run)
        .await
        .map_err(|e| e.context(format!("table {name}")))?;
    let mut write = SinkWriteExec::new(connector, name, planned.writer, input);
    if sink.takes_one_writer() {
        write = write.with_one_writer();
    }
    Ok(Arc::new(SinkCommitExec::new(
        name,
        planned.committer,
        Arc::new(write),
    )))
}

/// Whether a plan reads an UNBOUNDED table.
pub fn is_stream(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.downcast_ref::<ScanExec>()
        .is_some_and(|scan| scan.stream().is_some())
        || plan.children().into_iter().any(is_stream)
}

/// The scan of an UNBOUNDED table. Its partitions only stand for those of each epoch: two, so that aggregates above are
/// planned in two steps. The event time comes along, wanted or not: the watermark needs it.
fn scan_stream(
    connector: &'static str,
    name: &str,
    stream: Arc<dyn StreamSource>,
    projection: &[usize],
) -> Result<Arc<dyn ExecutionPlan>> {
    let mut columns = projection.to_vec();
    let event_time = stream.options().event_time.map(|wanted| {
        let position = columns.iter().position(|column| *column == wanted);
        position.unwrap_or_else(|| {
            columns.push(wanted);
            columns.len() - 1
        })
    });
    let reader = stream
        .reader(&columns)
        .map_err(|e| e.context(format!("table {name}")))?;
    let scan = ScanExec::new(connector, name, reader, vec![Arc::from([]), Arc::from([])])
        .with_stream(stream)
        .with_event_time(event_time);
    if columns.len() == projection.len() {
        return Ok(Arc::new(scan));
    }
    let schema = scan.schema();
    let wanted = (0..projection.len()).map(|index| {
        let name = schema.field(index).name();
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(name, index));
        (column, name.clone())
    });
    Ok(Arc::new(ProjectionExec::try_new(wanted, Arc::new(scan))?))
}

#[async_trait]
impl TableProvider for Table {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(match &self.table.source {
            Some(source) => source.pushdown(filters),
            None => vec![TableProviderFilterPushDown::Unsupported; filters.len()],
        })
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if self.is_open() {
            return Err(self.absent().await.into());
        }
        let Some(source) = &self.table.source else {
            return Err(Error::invalid(format!(
                "table {} cannot be read: {} is only a sink",
                self.name, self.connector
            ))
            .into());
        };
        let scope = scope(&self.name, state)?;
        let all: Vec<usize>;
        let projection = match projection {
            Some(projection) => projection,
            None => {
                all = (0..self.schema.fields().len()).collect();
                &all
            }
        };
        if self.unbounded
            && let Some(stream) = source.stream()
        {
            return scan_stream(self.connector, &self.name, stream, projection);
        }
        let request = ScanRequest {
            projection,
            filters,
            limit,
            target_splits: scope.slots().max(1) * settings(state.config_options()).splits_per_slot,
            scope: &scope,
        };
        let planned = source
            .plan(request)
            .await
            .map_err(|e| e.context(format!("table {}", self.name)))?;
        let partitions = planned
            .splits
            .into_iter()
            .map(|split| Arc::from([split]) as Arc<[Split]>)
            .collect();
        Ok(Arc::new(ScanExec::new(
            self.connector,
            self.name.clone(),
            planned.reader,
            partitions,
        )))
    }

    async fn insert_into(
        &self,
        state: &dyn Session,
        input: Arc<dyn ExecutionPlan>,
        insert_op: InsertOp,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(sink) = &self.table.sink else {
            let unbounded = if self.unbounded {
                "an UNBOUNDED table of "
            } else {
                ""
            };
            return Err(Error::invalid(format!(
                "table {} cannot be written: {unbounded}{} is only a source",
                self.name, self.connector
            ))
            .into());
        };
        insert(&self.name, self.connector, sink, state, input, insert_op).await
    }
}

/// What a declaration says of one of its locations, variables filled in.
///
/// # Errors
/// A variable that is not set.
pub fn spec(command: &CreateExternalTable, location: &str) -> Result<TableSpec, Error> {
    let name = command.name.table().to_owned();
    let declared: SchemaRef = Arc::clone(command.schema.inner());
    let primary_key = command
        .constraints
        .iter()
        .filter_map(|constraint| match constraint {
            Constraint::PrimaryKey(columns) => Some(columns),
            Constraint::Unique(_) => None,
        })
        .flatten()
        .map(|index| declared.field(*index).name().clone())
        .collect();
    let mut options = Options::new(&name, &command.options)?;
    Ok(TableSpec {
        schema: (!declared.fields().is_empty()).then_some(declared),
        location: options.fill(location)?,
        options,
        primary_key,
        unbounded: command.unbounded,
        name,
    })
}

/// An error that names its table. What comes from the table's options does so already.
pub(crate) fn of_table(name: &str, error: Error) -> Error {
    let place = format!("table {name}");
    if error.to_string().starts_with(&place) {
        error
    } else {
        error.context(place)
    }
}

/// Makes tables of one connector.
#[derive(Debug)]
pub struct TableFactory(pub Arc<dyn Connector>);

#[async_trait]
impl TableProviderFactory for TableFactory {
    async fn create(
        &self,
        _state: &dyn Session,
        command: &CreateExternalTable,
    ) -> Result<Arc<dyn TableProvider>> {
        let name = command.name.table().to_owned();
        let named = |error: Error| of_table(&name, error);
        let [location] = command.locations.as_slice() else {
            return Err(named(Error::invalid("LOCATION takes one text")).into());
        };
        let spec = spec(command, location).map_err(named)?;
        let table = self.0.table(spec).await.map_err(named)?;
        let is_stream = table.source.as_ref().is_some_and(|s| s.stream().is_some());
        if command.unbounded && !is_stream {
            return Err(named(Error::invalid(format!(
                "{} cannot be read continuously: leave the word UNBOUNDED out",
                self.0.name()
            )))
            .into());
        }
        let table = Table::new(name, self.0.name(), command.unbounded, table);
        Ok(Arc::new(table.declared_by(command)))
    }
}
