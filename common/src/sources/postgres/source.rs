//! The master's half of the source: columns, filters, the snapshot, the cuts.

use super::catalog::{self, Relation, Shape, TableName};
use super::client::{Database, STATEMENT, quote};
use super::filter;
use super::privileges;
use super::ranges::{Cut, KeyRanges, Range, by_blocks};
use super::reader::Reader;
use super::snapshot::Snapshot;
use super::types::Kind;
use crate::check::Finding;
use crate::connector::{PlannedScan, ScanRequest, Source, Split};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::scan::project_schema;
use crate::sql_types::sql_type;
use arrow::compute::can_cast_types;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A column as it is asked for and as it comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadColumn {
    pub name: String,
    /// The column's own type.
    pub kind: Kind,
    /// What the server turns it into first, if anything.
    pub cast: Option<Kind>,
    /// The type that the scan yields.
    #[serde(skip)]
    yields: Option<DataType>,
}

impl ReadColumn {
    /// A column read as it is declared: as itself, by the server's cast, or by ours afterwards.
    fn new(relation: &Relation, field: &Field) -> Result<Self> {
        let Some(column) = relation.column(field.name()) else {
            let names: Vec<_> = relation.columns.iter().map(|c| c.name.as_str()).collect();
            return Err(Error::invalid(format!(
                "{} has no column {}; it has {}",
                relation.quoted(),
                field.name(),
                names.join(", ")
            )));
        };
        let natural = column.kind.arrow();
        let wanted = field.data_type();
        let cast = match (&column.kind, wanted) {
            (Kind::Other { .. }, _) => Some(Kind::text()),
            (_, wanted) if *wanted == natural => None,
            // By the server: it knows the text of everything, 'infinity' and 'NaN' among it.
            (
                Kind::Text { .. } | Kind::Json | Kind::Jsonb | Kind::Uuid,
                DataType::Utf8 | DataType::LargeUtf8,
            ) => None,
            (_, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => Some(Kind::text()),
            (Kind::Numeric { .. }, DataType::Float64 | DataType::Float32) => Some(Kind::Float8),
            (
                Kind::Numeric { .. },
                DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale),
            ) => Some(Kind::Numeric {
                precision: *precision,
                scale: *scale,
                bounded: false,
            }),
            _ => None,
        };
        let comes = cast.as_ref().unwrap_or(&column.kind).arrow();
        // Arrow would cast a number to the bytes that it has in memory.
        let bytes = wanted.is_binary() && !matches!(column.kind, Kind::Bytea);
        if comes != *wanted && (bytes || !can_cast_types(&comes, wanted)) {
            return Err(Error::invalid(format!(
                "column {} of {} is {}, which cannot be read as {}: declare it {}, or leave the columns out",
                column.name,
                relation.quoted(),
                column.kind.sql(),
                sql_type(wanted),
                sql_type(&comes)
            )));
        }
        Ok(Self {
            name: column.name.clone(),
            kind: column.kind.clone(),
            cast,
            yields: Some(wanted.clone()),
        })
    }

    /// The type that comes over the wire.
    pub fn comes_as(&self) -> &Kind {
        self.cast.as_ref().unwrap_or(&self.kind)
    }

    /// Whether it is read as the type that it has, so that values compare here as there.
    pub fn is_natural(&self) -> bool {
        self.cast.is_none() && self.yields.as_ref() == Some(&self.kind.arrow())
    }

    /// For the select list.
    pub fn sql(&self) -> String {
        match &self.cast {
            // Decimals of any precision come as numerics: the decoder rounds, and names what does not fit.
            None | Some(Kind::Numeric { .. }) => quote(&self.name),
            Some(kind) => format!("{}::{}", quote(&self.name), kind.sql()),
        }
    }

    /// For EXPLAIN: a column that comes as text only because its type is not known here.
    pub fn note(&self) -> Option<String> {
        match &self.kind {
            Kind::Other { sql } => Some(format!("{} ({sql}) as text", self.name)),
            _ => None,
        }
    }
}

/// The columns that a relation has if none are declared.
pub fn natural_schema(relation: &Relation) -> SchemaRef {
    let fields: Vec<Field> = relation
        .columns
        .iter()
        .map(|column| Field::new(&column.name, column.kind.arrow(), !column.not_null))
        .collect();
    Arc::new(Schema::new(fields))
}

/// The columns of `schema` as they are read from `relation`.
///
/// # Errors
/// A column that is not there or has an unfitting type.
pub fn read_columns(relation: &Relation, schema: &SchemaRef) -> Result<Vec<ReadColumn>> {
    schema
        .fields()
        .iter()
        .map(|field| ReadColumn::new(relation, field))
        .collect()
}

/// A table that can be read.
#[derive(Debug)]
pub struct PostgresSource {
    pub database: Database,
    pub name: TableName,
    /// The columns in SQL; `None` as long as the table does not exist and none are declared.
    pub schema: Option<SchemaRef>,
    /// The same as they were when the table was declared, for filters; empty if it did not exist yet.
    pub columns: Vec<ReadColumn>,
    pub keys: Option<KeyRanges>,
    /// For the table's name in errors.
    pub options: Options,
}

#[async_trait]
impl Source for PostgresSource {
    fn pushdown(&self, filters: &[&Expr]) -> Vec<TableProviderFilterPushDown> {
        filters
            .iter()
            .map(|filter| match filter::translate(filter, &self.columns) {
                Some(_) => TableProviderFilterPushDown::Exact,
                None => TableProviderFilterPushDown::Unsupported,
            })
            .collect()
    }

    async fn plan(&self, request: ScanRequest<'_>) -> Result<PlannedScan> {
        let snapshot = Snapshot::of(request.scope, &self.database).await?;
        let (relation, cuts) = {
            let mut client = snapshot.client().await;
            let Some(relation) = catalog::relation(&mut client, &self.name).await? else {
                return Err(Error::invalid(
                    catalog::absent(&mut client, &self.name).await?,
                ));
            };
            if relation.lockable {
                // TRUNCATE and rewrites do not respect snapshots: they wait until the job has read.
                let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", relation.quoted());
                client.run(lock, STATEMENT).await?;
            }
            let cuts = self.cut(&relation, &request, &mut client).await?;
            (relation, cuts)
        };
        let Some(schema) = &self.schema else {
            return Err(Error::internal("a table without columns is read"));
        };
        let schema = project_schema(schema, request.projection)?;
        let all = read_columns(&relation, self.schema.as_ref().unwrap_or(&schema))?;
        let columns = read_columns(&relation, &schema)?;
        let filters = request
            .filters
            .iter()
            .map(|filter| {
                filter::translate(filter, &all).ok_or_else(|| {
                    Error::invalid(format!(
                        "{} has changed since it was declared: {filter} cannot be evaluated by the server any more",
                        relation.quoted()
                    ))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let width: u64 = columns.iter().map(|column| width(&column.kind)).sum();
        let reader = Reader {
            database: self.database.clone(),
            snapshot: snapshot.id().to_owned(),
            relation: relation.quoted(),
            columns,
            filter: (!filters.is_empty()).then(|| filters.join(" AND ")),
            limit: request.limit,
            schema,
        };
        let splits = cuts
            .into_iter()
            .map(|cut| {
                Ok(Split {
                    label: cut.label,
                    payload: serde_json::to_vec(&cut.range)
                        .map_err(|e| Error::internal(e.to_string()))?,
                    partition: String::new(),
                    rows: cut.rows,
                    bytes: cut.rows.map(|rows| rows * width.max(1)),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(PlannedScan {
            reader: Arc::new(reader),
            splits,
        })
    }

    async fn findings(&self, _unbounded: bool) -> Result<Vec<Finding>> {
        let mut client = self.database.connect().await?;
        let Some(relation) = catalog::relation(&mut client, &self.name).await? else {
            // The planner says so, or the job creates it.
            return Ok(Vec::new());
        };
        let columns = self.columns.iter().map(|column| column.name.clone());
        let mut columns: Vec<String> = columns.collect();
        if relation.lockable {
            // LOCK TABLE, which comes first, asks for the privilege on the table as a whole.
            columns.clear();
        }
        let missing = privileges::missing(&mut client, &relation, &["SELECT"], &columns).await?;
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let login = privileges::login(&mut client).await?;
        Ok(vec![Finding::error(
            format!("the login {login} may not SELECT on {}", relation.quoted()),
            format!("GRANT SELECT ON {} TO {login}", relation.quoted()),
        )])
    }
}

impl PostgresSource {
    async fn cut(
        &self,
        relation: &Relation,
        request: &ScanRequest<'_>,
        client: &mut super::client::Client,
    ) -> Result<Vec<Cut>> {
        if let Some(keys) = &self.keys {
            return keys.cut(relation, &self.options);
        }
        let whole = || {
            vec![Cut {
                range: Range {
                    from: relation.quoted(),
                    predicate: None,
                },
                label: relation.table.clone(),
                rows: None,
            }]
        };
        if relation.shape == Shape::Opaque {
            return Ok(whole());
        }
        let leaves = catalog::leaves(client, relation.oid).await?;
        // A partitioned table may have no partitions; and below a table with row-level security its leaves would
        // show more than the table does.
        let alone = relation.shape == Shape::Heap && leaves.len() == 1;
        if leaves.is_empty() || (relation.row_security && !alone) {
            return Ok(whole());
        }
        Ok(by_blocks(&leaves, request.target_splits))
    }
}

/// About how many bytes a value takes, for the planner's choice of what to send to every worker.
fn width(kind: &Kind) -> u64 {
    kind.arrow()
        .primitive_width()
        .map_or(32, |width| width as u64)
}
