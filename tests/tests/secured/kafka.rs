//! A broker that asks who is there: source, sink and streaming sink over TLS with each kind of login, and what is
//! said when something does not fit.

use crate::refused;
use anyhow::Result;
use essaim_tests::broker::{PASSWORD, PrivateBroker};
use essaim_tests::certificates::Certificates;
use essaim_tests::client::Client;
use essaim_tests::cluster::Cluster;
use essaim_tests::sql::integers;
use essaim_tests::unique;
use tonic::Code;

/// A login at the broker's listener for passwords.
fn login(mechanism: &str, ca: &str) -> String {
    format!(
        "'kafka.security.protocol' 'SASL_SSL', 'kafka.sasl.mechanism' '{mechanism}', 'kafka.sasl.username' 'app', \
         'kafka.sasl.password' '${{ESSAIM_VAR_KAFKA}}', 'kafka.ssl.ca.location' '{ca}'"
    )
}

struct Setup {
    broker: PrivateBroker,
    certificates: Certificates,
    client: Client,
    _cluster: Cluster,
}

impl Setup {
    fn table(&self, kind: &str, name: &str, topic: &str, port: u16, options: &str) -> String {
        self.table_at("127.0.0.1", kind, name, topic, port, options)
    }

    fn table_at(
        &self,
        host: &str,
        kind: &str,
        name: &str,
        topic: &str,
        port: u16,
        options: &str,
    ) -> String {
        format!(
            "CREATE {kind} TABLE {name} (n BIGINT) STORED AS KAFKA LOCATION 'kafka://{host}:{port}/{topic}' \
             OPTIONS (format 'json', {options}); "
        )
    }

    fn file(&self, name: &str) -> String {
        self.certificates.certificate(name).display().to_string()
    }

    fn key(&self, name: &str) -> String {
        self.certificates.key(name).display().to_string()
    }
}

#[tokio::test]
async fn kafka_over_tls_and_sasl() -> Result<()> {
    let certificates = Certificates::make()?;
    let broker = PrivateBroker::start_secured(&certificates).await?;
    let cluster = Cluster::start_under(
        1,
        2,
        &[
            ("ESSAIM_VAR_KAFKA", PASSWORD),
            ("KAFKA_WRONG", "wrong-secret"),
        ],
    )
    .await?;
    let setup = Setup {
        client: cluster.client().await?,
        broker,
        certificates,
        _cluster: cluster,
    };
    rows_go_both_ways(&setup).await?;
    a_stream_goes_from_topic_to_topic(&setup).await?;
    what_does_not_fit_is_said_at_once(&setup).await
}

async fn rows_go_both_ways(setup: &Setup) -> Result<()> {
    let ports = setup.broker.secured()?;
    let ca = setup.file("ca");
    let certificate = format!(
        "'kafka.security.protocol' 'ssl', 'kafka.ssl.ca.location' '{ca}', \
         'kafka.ssl.certificate.location' '{}', 'kafka.ssl.key.location' '{}'",
        setup.file("client"),
        setup.key("client")
    );
    let mut kinds: Vec<(u16, String)> = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
        .iter()
        .map(|mechanism| (ports.sasl, login(mechanism, &ca)))
        .collect();
    kinds.push((ports.mutual, certificate));
    for (port, options) in kinds {
        let topic = unique("secured");
        setup.broker.create_topic(&topic, 2).await?;
        let table = setup.table("EXTERNAL", "t", &topic, port, &options);
        let insert =
            format!("{table}INSERT INTO t (n) SELECT column1 FROM (VALUES (1), (2), (39))");
        setup.client.run_job(&insert, &topic).await?;
        let sum = format!("{table}SELECT sum(n) FROM t");
        assert_eq!(
            integers(&setup.client.query(&sum).await?, 0)?,
            [42],
            "{options}"
        );
    }
    Ok(())
}

async fn a_stream_goes_from_topic_to_topic(setup: &Setup) -> Result<()> {
    let port = setup.broker.secured()?.sasl;
    let options = login("SCRAM-SHA-512", &setup.file("ca"));
    let (from, to) = (unique("from"), unique("to"));
    setup.broker.create_topic(&from, 2).await?;
    setup.broker.create_topic(&to, 1).await?;
    let numbers = setup.table("EXTERNAL", "numbers", &from, port, &options);
    let insert =
        format!("{numbers}INSERT INTO numbers (n) SELECT column1 FROM (VALUES (1), (2), (39))");
    setup.client.run_job(&insert, &from).await?;
    let source = setup.table("UNBOUNDED EXTERNAL", "numbers", &from, port, &options);
    let sink = setup.table("EXTERNAL", "copies", &to, port, &options);
    let job = format!(
        "{source}{sink}SET essaim.trigger = 'available_now'; INSERT INTO copies (n) SELECT n * 10 FROM numbers"
    );
    setup.client.run_job(&job, &to).await?;
    let sum = format!("{sink}SELECT sum(n) FROM copies");
    assert_eq!(integers(&setup.client.query(&sum).await?, 0)?, [420]);
    Ok(())
}

async fn what_does_not_fit_is_said_at_once(setup: &Setup) -> Result<()> {
    let ports = setup.broker.secured()?;
    let topic = unique("refused");
    setup.broker.create_topic(&topic, 1).await?;
    let ca = setup.file("ca");
    let good = login("SCRAM-SHA-256", &ca);
    let of = |port, options: &str| setup.table("EXTERNAL", "t", &topic, port, options);
    let untrusted = login("SCRAM-SHA-256", &setup.file("other_ca"));
    let stranger = format!("'kafka.security.protocol' 'ssl', 'kafka.ssl.ca.location' '{ca}'");
    let nobody = format!(
        "'kafka.security.protocol' 'sasl_ssl', 'kafka.sasl.mechanism' 'PLAIN', 'kafka.ssl.ca.location' '{ca}'"
    );
    let cases = [
        (
            of(ports.sasl, &good.replace("ESSAIM_VAR_KAFKA", "KAFKA_WRONG")),
            vec!["refuse the credentials", "kafka.sasl.password"],
        ),
        (
            of(
                ports.sasl,
                &login("PLAIN", &ca).replace("ESSAIM_VAR_KAFKA", "KAFKA_WRONG"),
            ),
            vec!["refuse the credentials", "kafka.sasl.password"],
        ),
        (
            of(ports.sasl, &untrusted),
            vec!["is not trusted", "kafka.ssl.ca.location"],
        ),
        (
            setup.table_at("localhost", "EXTERNAL", "t", &topic, ports.sasl, &good),
            vec!["is not trusted", "as the certificate names them"],
        ),
        (
            // Nobody's certificate has been issued by ours where the system's authorities are asked.
            of(
                ports.sasl,
                &good.replace(&format!(", 'kafka.ssl.ca.location' '{ca}'"), ""),
            ),
            vec!["is not trusted", "kafka.ssl.ca.location"],
        ),
        (
            of(ports.mutual, &stranger),
            vec!["do not accept each other's certificates"],
        ),
        (of(ports.sasl, &nobody), vec!["sasl.username"]),
        (
            of(
                ports.sasl,
                "'kafka.security.protocol' 'SSL', 'kafka.ssl.ca.location' '/no/such.pem'",
            ),
            vec!["/no/such.pem", "kafka.ssl.ca.location"],
        ),
        (
            of(ports.sasl, "request_timeout '3 seconds'"),
            vec!["security.protocol"],
        ),
        (
            of(ports.sasl, "'kafka.plugin.library.paths' '/tmp/x.so'"),
            vec!["kafka.plugin.library.paths cannot be set by a job"],
        ),
    ];
    for (table, parts) in cases {
        for statement in ["SELECT * FROM t", "INSERT INTO t (n) SELECT 1"] {
            let sql = format!("{table}{statement}");
            let status = refused(&setup.client, &sql, "secret", &parts).await?;
            let expected = match parts.contains(&"security.protocol") {
                true => Code::Unavailable,
                false => Code::InvalidArgument,
            };
            assert_eq!(status.code(), expected, "{status:?}");
        }
    }
    Ok(())
}
