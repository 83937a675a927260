//! Which role each RPC and each page asks for. What is not listed here is closed.

use crate::net::tokens::Role;
use http::Method;

/// What a request must bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: probes.
    Nothing,
    /// A token with this role.
    Role(Role),
    /// The cluster's secret.
    Secret,
    /// More than anybody has: an RPC that nobody has thought about.
    Unlisted,
}

/// Every RPC of every service that a master or a worker serves.
const RPCS: &[(&str, Needs)] = &[
    ("/essaim.v1.Jobs/Submit", Needs::Role(Role::Submit)),
    ("/essaim.v1.Jobs/Cancel", Needs::Role(Role::Submit)),
    ("/essaim.v1.Jobs/Stop", Needs::Role(Role::Submit)),
    ("/essaim.v1.Jobs/Query", Needs::Role(Role::Submit)),
    ("/essaim.v1.Jobs/List", Needs::Role(Role::Read)),
    ("/essaim.v1.Jobs/Get", Needs::Role(Role::Read)),
    ("/essaim.v1.Jobs/Epochs", Needs::Role(Role::Read)),
    ("/essaim.v1.Jobs/Watch", Needs::Role(Role::Read)),
    ("/essaim.v1.Cluster/Register", Needs::Role(Role::Worker)),
    ("/essaim.v1.Cluster/Heartbeat", Needs::Role(Role::Worker)),
    ("/essaim.v1.Cluster/Leave", Needs::Role(Role::Worker)),
    ("/essaim.v1.Tasks/Run", Needs::Secret),
    ("/essaim.v1.Tasks/PutBroadcast", Needs::Secret),
    ("/essaim.v1.Tasks/DropBroadcasts", Needs::Secret),
    // datafusion-distributed's, between workers and from the master.
    ("/worker.WorkerService/CoordinatorChannel", Needs::Secret),
    ("/worker.WorkerService/ExecuteTask", Needs::Secret),
    ("/worker.WorkerService/GetWorkerInfo", Needs::Secret),
    // Says whether a process serves and nothing else, to probes that have no token.
    ("/grpc.health.v1.Health/Check", Needs::Nothing),
    ("/grpc.health.v1.Health/List", Needs::Nothing),
    ("/grpc.health.v1.Health/Watch", Needs::Nothing),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Needs::Role(Role::Read),
    ),
];

/// What an RPC needs, by its path `/PACKAGE.SERVICE/METHOD`.
pub fn rpc(path: &str) -> Needs {
    RPCS.iter()
        .find(|(known, _)| *known == path)
        .map_or(Needs::Unlisted, |(_, needs)| *needs)
}

/// What a page needs. Probes are open, and so are the status pages and their files, which hold nothing of the cluster:
/// they ask the API for it and their reader for a token. Whatever else is only read needs the role for it.
pub fn page(method: &Method, path: &str) -> Needs {
    const PAGES: [&str; 3] = ["/jobs/", "/workers/", "/assets/"];
    let reads = method == Method::GET || method == Method::HEAD;
    match path {
        "/healthz" | "/readyz" => Needs::Nothing,
        "/" | "/jobs" | "/workers" if reads => Needs::Nothing,
        _ if reads && PAGES.iter().any(|page| path.starts_with(page)) => Needs::Nothing,
        _ if reads => Needs::Role(Role::Read),
        _ => Needs::Role(Role::Submit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use prost_types::FileDescriptorSet;

    #[test]
    fn every_rpc_of_the_contract_has_been_thought_about() {
        let files = FileDescriptorSet::decode(essaim_proto::v1::FILE_DESCRIPTOR_SET).unwrap();
        let mut rpcs = Vec::new();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    assert_ne!(rpc(&path), Needs::Unlisted, "{path} is not listed in RPCS");
                    rpcs.push(path);
                }
            }
        }
        assert!(rpcs.len() >= 14, "{rpcs:?}");
        // And nothing is listed that is gone.
        for (listed, _) in RPCS.iter().filter(|(path, _)| path.starts_with("/essaim.")) {
            assert!(rpcs.iter().any(|path| path == listed), "{listed} is gone");
        }
    }

    #[test]
    fn what_is_new_is_closed() {
        assert_eq!(rpc("/essaim.v1.Jobs/Drop"), Needs::Unlisted);
        assert_eq!(rpc("/essaim.v1.jobs/List"), Needs::Unlisted);
        assert_eq!(rpc(""), Needs::Unlisted);
    }

    #[test]
    fn what_is_known_of_the_cluster_is_for_readers() {
        let get = |path| page(&Method::GET, path);
        for open in [
            "/healthz",
            "/readyz",
            "/",
            "/jobs",
            "/jobs/7",
            "/assets/app.js",
        ] {
            assert_eq!(get(open), Needs::Nothing, "{open}");
        }
        for read in [
            "/metrics",
            "/api/v1/updates",
            "/api/jobs/",
            "/jobsx",
            "//jobs/",
        ] {
            assert_eq!(get(read), Needs::Role(Role::Read), "{read}");
        }
        assert_eq!(get("/healthz/"), Needs::Role(Role::Read));
        assert_eq!(get("/api/v1/jobs"), Needs::Role(Role::Read));
        assert_eq!(
            page(&Method::POST, "/api/v1/jobs"),
            Needs::Role(Role::Submit)
        );
    }
}
