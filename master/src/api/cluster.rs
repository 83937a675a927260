//! The gRPC service that workers call.

use crate::registry::{HEARTBEAT, LEASE, Registry};
use essaim_proto::v1::cluster_server::Cluster;
use essaim_proto::v1::{
    HeartbeatRequest, HeartbeatResponse, LeaveRequest, LeaveResponse, RegisterRequest,
    RegisterResponse,
};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// `essaim.v1.Cluster`.
#[derive(Debug)]
pub struct ClusterService(pub Arc<Registry>);

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        self.0
            .register(request.into_inner())
            .map_err(|e| Status::failed_precondition(e.to_string()))?;
        Ok(Response::new(RegisterResponse {
            heartbeat_ms: HEARTBEAT.as_millis() as u64,
            lease_ms: LEASE.as_millis() as u64,
            version: essaim_proto::VERSION.to_string(),
            secret: self
                .0
                .peers()
                .secret()
                .current()
                .map_or_else(String::new, |secret| secret.expose().to_owned()),
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let request = request.into_inner();
        let tasks = self.0.heartbeat(&request).ok_or_else(|| {
            Status::not_found(format!(
                "worker {} has no lease: register",
                request.worker_id
            ))
        })?;
        Ok(Response::new(HeartbeatResponse {
            slots_used: tasks as u32,
        }))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        self.0.leave(&request.into_inner().worker_id);
        Ok(Response::new(LeaveResponse {}))
    }
}
