//! The master's half of the source: filters and the cuts.

use super::client::Database;
use super::filter;
use super::reader::{OnError, Reader};
use super::split;
use crate::check::Finding;
use crate::connector::{PlannedScan, ScanRequest, Source, Split};
use crate::error::{Error, Result};
use crate::scan::project_schema;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use mongodb::bson::Bson;
use std::sync::Arc;

/// A collection that can be read.
#[derive(Debug)]
pub struct MongoSource {
    pub database: Database,
    pub collection: String,
    /// The columns in SQL; `None` as long as the collection is empty and none are declared.
    pub schema: Option<SchemaRef>,
    pub on_error: OnError,
}

#[async_trait]
impl Source for MongoSource {
    fn pushdown(&self, filters: &[&Expr]) -> Vec<TableProviderFilterPushDown> {
        let translate = |filter| filter::translate(filter, self.schema.as_ref()?);
        filters
            .iter()
            .map(|filter| match translate(filter) {
                Some(_) => TableProviderFilterPushDown::Inexact,
                None => TableProviderFilterPushDown::Unsupported,
            })
            .collect()
    }

    async fn plan(&self, request: ScanRequest<'_>) -> Result<PlannedScan> {
        let Some(schema) = &self.schema else {
            return Err(Error::internal("a table without columns is read"));
        };
        let connected = self.database.open().await?;
        let (ranges, rows) =
            split::cut(&connected, &self.collection, request.target_splits).await?;
        let filters = request.filters.iter();
        let filters = filters
            .filter_map(|filter| filter::translate(filter, schema))
            .map(|filter| Bson::Document(filter).into_canonical_extjson())
            .collect();
        let reader = Reader {
            database: self.database.clone(),
            collection: self.collection.clone(),
            filters,
            on_error: self.on_error,
            limit: request.limit,
            schema: project_schema(schema, request.projection)?,
        };
        let count = ranges.len();
        let splits = ranges
            .iter()
            .enumerate()
            .map(|(number, range)| {
                Ok(Split {
                    label: match count {
                        1 => self.collection.clone(),
                        _ => format!("{} {}/{count}", self.collection, number + 1),
                    },
                    payload: serde_json::to_vec(range)
                        .map_err(|e| Error::internal(e.to_string()))?,
                    partition: String::new(),
                    rows,
                    bytes: None,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(PlannedScan {
            reader: Arc::new(reader),
            splits,
        })
    }

    async fn findings(&self, _unbounded: bool) -> Result<Vec<Finding>> {
        let connected = self.database.open().await?;
        if self.schema.is_none() || connected.find_collection(&self.collection).await?.is_some() {
            return Ok(Vec::new());
        }
        Ok(vec![Finding::warning(
            format!(
                "there is no collection {} in {}: it reads as empty",
                self.collection, connected.place
            ),
            "check the option collection and the database in LOCATION",
        )])
    }
}
