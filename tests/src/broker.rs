//! A Kafka broker of one test, which may kill it.

use crate::cluster::Process;
use crate::proxy::Proxy;
use crate::wait_for;
use anyhow::{Context, Result, anyhow, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// A Java process on a busy machine takes its time.
const START: Duration = Duration::from_secs(90);

/// A broker in a process of its own. It has two listeners: one for the test itself, and one that tells its clients to
/// come back by way of a proxy.
#[derive(Debug)]
pub struct PrivateBroker {
    port: u16,
    proxy: Proxy,
    starts: usize,
    process: Option<Process>,
    // Removed last.
    dir: TempDir,
}

impl PrivateBroker {
    /// Makes and starts a broker. It may not answer yet.
    ///
    /// # Errors
    /// Kafka is not installed or does not start.
    pub async fn start() -> Result<Self> {
        let (port, behind, controller) = (free()?, free()?, free()?);
        let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], behind))).await?;
        let proxied = proxy.address().port();
        let dir = tempfile::Builder::new().prefix("essaim-kafka").tempdir()?;
        // A broker that was killed is let in again only when its session has ended: 9 s by default.
        let settings = format!(
            "process.roles=broker,controller\nnode.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\ncontroller.listener.names=CONTROLLER\n\
             listeners=DIRECT://127.0.0.1:{port},PROXIED://127.0.0.1:{behind},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=DIRECT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxied}\n\
             listener.security.protocol.map=DIRECT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             inter.broker.listener.name=DIRECT\n\
             log.dirs={}\noffsets.topic.replication.factor=1\noffsets.topic.num.partitions=2\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=2\n\
             broker.session.timeout.ms=2000\nbroker.heartbeat.interval.ms=250\n",
            dir.path().join("data").display()
        );
        std::fs::write(dir.path().join("server.properties"), settings)?;
        let mut broker = Self {
            port,
            proxy,
            starts: 0,
            process: None,
            dir,
        };
        let mut format = broker.java()?;
        format
            .args(["kafka.tools.StorageTool", "format", "-t"])
            .args(["ZXNzYWltLXRlc3QtMDAwMQ", "-c"])
            .arg(broker.settings());
        let formatted = tokio::task::spawn_blocking(move || format.output()).await??;
        ensure!(formatted.status.success(), "{formatted:?}");
        broker.restart()?;
        Ok(broker)
    }

    /// Where the test itself connects.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What stands before clients that connect to [`Proxy::address`].
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// Where it keeps its data and its log.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Leaves its folder when it is dropped.
    pub fn keep_dir(&mut self) {
        self.dir.disable_cleanup(true);
    }

    /// Kills it with SIGKILL, if it runs.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Kills it with SIGKILL, if it runs, and starts it again. It may not answer yet.
    ///
    /// # Errors
    /// Java is not installed.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        let mut command = self.java()?;
        command.arg("kafka.Kafka").arg(self.settings());
        self.starts += 1;
        let name = format!("kafka-{}", self.starts);
        self.process = Some(Process::spawn(&name, command, self.dir.path())?);
        Ok(())
    }

    /// Creates a topic, as soon as the broker answers.
    ///
    /// # Errors
    /// It does not; it refuses.
    pub async fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", self.address())
            .create()?;
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let options = AdminOptions::new().operation_timeout(Some(START));
        wait_for(
            &format!("the private broker to create {name}"),
            START,
            async || {
                let created = admin.create_topics([&topic], &options).await?;
                match created.into_iter().next() {
                    Some(Ok(_)) => Ok(Some(())),
                    other => Err(anyhow!("{other:?}")),
                }
            },
        )
        .await
    }

    fn settings(&self) -> PathBuf {
        self.dir.path().join("server.properties")
    }

    fn java(&self) -> Result<Command> {
        let cache = match std::env::var_os("ESSAIM_CACHE") {
            Some(cache) => PathBuf::from(cache),
            None => PathBuf::from(std::env::var_os("HOME").context("no HOME")?)
                .join(".cache")
                .join("essaim"),
        };
        let libs = std::fs::read_dir(cache.join("kafka"))
            .context("Kafka is not installed: run scripts/setup")?
            .flatten()
            .map(|version| version.path().join("libs"))
            .find(|libs| libs.join(".complete").exists())
            .context("Kafka is not installed: run scripts/setup")?;
        let log = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../scripts/kafka-log.properties"
        );
        let mut java = Command::new("java");
        // The quick compiler alone: it is killed long before the thorough one pays.
        java.args(["-Xmx384m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
            .arg(format!("-Dlog4j2.configurationFile={log}"))
            .arg("-cp")
            .arg(libs.join("*"))
            .current_dir(self.dir.path());
        Ok(java)
    }
}

fn free() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}
