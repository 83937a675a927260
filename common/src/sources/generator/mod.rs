//! `STORED AS GENERATOR`: the numbers from 0 up, made by the workers themselves, for trying and for load.

use crate::connector::{
    Connector, ConnectorTable, PlannedScan, ScanRequest, Source, Split, SplitReader, TableSpec,
};
use crate::error::{Error, Result};
use crate::scan::{ScanMetrics, project_schema};
use arrow::array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The connector.
#[derive(Debug)]
pub struct Generator;

#[async_trait]
impl Connector for Generator {
    fn name(&self) -> &'static str {
        "GENERATOR"
    }

    async fn table(&self, mut spec: TableSpec) -> Result<ConnectorTable> {
        if spec.schema.is_some() {
            return Err(spec.options.error(
                "a generator has one column, value BIGINT: leave the columns out and compute others from it",
            ));
        }
        let rows = spec.options.required("number_of_rows")?;
        let rows = rows.parse().map_err(|_| {
            spec.options
                .error(format!("option number_of_rows '{rows}' is no number"))
        })?;
        spec.options.finish()?;
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new(
            "value",
            DataType::Int64,
            false,
        )]));
        Ok(ConnectorTable {
            schema: Some(Arc::clone(&schema)),
            source: Some(Arc::new(Numbers { rows, schema })),
            sink: None,
        })
    }

    fn reader(&self, _encoded: &[u8], schema: SchemaRef) -> Result<Arc<dyn SplitReader>> {
        Ok(Arc::new(NumberReader { schema }))
    }
}

/// The numbers from 0 to `rows`, exclusive.
#[derive(Debug)]
struct Numbers {
    rows: u64,
    schema: SchemaRef,
}

#[derive(Debug, Serialize, Deserialize)]
struct Range {
    start: u64,
    end: u64,
}

#[async_trait]
impl Source for Numbers {
    async fn plan(&self, request: ScanRequest<'_>) -> Result<PlannedScan> {
        let schema = project_schema(&self.schema, request.projection)?;
        let rows = request
            .limit
            .map_or(self.rows, |limit| self.rows.min(limit as u64));
        let pieces = (request.target_splits as u64).clamp(1, rows.max(1));
        let splits = (0..pieces)
            .map(|piece| {
                let at =
                    |piece: u64| (u128::from(rows) * u128::from(piece) / u128::from(pieces)) as u64;
                let range = Range {
                    start: at(piece),
                    end: at(piece + 1),
                };
                let count = range.end - range.start;
                Ok(Split {
                    label: format!("{}..{}", range.start, range.end),
                    payload: serde_json::to_vec(&range)
                        .map_err(|e| Error::internal(e.to_string()))?,
                    partition: String::new(),
                    rows: Some(count),
                    bytes: Some(count * 8),
                })
            })
            .collect::<Result<_>>()?;
        Ok(PlannedScan {
            reader: Arc::new(NumberReader { schema }),
            splits,
        })
    }
}

#[derive(Debug)]
struct NumberReader {
    schema: SchemaRef,
}

impl SplitReader for NumberReader {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn encode(&self) -> Vec<u8> {
        Vec::new()
    }

    fn describe(&self) -> String {
        "numbers".to_owned()
    }

    fn read(
        &self,
        split: &Split,
        partition: usize,
        ctx: &Arc<TaskContext>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<SendableRecordBatchStream> {
        let range: Range = serde_json::from_slice(&split.payload)
            .map_err(|e| Error::internal(format!("a split of another version: {e}")))?;
        let batch_size = ctx.session_config().batch_size() as u64;
        let counts = ScanMetrics::new(metrics, partition);
        let schema = Arc::clone(&self.schema);
        let batches = (range.start..range.end)
            .step_by(batch_size as usize)
            .map(move |start| {
                let end = range.end.min(start + batch_size);
                let rows = (end - start) as usize;
                counts.rows_in.add(rows);
                counts.bytes_in.add(rows * 8);
                let columns = schema
                    .fields()
                    .iter()
                    .map(|_| {
                        Arc::new(Int64Array::from_iter_values(start as i64..end as i64)) as ArrayRef
                    })
                    .collect();
                let options = RecordBatchOptions::new().with_row_count(Some(rows));
                Ok(RecordBatch::try_new_with_options(
                    Arc::clone(&schema),
                    columns,
                    &options,
                )?)
            });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            futures::stream::iter(batches),
        )))
    }
}
