//! A query's plan as people see it: nodes, and edges that point the way rows flow.

use essaim_proto::v1;
use serde::{Deserialize, Serialize};

/// Nodes of a plan that are kept; the rest of a larger one is not shown.
pub(crate) const MAX_PLAN_NODES: usize = 500;

/// Where a node runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    #[default]
    Master,
    /// In the tasks of a stage.
    Stage(u32),
    /// In one distributed plan over all workers.
    Exchange,
}

impl Place {
    /// `master`, `stage 3` or `exchange`.
    pub fn show(self) -> String {
        match self {
            Self::Master => "master".to_owned(),
            Self::Stage(stage) => format!("stage {stage}"),
            Self::Exchange => "exchange".to_owned(),
        }
    }
}

/// A plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRecord {
    pub nodes: Vec<PlanNode>,
    pub edges: Vec<PlanEdge>,
}

/// A node of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanNode {
    /// Unique in the plan.
    pub id: u32,
    /// The operator, e.g. `AggregateExec`.
    pub name: String,
    /// Its expressions, columns and the like, without passwords.
    pub detail: String,
    pub place: Place,
    /// Rows that it has yielded; `None` if that is not known.
    pub rows: Option<u64>,
    /// The position among the nodes of its place, counted from the root down, left to right.
    #[serde(skip)]
    pub(crate) position: usize,
}

/// Rows flow from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanEdge {
    pub from: u32,
    pub to: u32,
}

impl PlanRecord {
    /// Counts rows that the nodes of one place have yielded, by position; `None` for those that do not count them.
    pub(crate) fn add_rows(&mut self, place: Place, rows: &[Option<u64>]) {
        for node in self.nodes.iter_mut().filter(|node| node.place == place) {
            if let Some(Some(yielded)) = rows.get(node.position) {
                *node.rows.get_or_insert(0) += yielded;
            }
        }
    }

    pub(crate) fn to_proto(&self) -> v1::Plan {
        v1::Plan {
            operators: self
                .nodes
                .iter()
                .map(|node| v1::PlanOperator {
                    id: node.id,
                    name: node.name.clone(),
                    detail: node.detail.clone(),
                    place: node.place.show(),
                    rows: node.rows,
                })
                .collect(),
            edges: self
                .edges
                .iter()
                .map(|edge| v1::PlanEdge {
                    from: edge.from,
                    to: edge.to,
                })
                .collect(),
        }
    }
}
