//! A worker takes calls only from the master that it registered with last.

use anyhow::Result;
use essaim_common::net::Identity;
use essaim_proto::VERSION;
use essaim_proto::v1::cluster_client::ClusterClient;
use essaim_proto::v1::tasks_client::TasksClient;
use essaim_proto::v1::{DropBroadcastsRequest, RegisterRequest, RunRequest};
use essaim_tests::cluster::Cluster;
use essaim_tests::{SOON, wait_for};
use nix::sys::signal::Signal;
use tonic::{Code, Status};

use crate::guarded::{connect, refusal};

/// What a master hands out to those who register.
async fn secret_of(master: &str) -> Result<String> {
    let mut workers = ClusterClient::new(connect(master, &Identity::default(), "").await?);
    let request = RegisterRequest {
        worker_id: "w-of-the-test".to_owned(),
        address: "http://127.0.0.1:1".to_owned(),
        version: VERSION.to_owned(),
        slots: 1,
        memory_bytes: 1,
        protocol: essaim_proto::PROTOCOL,
    };
    Ok(workers.register(request).await?.into_inner().secret)
}

async fn call(worker: &str, secret: &str) -> Result<Result<(), Status>> {
    let mut tasks = TasksClient::new(connect(worker, &Identity::default(), secret).await?);
    let request = DropBroadcastsRequest { keys: Vec::new() };
    Ok(tasks.drop_broadcasts(request).await.map(drop))
}

#[tokio::test]
async fn an_old_master_that_wakes_up_is_refused_by_the_workers() -> Result<()> {
    let mut cluster = Cluster::start_behind_proxy(1, 2).await?;
    let worker = format!("http://{}", cluster.workers()[0].address);
    let of_old = secret_of(&cluster.url()).await?;
    assert_eq!(of_old.len(), 64, "256 bits in hexadecimal");
    assert!(call(&worker, &of_old).await?.is_ok());
    let none = refusal(call(&worker, "").await?)?;
    assert_eq!(none.code(), Code::Unauthenticated);
    let mut tasks = TasksClient::new(connect(&worker, &Identity::default(), "").await?);
    let run = tasks.run(RunRequest::default()).await.map(drop);
    assert_eq!(refusal(run)?.code(), Code::Unauthenticated);

    cluster.freeze_master()?;
    let old = cluster.take_over().await?;
    let id = cluster.workers()[0].id.clone();
    wait_for("the worker to find the new master", SOON, async || {
        Ok(cluster.registered().await?.contains(&id).then_some(()))
    })
    .await?;
    let of_new = secret_of(&cluster.url()).await?;
    assert_ne!(of_old, of_new);
    assert!(call(&worker, &of_new).await?.is_ok());
    old.signal(Signal::SIGCONT)?;
    let refused = refusal(call(&worker, &of_old).await?)?;
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("its master"), "{refused}");
    Ok(())
}
