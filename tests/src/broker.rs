//! A Kafka broker of one test, which may kill it.

use crate::certificates::Certificates;
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
    secured: Option<Secured>,
    proxy: Proxy,
    starts: usize,
    process: Option<Process>,
    // Removed last.
    dir: TempDir,
}

/// The password of the user `app` at a secured broker, by every mechanism.
pub const PASSWORD: &str = "app-secret";

/// The ports at which a broker asks who is there.
#[derive(Debug, Clone, Copy)]
pub struct Secured {
    /// TLS, and a login by PLAIN or SCRAM.
    pub sasl: u16,
    /// TLS with a certificate of the client's.
    pub mutual: u16,
}

impl Secured {
    /// Two listeners more, by names that the settings before end with.
    fn settings(self, listeners: &str, certificates: &Certificates) -> Result<String> {
        let Self { sasl, mutual } = self;
        // A PEM keystore is one file.
        let both = certificates.dir().join("server-keystore.pem");
        let mut pem = std::fs::read(certificates.key("server"))?;
        pem.extend(std::fs::read(certificates.certificate("server"))?);
        std::fs::write(&both, pem)?;
        let more = format!("SECURED://127.0.0.1:{sasl},MUTUAL://127.0.0.1:{mutual}");
        let listeners = listeners
            .replace(",CONTROLLER://", &format!(",{more},CONTROLLER://"))
            .replace(
                "\nlistener.security",
                &format!(",{more}\nlistener.security"),
            )
            .replace(
                ",CONTROLLER:PLAINTEXT",
                ",CONTROLLER:PLAINTEXT,SECURED:SASL_SSL,MUTUAL:SSL",
            );
        let login = "org.apache.kafka.common.security";
        Ok(format!(
            "{listeners}sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
             listener.name.secured.plain.sasl.jaas.config={login}.plain.PlainLoginModule required user_app=\"{PASSWORD}\";\n\
             listener.name.secured.scram-sha-256.sasl.jaas.config={login}.scram.ScramLoginModule required;\n\
             listener.name.secured.scram-sha-512.sasl.jaas.config={login}.scram.ScramLoginModule required;\n\
             listener.name.mutual.ssl.client.auth=required\n\
             ssl.keystore.type=PEM\nssl.keystore.location={}\nssl.truststore.type=PEM\nssl.truststore.location={}\n",
            both.display(),
            certificates.certificate("ca").display()
        ))
    }
}

impl PrivateBroker {
    /// Makes and starts a broker. It may not answer yet.
    ///
    /// # Errors
    /// Kafka is not installed or does not start.
    pub async fn start() -> Result<Self> {
        Self::start_with(None).await
    }

    /// The same with listeners more that ask who is there.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_secured(certificates: &Certificates) -> Result<Self> {
        Self::start_with(Some(certificates)).await
    }

    async fn start_with(certificates: Option<&Certificates>) -> Result<Self> {
        let (port, behind, controller) = (free()?, free()?, free()?);
        let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], behind))).await?;
        let proxied = proxy.address().port();
        let dir = tempfile::Builder::new().prefix("essaim-kafka").tempdir()?;
        // A broker that was killed is let in again only when its session has ended: 9 s by default.
        let mut settings = format!(
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
        let mut secured = None;
        if let Some(certificates) = certificates {
            let (sasl, mutual) = (free()?, free()?);
            let ports = secured.insert(Secured { sasl, mutual });
            settings = ports.settings(&settings, certificates)?;
        }
        std::fs::write(dir.path().join("server.properties"), settings)?;
        let mut broker = Self {
            port,
            secured,
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
        if secured.is_some() {
            for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
                let login = format!("{mechanism}=[name=app,password={PASSWORD}]");
                format.args(["--add-scram", &login]);
            }
        }
        let formatted = tokio::task::spawn_blocking(move || format.output()).await??;
        ensure!(formatted.status.success(), "{formatted:?}");
        broker.restart()?;
        Ok(broker)
    }

    /// Where the test itself connects.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The ports at which it asks who is there.
    ///
    /// # Errors
    /// It was not started so.
    pub fn secured(&self) -> Result<Secured> {
        self.secured.context("the broker has no secured listeners")
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
