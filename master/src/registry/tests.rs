//! Who gets in, who gets a slot, and who leaves.

use super::*;
use essaim_common::net::{ClusterSecret, Identity};

/// A registry that nobody is in.
pub(crate) fn empty() -> Arc<Registry> {
    let secret = ClusterSecret::generate().unwrap();
    let peers = Peers::new(&Identity::default(), secret).unwrap();
    Arc::new(Registry::new(Arc::default(), peers))
}

fn request(id: &str, slots: u32) -> RegisterRequest {
    RegisterRequest {
        worker_id: id.to_owned(),
        address: "http://127.0.0.1:1".to_owned(),
        version: VERSION.to_string(),
        slots,
        memory_bytes: 0,
        protocol: PROTOCOL,
    }
}

fn wanted(job: &str, avoid: &[&str]) -> Wanted {
    Wanted {
        job: job.to_owned(),
        streaming: false,
        limit: usize::MAX,
        place: Place::Avoiding(avoid.iter().map(|id| (*id).to_owned()).collect()),
    }
}

fn registry(workers: &[(&str, u32)]) -> Arc<Registry> {
    let registry = empty();
    for (id, slots) in workers {
        registry.register(request(id, *slots)).unwrap();
    }
    registry
}

#[tokio::test]
async fn a_worker_to_avoid_is_used_only_if_there_is_no_other() {
    let pair = registry(&[("a", 1), ("b", 1)]);
    let slot = pair.slot(wanted("j", &["a"])).await.unwrap();
    assert_eq!(slot.worker(), "b");
    let alone = registry(&[("a", 1)]);
    let slot = alone.slot(wanted("j", &["a"])).await.unwrap();
    assert_eq!(slot.worker(), "a");
}

#[tokio::test]
async fn a_waiter_that_gave_up_takes_no_slot() {
    let registry = registry(&[("w", 1)]);
    let held = registry.slot(wanted("a", &[])).await.unwrap();
    drop(tokio::time::timeout(Duration::from_millis(1), registry.slot(wanted("a", &[]))).await);
    drop(held);
    let again = registry.slot(wanted("a", &[])).await.unwrap();
    assert_eq!(registry.workers()[0].slots_used, 1);
    drop(again);
    assert_eq!(registry.workers()[0].slots_used, 0);
}

#[tokio::test]
async fn who_avoids_one_worker_goes_there_when_the_other_has_gone() {
    let registry = registry(&[("a", 1), ("b", 1)]);
    let held = registry.slot(wanted("j", &["a"])).await.unwrap();
    let waits = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move { registry.slot(wanted("j", &["a"])).await }
    });
    while registry.state.lock().shares.waiting(|_| true) == 0 {
        tokio::task::yield_now().await;
    }
    registry.lose("b", "test");
    assert_eq!(waits.await.unwrap().unwrap().worker(), "a");
    drop(held);
}

#[tokio::test]
async fn a_draining_worker_hears_how_many_tasks_it_has_left() {
    let registry = registry(&[("a", 2)]);
    let held = registry.slot(wanted("j", &[])).await.unwrap();
    let draining = HeartbeatRequest {
        worker_id: "a".to_owned(),
        draining: true,
        ..HeartbeatRequest::default()
    };
    assert_eq!(registry.heartbeat(&draining), Some(1));
    assert_eq!(registry.slots(), 0);
    drop(held);
    assert_eq!(registry.heartbeat(&draining), Some(0));
    registry.lose("a", "test");
    assert_eq!(registry.heartbeat(&draining), None);
}

#[tokio::test]
async fn an_exchange_gathers_a_slot_of_each_worker_that_stays() {
    let registry = registry(&[("a", 1), ("b", 1), ("c", 1)]);
    let held = registry.slot(wanted("j", &["a", "c"])).await.unwrap();
    assert_eq!(held.worker(), "b");
    let gathered = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move { registry.gather("x", 3).await.unwrap() }
    });
    while registry.state.lock().shares.waiting(|_| true) == 0 {
        tokio::task::yield_now().await;
    }
    registry.lose("b", "test");
    let gathered = gathered.await.unwrap();
    let workers: Vec<&str> = gathered.iter().map(Slot::worker).collect();
    assert_eq!(workers, ["a", "c"]);
    drop((gathered, held));
    assert_eq!(registry.gather("y", 1).await.unwrap().len(), 1);
}

#[tokio::test]
async fn another_version_is_welcome_and_another_protocol_refused_by_name() {
    let registry = empty();
    let newer = RegisterRequest {
        version: "9.9.9".to_owned(),
        ..request("w", 1)
    };
    registry.register(newer.clone()).unwrap();
    assert_eq!(registry.workers()[0].version, "9.9.9");
    for protocol in [0, PROTOCOL + 1] {
        let other = RegisterRequest {
            protocol,
            ..newer.clone()
        };
        let error = registry.register(other).unwrap_err().to_string();
        for part in ["9.9.9", VERSION.as_str(), &format!("protocol {protocol},")] {
            assert!(error.contains(part), "{error}");
        }
    }
}
