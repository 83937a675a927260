//! A PostgreSQL server with TLS: source and sink with a server that is checked in full, and with a certificate instead
//! of a password; a server that is somebody else is refused.

use crate::refused;
use anyhow::Result;
use essaim_tests::certificates::{Certificates, USER};
use essaim_tests::cluster::Cluster;
use essaim_tests::postgres::{PrivateServer, run};
use essaim_tests::sql::integers;
use std::os::unix::fs::PermissionsExt;
use tonic::Code;

#[tokio::test]
async fn postgres_over_tls() -> Result<()> {
    let certificates = Certificates::make()?;
    let file = |name: &str| certificates.certificate(name).display().to_string();
    let key = certificates.key("client");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
    let server = PrivateServer::start_secured(&certificates).await?;
    let mut connection = server.connect().await?;
    run(
        &mut connection,
        &format!(
            "CREATE TABLE numbers AS SELECT n FROM generate_series(1, 100) n; CREATE ROLE {USER} LOGIN SUPERUSER; \
             CREATE VIEW sessions AS SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        ),
    )
    .await?;
    let roots = certificates.dir().display().to_string();
    let variables = [
        ("PGPASSWORD_TEST", "essaim"),
        ("ESSAIM_FILE_ROOTS", roots.as_str()),
    ];
    let cluster = Cluster::start_under(1, 2, &variables).await?;
    let client = cluster.client().await?;
    let at = |login: &str, host: &str, parameters: &str, table: &str| {
        let port = server.port;
        format!(
            "CREATE EXTERNAL TABLE {table} STORED AS POSTGRES LOCATION 'postgres://{login}@{host}:{port}/postgres?{parameters}'; "
        )
    };
    let password = "essaim:${PGPASSWORD_TEST}";
    let full = format!("sslmode=verify-full&sslrootcert={}", file("ca"));
    let with_key = format!("{full}&sslcert={}&sslkey={}", file("client"), key.display());
    for (login, parameters, made) in [
        (password, full.as_str(), "made_by_password"),
        (USER, with_key.as_str(), "made_by_certificate"),
    ] {
        let source = at(login, "127.0.0.1", parameters, "numbers");
        let sink = at(login, "127.0.0.1", parameters, made);
        let job = format!("{source}{sink}INSERT INTO {made} SELECT n * 2 AS n FROM numbers");
        client.run_job(&job, made).await?;
        let sum = client
            .query(&format!("{sink}SELECT sum(n) FROM {made}"))
            .await?;
        assert_eq!(integers(&sum, 0)?, [10_100]);
        let sessions = at(login, "127.0.0.1", parameters, "sessions");
        let encrypted = format!("{sessions}SELECT count(*) FROM sessions WHERE ssl");
        assert_eq!(integers(&client.query(&encrypted).await?, 0)?, [1]);
    }

    let ca = |mode: &str, name: &str| format!("sslmode={mode}&sslrootcert={}", file(name));
    let verify_ca = at(password, "localhost", &ca("verify-ca", "ca"), "numbers");
    let rows = client
        .query(&format!("{verify_ca}SELECT count(*) FROM numbers"))
        .await?;
    assert_eq!(
        integers(&rows, 0)?,
        [100],
        "another name, the right authority"
    );
    let outside = format!("sslmode=verify-full&sslrootcert={roots}/../no.pem");
    for (login, host, parameters, parts) in [
        (
            password,
            "127.0.0.1",
            ca("verify-full", "other_ca"),
            ["sslrootcert", "certificate"],
        ),
        (
            password,
            "127.0.0.1",
            ca("verify-ca", "other_ca"),
            ["sslrootcert", "certificate"],
        ),
        (
            password,
            "127.0.0.1",
            ca("require", "other_ca"),
            ["sslrootcert", "certificate"],
        ),
        (
            password,
            "127.0.0.1",
            "sslmode=verify-full".to_owned(),
            ["sslrootcert", "certificate"],
        ),
        (
            password,
            "localhost",
            full.clone(),
            ["not valid for name", "verify-ca"],
        ),
        (
            USER,
            "127.0.0.1",
            full.clone(),
            ["certificate", "SQLSTATE 28000"],
        ),
        (
            password,
            "127.0.0.1",
            outside,
            ["sslrootcert", "--file-roots"],
        ),
        (
            password,
            "127.0.0.1",
            "sslmod=require".to_owned(),
            ["sslmod", "did you mean sslmode?"],
        ),
    ] {
        let table = at(login, host, &parameters, "numbers");
        let sql = format!("{table}SELECT count(*) FROM numbers");
        let status = refused(&client, &sql, "essaim:essaim", &parts).await?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let sink = at(login, host, &parameters, "never");
        let sql = format!("{sink}INSERT INTO never SELECT 1 AS n");
        refused(&client, &sql, "essaim:essaim", &parts).await?;
    }
    let left: (i64,) = sqlx::query_as("SELECT count(*) FROM pg_tables WHERE tablename = 'never'")
        .fetch_one(&mut connection)
        .await?;
    assert_eq!(left, (0,));
    Ok(())
}
