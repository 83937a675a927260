//! Lets go of exchanges that have ended.

use datafusion_distributed::{ExecuteTaskRequest, ProducerHead, TaskKey, Worker};
use std::time::Duration;

/// How often.
const PERIOD: Duration = Duration::from_millis(500);
/// How long the look may take: what it waits for never comes.
const LOOK: Duration = Duration::from_millis(5);

/// Runs until dropped.
///
/// datafusion-distributed keeps the plans of a worker in a cache, and takes one out when its query ends, for whatever
/// reason. But that cache drops what was taken out only when it is used again, at the earliest 300 ms later. Until then
/// the plan of a cancelled query goes on computing for nobody: its repartitions own the tasks that feed them. So the
/// cache is used, by asking for a task that there is not.
pub(crate) async fn forget_ended(worker: Worker) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let nothing = ExecuteTaskRequest {
            task_key: TaskKey {
                query_id: uuid::Uuid::nil(),
                stage_id: 0,
                task_number: 0,
            },
            target_partition_start: 0,
            target_partition_end: 0,
            producer_head: ProducerHead::None,
        };
        // Either way nothing comes of it.
        let _ = tokio::time::timeout(LOOK, worker.execute_task(nothing)).await;
    }
}
