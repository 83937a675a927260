//! What a server says, or refuses, at its start.

use crate::certificates::Authority;
use crate::guarded::{SUBMIT, WORKER, command, folder, tokens};
use anyhow::Result;
use essaim_tests::cluster::Process;
use essaim_tests::{SOON, wait_for};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Starts a master that listens on `listen` and returns what it wrote to its log, and whether it runs.
async fn started(dir: &Path, name: &str, listen: &str, flags: &[&str]) -> Result<(String, bool)> {
    let mut command = command("master", dir)?;
    command
        .args(["--listen", listen, "--http", listen])
        .arg("--state-dir")
        .arg(dir.join(format!("state-{name}")))
        .args(flags);
    let mut process = Process::spawn(name, command, dir)?;
    let runs = process.first_line().await.is_ok();
    if !runs {
        assert!(!process.ended(SOON).await?.success());
    }
    let log = std::fs::read_to_string(dir.join(format!("{name}.log")))?;
    Ok((log, runs))
}

#[tokio::test]
async fn a_master_that_everyone_reaches_says_so_or_refuses() -> Result<()> {
    let dir = folder()?;
    let authority = Authority::new(&dir, "authority")?;
    let pair = authority.sign("server")?;
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let (cert, key) = (path(&pair.cert), path(&pair.key));
    std::fs::write(dir.join("tokens"), tokens())?;
    let shared = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(dir.join("tokens"), shared)?;
    let tokens = path(&dir.join("tokens"));

    let (log, runs) = started(&dir, "open", "0.0.0.0:0", &[]).await?;
    assert!(
        runs && log.contains("ANYONE WHO REACHES IT") && log.contains("UNENCRYPTED"),
        "{log}"
    );
    let (log, runs) = started(&dir, "refuses", "0.0.0.0:0", &["--require-auth"]).await?;
    assert!(
        !runs && log.contains("--tokens") && log.contains("--tls-cert"),
        "{log}"
    );
    let flags = ["--require-auth", "--tokens", &tokens];
    let (log, runs) = started(&dir, "plain", "0.0.0.0:0", &flags).await?;
    assert!(
        !runs && !log.contains("ANYONE") && log.contains("--tls-cert"),
        "{log}"
    );
    assert!(
        log.contains("can be read by others than its owner"),
        "{log}"
    );
    assert!(!log.contains(SUBMIT) && !log.contains(WORKER), "{log}");
    let flags = ["--require-auth", "--tls-cert", &cert, "--tls-key", &key];
    let (log, runs) = started(&dir, "anyone", "0.0.0.0:0", &flags).await?;
    assert!(
        !runs && log.contains("ANYONE") && !log.contains("UNENCRYPTED"),
        "{log}"
    );
    let flags = [&flags[..], &["--tokens", &tokens]].concat();
    let (log, runs) = started(&dir, "closed", "0.0.0.0:0", &flags).await?;
    assert!(runs && !log.contains("beyond loopback"), "{log}");
    let (log, runs) = started(&dir, "loopback", "127.0.0.1:0", &["--require-auth"]).await?;
    assert!(runs && !log.contains("beyond loopback"), "{log}");
    Ok(())
}

#[tokio::test]
async fn wrong_files_are_named() -> Result<()> {
    let dir = folder()?;
    let file = dir.join("nonsense").to_string_lossy().into_owned();
    std::fs::write(&file, format!("admin root {SUBMIT}\n"))?;
    let missing = dir.join("missing").to_string_lossy().into_owned();
    for (name, flags, said) in [
        ("tokens", vec!["--tokens", &file], "line 1"),
        ("no-tokens", vec!["--tokens", &missing], "cannot be read"),
        (
            "cert",
            vec!["--tls-cert", &file, "--tls-key", &file],
            "holds no certificate",
        ),
    ] {
        let (log, runs) = started(&dir, name, "127.0.0.1:0", &flags).await?;
        assert!(!runs && log.contains(said), "{name}: {log}");
        assert!(!log.contains(SUBMIT), "{name}: {log}");
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_without_a_token_is_refused() -> Result<()> {
    let dir = folder()?;
    std::fs::write(dir.join("tokens"), tokens())?;
    let mut master = command("master", &dir)?;
    master
        .args([
            "--listen",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--state-dir",
        ])
        .arg(dir.join("state"))
        // As a container gives it, which has no file.
        .env("ESSAIM_TOKENS", tokens());
    let mut master = Process::spawn("master", master, &dir)?;
    let line = master.first_line().await?;
    let grpc = line.split(' ').nth(3).unwrap_or_default().to_owned();
    for (name, token, said) in [
        ("nobody", None, "needs a token with the role worker"),
        ("client", Some(SUBMIT), "needs the role worker"),
    ] {
        let mut worker = command("worker", &dir)?;
        worker.args(["--master", &format!("http://{grpc}")]).args([
            "--listen",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
        ]);
        if let Some(token) = token {
            worker.env("ESSAIM_TOKEN", token);
        }
        let _worker = Process::spawn(name, worker, &dir)?;
        wait_for("the worker to be told why", SOON, async || {
            let log = std::fs::read_to_string(dir.join(format!("{name}.log")))?;
            assert!(!log.contains(SUBMIT), "{log}");
            Ok((log.contains("not registered") && log.contains(said)).then_some(()))
        })
        .await?;
    }
    Ok(())
}
