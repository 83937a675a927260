//! A connection to the master, and what becomes of errors: one paragraph and an exit code.

use crate::security::{TlsArgs, TokenArgs};
use anyhow::Result;
use essaim_common::net::{Credentials, Link, link};
use essaim_proto::MAX_MESSAGE_BYTES;
use essaim_proto::v1::jobs_client::JobsClient;
use std::error::Error as _;
use std::future::Future;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::Duration;
use tonic::{Code, Response, Status};

/// Where the master listens unless it is told otherwise.
pub const DEFAULT_MASTER: &str = "http://127.0.0.1:7077";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Submitting plans the job, which asks brokers and databases; all else is answered from memory.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The master to talk to.
#[derive(Debug, Clone, clap::Args)]
pub struct MasterAddress {
    /// The master's gRPC address.
    #[arg(long, env = "ESSAIM_MASTER", value_name = "URL", default_value = DEFAULT_MASTER)]
    pub master: String,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    token: TokenArgs,
}

impl MasterAddress {
    /// A master that is trusted as it stands: in this process, or of this process's own.
    pub fn plain(address: &str) -> Self {
        Self {
            master: address.to_owned(),
            tls: TlsArgs::default(),
            token: TokenArgs::default(),
        }
    }
}

/// Why a command ends without success; each has an exit code.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The job or query failed (1).
    Failed(String),
    /// The command line or a file it names is wrong (2).
    Usage(String),
    /// The master cannot be reached (3).
    Unreachable(String),
    /// The master refused the request (4).
    Refused(String),
    /// Ctrl-C (130). The text says what goes on regardless; mostly empty.
    Interrupted(String),
}

impl Failure {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::Refused(_) => 4,
            Self::Interrupted(_) => 130,
        }
    }

    /// The same failure with the place it happened in front.
    pub fn at(mut self, place: &str) -> Self {
        self.text().insert_str(0, &format!("{place}: "));
        self
    }

    /// The same failure with more behind it.
    pub fn with(mut self, more: &str) -> Self {
        self.text().push_str(more);
        self
    }

    fn text(&mut self) -> &mut String {
        let (Self::Failed(text)
        | Self::Usage(text)
        | Self::Unreachable(text)
        | Self::Refused(text)
        | Self::Interrupted(text)) = self;
        text
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(text)
            | Self::Usage(text)
            | Self::Unreachable(text)
            | Self::Refused(text)
            | Self::Interrupted(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Failure {}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let message = match status.message() {
            "" => format!("the master answered {:?} and no reason", status.code()),
            message => message.to_owned(),
        };
        // Only what the transport itself reports has a source: a status that the master sent has none.
        if status.source().is_some() && status.code() != Code::OutOfRange {
            return Self::Unreachable(format!("the connection to the master broke: {message}"));
        }
        match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::Unauthenticated
            | Code::PermissionDenied => Self::Refused(message),
            _ => Self::Failed(message),
        }
    }
}

/// Prints an error as people and scripts want it.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let (exit_code, message) = describe(error);
    if !message.is_empty() {
        eprintln!("error: {message}");
    }
    ExitCode::from(exit_code)
}

fn describe(error: &anyhow::Error) -> (u8, String) {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return (failure.exit_code(), failure.to_string());
    }
    // A stream that breaks off hands over the bare status.
    if let Some(status) = error.downcast_ref::<Status>() {
        let failure = Failure::from(status.clone());
        return (failure.exit_code(), failure.to_string());
    }
    // Whoever reads our output has seen enough (`essaim sql … | head`).
    let pipe_closed = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == ErrorKind::BrokenPipe);
    if pipe_closed {
        return (0, String::new());
    }
    (1, format!("{error:#}"))
}

/// Connects to the master.
///
/// # Errors
/// [`Failure::Usage`] for an address that is none or a certificate or token that is none, [`Failure::Unreachable`] if
/// nobody answers.
pub async fn connect(master: &MasterAddress) -> Result<JobsClient<Link>, Failure> {
    let address = &master.master;
    let url = if address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    let identity = master.tls.identity(&master.token)?;
    let usage = |error: essaim_common::Error| Failure::Usage(error.to_string());
    let credentials = Credentials::of(&identity).map_err(usage)?;
    let endpoint = link::endpoint(&url, &identity, CONNECT_TIMEOUT)
        .map_err(|error| Failure::Usage(format!("the master's address: {error}")))?
        .tcp_keepalive(Some(KEEPALIVE_INTERVAL))
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .user_agent(format!("essaim/{}", essaim_proto::VERSION))
        .map_err(|e| Failure::Usage(e.to_string()))?;
    let channel = endpoint.connect().await.map_err(|error| {
        Failure::Unreachable(format!(
            "no master answers at {url} ({}): start one with `essaim master`, or name another with --master or ESSAIM_MASTER",
            root_cause(&error)
        ))
    })?;
    Ok(JobsClient::new(Link::new(channel, credentials))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// Waits for an answer, at most a minute. The call ends when the wait does.
///
/// # Errors
/// The master's, or [`Failure::Unreachable`] when time is up.
pub async fn answer<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    answer_within(CALL_TIMEOUT, call).await
}

/// Waits for an answer so long and no longer.
///
/// # Errors
/// As for [`answer`].
pub async fn answer_within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(deadline, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Failure::Unreachable(format!(
            "the master has not answered for {} s",
            deadline.as_secs()
        ))),
    }
}

/// Runs a command that Ctrl-C simply ends.
///
/// # Errors
/// The command's, or [`Failure::Interrupted`].
pub async fn interruptible<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = command => done,
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted(String::new()).into()),
    }
}

/// What lies at the bottom of an error.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(status: Status) -> u8 {
        Failure::from(status).exit_code()
    }

    #[test]
    fn each_kind_of_error_has_its_exit_code() {
        assert_eq!(code(Status::invalid_argument("line 1")), 4);
        assert_eq!(code(Status::not_found("no job 7")), 4);
        assert_eq!(code(Status::data_loss("record")), 1);
        assert_eq!(code(Status::resource_exhausted("memory")), 1);
        assert_eq!(code(Status::internal("bug")), 1);
        assert_eq!(Failure::Interrupted(String::new()).exit_code(), 130);
    }

    #[test]
    fn a_broker_out_of_reach_is_not_a_master_out_of_reach() {
        assert_eq!(code(Status::unavailable("broker k:9092 is down")), 1);
        let mut broken = Status::unavailable("tcp connect error");
        broken.set_source(std::sync::Arc::new(std::io::Error::other("refused")));
        assert_eq!(code(broken), 3);
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let error = anyhow::Error::from(std::io::Error::from(ErrorKind::BrokenPipe));
        assert_eq!(describe(&error.context("output")), (0, String::new()));
        assert_eq!(describe(&anyhow::anyhow!("x")), (1, "x".to_owned()));
    }

    #[tokio::test]
    async fn a_refused_connection_says_what_to_do() {
        // Bound and dropped: nobody listens there now.
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let failure = connect(&MasterAddress::plain(&format!("127.0.0.1:{port}")))
            .await
            .unwrap_err();
        assert_eq!(failure.exit_code(), 3);
        let text = failure.to_string();
        assert!(text.contains(&format!("http://127.0.0.1:{port}")), "{text}");
        assert!(
            text.contains("refused") && text.contains("ESSAIM_MASTER"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_a_master_out_of_reach() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move { drop(listener.accept().await) });
        let mut client = connect(&MasterAddress::plain(&address)).await.unwrap();
        server.await.unwrap();
        let list = essaim_proto::v1::ListRequest {
            limit: 1,
            ..Default::default()
        };
        let failure = answer(client.list(list)).await.unwrap_err();
        assert_eq!(failure.exit_code(), 3, "{failure}");
    }

    #[tokio::test]
    async fn an_address_of_another_scheme_is_wrong_usage() {
        let failure = connect(&MasterAddress::plain("kafka://localhost:9092"))
            .await
            .unwrap_err();
        assert_eq!(failure.exit_code(), 2);
    }
}
