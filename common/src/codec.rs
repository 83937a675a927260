//! How Essaim's own nodes travel inside a DataFusion plan.

use crate::broadcast::BroadcastExec;
use crate::connector::Split;
use crate::error::Error;
use crate::ipc;
use crate::late::{LateFilterExec, Until};
use crate::outputs::{OutputsExec, SharedInputExec};
use crate::scan::ScanExec;
use crate::session::connector;
use crate::sink::SinkWriteExec;
use crate::windows::expand::WindowExpandExec;
use crate::windows::session::{SessionColumns, SessionMergeExec};
use datafusion::common::{Result, internal_datafusion_err, internal_err};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use essaim_proto::v1::{
    BroadcastNode, LateFilterNode, OutputsNode, PlanNode, ScanNode, SessionMergeNode,
    SharedInputNode, SinkWriteNode, SplitGroup, SplitNode, WindowExpandNode, late_filter_node,
    plan_node::Node,
};
use prost::Message;
use std::sync::Arc;

/// Encodes the nodes of [`crate::scan`], [`crate::sink`], [`crate::broadcast`], [`crate::outputs`], [`crate::late`] and
/// [`crate::windows`].
#[derive(Debug)]
pub struct EssaimCodec;

impl PhysicalExtensionCodec for EssaimCodec {
    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buf: &mut Vec<u8>,
        _proto_converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let node = if let Some(scan) = node.downcast_ref::<ScanExec>() {
            Node::Scan(encode_scan(scan)?)
        } else if let Some(write) = node.downcast_ref::<SinkWriteExec>() {
            Node::SinkWrite(SinkWriteNode {
                connector: write.connector().to_owned(),
                writer: write.writer().encode().into(),
                table: write.table().to_owned(),
            })
        } else if let Some(broadcast) = node.downcast_ref::<BroadcastExec>() {
            Node::Broadcast(BroadcastNode {
                key: broadcast.key().to_owned(),
                schema: ipc::encode_schema(&broadcast.schema())?.into(),
            })
        } else if node.is::<OutputsExec>() {
            Node::Outputs(OutputsNode {})
        } else if node.is::<SharedInputExec>() {
            Node::SharedInput(SharedInputNode {
                schema: ipc::encode_schema(&node.schema())?.into(),
            })
        } else if let Some(filter) = node.downcast_ref::<LateFilterExec>() {
            Node::LateFilter(LateFilterNode {
                query: filter.query(),
                column: filter.column() as u32,
                until: Some(match filter.until() {
                    Until::Window(window) => late_filter_node::Until::Window(window.into()),
                    Until::Allowance(ms) => late_filter_node::Until::AllowanceMs(ms),
                }),
            })
        } else if let Some(expand) = node.downcast_ref::<WindowExpandExec>() {
            Node::WindowExpand(WindowExpandNode {
                column: expand.column() as u32,
                window: Some(expand.window().into()),
            })
        } else if let Some(merge) = node.downcast_ref::<SessionMergeExec>() {
            let SessionColumns { start, end, keys } = merge.columns();
            Node::SessionMerge(SessionMergeNode {
                start: *start as u32,
                end: *end as u32,
                keys: keys.iter().map(|key| *key as u32).collect(),
            })
        } else {
            return internal_err!("{} cannot be sent to a worker", node.name());
        };
        PlanNode { node: Some(node) }
            .encode(buf)
            .map_err(|e| internal_datafusion_err!("a plan node does not encode: {e}"))
    }

    fn try_decode(
        &self,
        buf: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        _ctx: &TaskContext,
        _proto_converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let node = PlanNode::decode(buf)
            .map_err(|e| internal_datafusion_err!("a plan node does not decode: {e}"))?;
        match (node.node, inputs) {
            (Some(Node::Scan(scan)), []) => Ok(Arc::new(decode_scan(scan)?)),
            (Some(Node::SinkWrite(write)), [input]) => {
                let connector = connector(&write.connector)?;
                let writer = connector.writer(&write.writer)?;
                Ok(Arc::new(SinkWriteExec::new(
                    connector.name(),
                    write.table,
                    writer,
                    Arc::clone(input),
                )))
            }
            (Some(Node::Broadcast(broadcast)), []) => Ok(Arc::new(BroadcastExec::new(
                broadcast.key,
                ipc::decode_schema(&broadcast.schema)?,
            ))),
            (Some(Node::Outputs(OutputsNode {})), [input, outputs @ ..]) => Ok(Arc::new(
                OutputsExec::new(Arc::clone(input), outputs.to_vec()),
            )),
            // A task has one partition.
            (Some(Node::SharedInput(shared)), []) => Ok(Arc::new(SharedInputExec::new(
                ipc::decode_schema(&shared.schema)?,
                1,
            ))),
            (Some(Node::LateFilter(filter)), [input]) => {
                let until = match filter.until {
                    Some(late_filter_node::Until::Window(window)) => {
                        Until::Window(window.try_into()?)
                    }
                    Some(late_filter_node::Until::AllowanceMs(ms)) => Until::Allowance(ms),
                    None => return internal_err!("a late filter without a limit"),
                };
                let (column, input) = (filter.column as usize, Arc::clone(input));
                Ok(Arc::new(LateFilterExec::new(
                    input,
                    filter.query,
                    column,
                    until,
                )))
            }
            (Some(Node::WindowExpand(expand)), [input]) => {
                let window = expand.window.unwrap_or_default().try_into()?;
                let (column, input) = (expand.column as usize, Arc::clone(input));
                Ok(Arc::new(WindowExpandExec::new(column, window, input)))
            }
            (Some(Node::SessionMerge(merge)), [input]) => {
                let columns = SessionColumns {
                    start: merge.start as usize,
                    end: merge.end as usize,
                    keys: merge.keys.into_iter().map(|key| key as usize).collect(),
                };
                Ok(Arc::new(SessionMergeExec::new(columns, Arc::clone(input))))
            }
            _ => Err(Error::internal("a plan node of another version of Essaim").into()),
        }
    }
}

fn encode_scan(scan: &ScanExec) -> Result<ScanNode> {
    let split = |split: &Split| SplitNode {
        label: split.label.clone(),
        payload: split.payload.clone().into(),
        rows: split.rows.map_or(-1, |rows| rows as i64),
        bytes: split.bytes.map_or(-1, |bytes| bytes as i64),
        partition: split.partition.clone(),
    };
    Ok(ScanNode {
        connector: scan.connector().to_owned(),
        reader: scan.reader().encode().into(),
        schema: ipc::encode_schema(&scan.schema())?.into(),
        partitions: scan
            .partitions()
            .iter()
            .map(|group| SplitGroup {
                splits: group.iter().map(split).collect(),
            })
            .collect(),
        table: scan.table().to_owned(),
        event_time: scan.event_time().map_or(-1, |column| column as i32),
    })
}

fn decode_scan(node: ScanNode) -> Result<ScanExec> {
    let connector = connector(&node.connector)?;
    let reader = connector.reader(&node.reader, ipc::decode_schema(&node.schema)?)?;
    let split = |node: SplitNode| Split {
        label: node.label,
        payload: node.payload.into(),
        rows: u64::try_from(node.rows).ok(),
        bytes: u64::try_from(node.bytes).ok(),
        partition: node.partition,
    };
    let partitions = node
        .partitions
        .into_iter()
        .map(|group| group.splits.into_iter().map(split).collect())
        .collect();
    let scan = ScanExec::new(connector.name(), node.table, reader, partitions);
    Ok(scan.with_event_time(usize::try_from(node.event_time).ok()))
}
