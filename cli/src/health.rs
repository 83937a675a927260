//! `essaim health`: whether a server on this machine serves, for the health check of a container.

use crate::client::{DEFAULT_MASTER, Failure, root_cause};
use crate::security::{TlsArgs, TokenArgs};
use anyhow::{Result, bail};
use essaim_common::net::{Identity, link};
use std::error::Error as _;
use std::time::Duration;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Where a worker listens unless it is told otherwise.
const DEFAULT_WORKER: &str = "http://127.0.0.1:7078";
/// For one server, from the connection to the answer: several of them fit into a container's usual 5 s.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub struct HealthArgs {
    /// The gRPC addresses to ask: it is enough that one of them serves.
    #[arg(value_name = "URL", default_values = [DEFAULT_MASTER, DEFAULT_WORKER])]
    servers: Vec<String>,
    #[command(flatten)]
    tls: TlsArgs,
}

/// Asks one server after the other until one serves.
///
/// # Errors
/// [`Failure::Failed`], exit code 1, with what each of them said; certificates that cannot be read.
pub async fn health(args: HealthArgs) -> Result<()> {
    // Health is asked for without a token.
    let identity = args.tls.identity(&TokenArgs::default())?;
    let mut said = Vec::with_capacity(args.servers.len());
    for server in args.servers {
        match tokio::time::timeout(PATIENCE, ask(&server, &identity)).await {
            Ok(Ok(ServingStatus::Serving)) => return Ok(()),
            Ok(Ok(status)) => said.push(format!("{server} answers {}", status.as_str_name())),
            Ok(Err(error)) => said.push(format!("{server} does not serve ({error:#})")),
            Err(_) => said.push(format!("{server} has not answered for {PATIENCE:?}")),
        }
    }
    Err(Failure::Failed(said.join("; ")).into())
}

async fn ask(server: &str, identity: &Identity) -> Result<ServingStatus> {
    let channel = link::endpoint(server, identity, PATIENCE)?
        .connect()
        .await?;
    let answer = HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await;
    match answer {
        Ok(answer) => Ok(answer.into_inner().status()),
        // Only what the transport itself reports has a source.
        Err(status) if status.source().is_some() => bail!(
            "it takes connections but does not speak gRPC, {}: name the address of --listen, not that of --http",
            root_cause(&status)
        ),
        Err(status) => bail!("{:?}: {}", status.code(), status.message()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tonic::transport::Server;
    use tonic::transport::server::TcpIncoming;

    async fn server(status: tonic_health::ServingStatus) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (health, service) = tonic_health::server::health_reporter();
        health.set_service_status("", status).await;
        tokio::spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpIncoming::from(listener)),
        );
        url
    }

    /// Bound and dropped: nobody listens there now.
    async fn nobody() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    }

    async fn ask_all(servers: Vec<String>) -> Result<()> {
        let tls = TlsArgs::default();
        health(HealthArgs { servers, tls }).await
    }

    #[tokio::test]
    async fn one_server_that_serves_is_enough() {
        let servers = vec![
            nobody().await,
            server(tonic_health::ServingStatus::Serving).await,
        ];
        ask_all(servers).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_is_away_or_does_not_serve_is_named() {
        let away = nobody().await;
        let stopping = server(tonic_health::ServingStatus::NotServing).await;
        let servers = vec![away.clone(), stopping.clone()];
        let error = ask_all(servers).await.unwrap_err();
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert_eq!(failure.exit_code(), 1);
        let text = failure.to_string();
        assert!(text.contains(&format!("{away} does not serve")), "{text}");
        assert!(
            text.contains(&format!("{stopping} answers NOT_SERVING")),
            "{text}"
        );
    }

    #[tokio::test]
    async fn an_http_port_is_told_from_a_server_that_is_away() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // HTTP/1.1, as the status pages speak it.
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            }
        });
        let text = ask_all(vec![url.clone()]).await.unwrap_err().to_string();
        assert!(text.contains(&url) && text.contains("--http"), "{text}");
        assert!(!text.contains("source:"), "{text}");
    }
}
