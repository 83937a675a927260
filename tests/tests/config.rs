//! Settings from file, environment and flags, as the binary itself takes them.

use anyhow::{Context, Result};
use essaim_tests::cluster::binary;
use serde_json::{Value, json};
use std::process::{Command, Output};
use tempfile::TempDir;

/// `essaim` with none of our variables but these.
fn essaim(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    let mut command = Command::new(binary()?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ESSAIM_") {
            command.env_remove(name);
        }
    }
    command
        .args(arguments)
        .envs(variables.iter().copied())
        .output()
        .with_context(|| format!("{arguments:?}"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn file(text: &str) -> Result<(TempDir, String)> {
    let dir = TempDir::new()?;
    let path = dir.path().join("essaim.toml");
    std::fs::write(&path, text)?;
    Ok((dir, path.display().to_string()))
}

fn document(output: &Output) -> Result<Value> {
    assert!(output.status.success(), "{}", stderr(output));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn a_flag_wins_over_a_variable_over_the_file_over_the_default() -> Result<()> {
    let (_dir, path) = file(
        "[master]\nlisten = \"127.0.0.1:1\"\nhttp = \"127.0.0.1:2\"\nmemory = \"3GiB\"\n\
         [worker]\nslots = 5\n\
         [client]\nmaster = \"http://user:hunter2@m:7077\"\n",
    )?;
    let arguments = ["config", "master", "--json", "--listen", "127.0.0.1:9"];
    let variables = [
        ("ESSAIM_CONFIG", path.as_str()),
        ("ESSAIM_LISTEN", "127.0.0.1:8"),
        ("ESSAIM_HTTP", "127.0.0.1:7"),
    ];
    let found = document(&essaim(&arguments, &variables)?)?;
    let master = &found["master"];
    let line = |line| json!({"kind": "file", "file": path, "line": line});
    assert_eq!(
        master["listen"],
        json!({"value": "127.0.0.1:9", "source": {"kind": "flag"}})
    );
    let variable = json!({"kind": "environment", "variable": "ESSAIM_HTTP"});
    assert_eq!(
        master["http"],
        json!({"value": "127.0.0.1:7", "source": variable})
    );
    assert_eq!(
        master["memory"],
        json!({"value": "3GiB", "source": line(4)})
    );
    assert_eq!(
        master["log-format"],
        json!({"value": "text", "source": {"kind": "default"}})
    );
    assert_eq!(found["worker"], Value::Null, "only what was asked for");

    let all = document(&essaim(&["--config", &path, "config", "--json"], &[])?)?;
    assert_eq!(
        all["worker"]["slots"],
        json!({"value": "5", "source": line(6)})
    );
    assert_eq!(all["client"]["master"]["value"], "http://***@m:7077");
    assert_eq!(all["master"]["listen"]["value"], "127.0.0.1:1");

    let text = essaim(&["config", "--config", &path], &[])?;
    let text = String::from_utf8(text.stdout)?;
    assert!(text.contains(&format!("{path}:4")), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    Ok(())
}

#[test]
fn a_wrong_file_or_variable_is_named_and_nothing_starts() -> Result<()> {
    let (_dir, path) = file("[master]\nlisten = \"127.0.0.1:0\"\nmemry = \"1GiB\"\n")?;
    for arguments in [
        ["master", "--config", &path].as_slice(),
        &["jobs", "--config", &path],
        &["config", "--config", &path],
    ] {
        let output = essaim(arguments, &[])?;
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let expected = format!("{path}:3: unknown key memry in [master]: did you mean memory?");
        assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
    }
    let output = essaim(&["worker"], &[("ESSAIM_SLOTS", "many")])?;
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let message = stderr(&output);
    assert!(
        message.contains("ESSAIM_SLOTS") && message.contains("'many'"),
        "{message}"
    );
    for (variable, value) in [("ESSAIM_SLOTS", "many"), ("ESSAIM_REQUIRE_AUTH", "yes")] {
        let output = essaim(&["config"], &[(variable, value)])?;
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let message = stderr(&output);
        let expected = format!("the variable {variable}: invalid value '{value}'");
        assert!(message.contains(&expected), "{message}");
    }
    let output = essaim(&["config"], &[("ESSAIM_MEMRY", "1")])?;
    assert!(output.status.success());
    assert!(
        stderr(&output).contains("ESSAIM_MEMRY is no setting: did you mean ESSAIM_MEMORY?"),
        "{}",
        stderr(&output)
    );
    let output = essaim(&["master", "--file-roots", "/no/such/folder"], &[])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--file-roots /no/such/folder"),
        "{}",
        stderr(&output)
    );
    Ok(())
}

#[test]
fn empty_file_roots_are_an_error_and_no_open_door() -> Result<()> {
    let (_dir, path) = file("[master]\nfile-roots = []\n")?;
    let of_file = essaim(&["master", "--config", &path], &[])?;
    let of_variable = essaim(&["master"], &[("ESSAIM_FILE_ROOTS", "")])?;
    for output in [of_file, of_variable] {
        assert_ne!(output.status.code(), Some(0));
        assert!(
            stderr(&output).replace('"', "").contains("write none"),
            "{}",
            stderr(&output)
        );
    }
    Ok(())
}

#[test]
fn tokens_in_a_variable_are_in_force_and_not_shown() -> Result<()> {
    let variables = [("ESSAIM_TOKENS", "read eve abc"), ("ESSAIM_TOKEN", "abc")];
    let found = document(&essaim(&["config", "--json"], &variables)?)?;
    let from =
        |variable| json!({"value": "***", "source": {"kind": "environment", "variable": variable}});
    assert_eq!(found["master"]["tokens"], from("ESSAIM_TOKENS"));
    assert_eq!(found["worker"]["token-file"], from("ESSAIM_TOKEN"));
    assert_eq!(found["client"]["token-file"], from("ESSAIM_TOKEN"));
    Ok(())
}

#[test]
fn a_client_finds_the_master_by_the_file() -> Result<()> {
    let (_dir, path) = file("[client]\nmaster = \"http://127.0.0.1:1\"\n")?;
    let output = essaim(&["jobs", "--config", &path], &[])?;
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("http://127.0.0.1:1"),
        "{}",
        stderr(&output)
    );
    Ok(())
}
