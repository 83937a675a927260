#![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.

use super::*;
use std::io::Write as _;

fn file(text: &str) -> Result<File, Failure> {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    File::read(file.path())
}

fn refused(text: &str) -> String {
    let message = file(text).unwrap_err().to_string();
    // Without the folder of temporary files.
    message.split_once(".toml:").unwrap().1.to_owned()
}

fn value(file: &File, role: Role, id: &str) -> Option<String> {
    let command = file.put_into(role.command(), role);
    let matches = command.try_get_matches_from(["x"]).unwrap();
    let values = matches.get_raw(id)?;
    Some(
        values
            .map(|v| v.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(","),
    )
}

#[test]
fn every_flag_has_a_key_and_a_variable() {
    for role in Role::ALL {
        let command = role.command();
        assert!(settings(&command).count() > 0);
        for arg in settings(&command) {
            let variable = arg.get_env().unwrap().to_str().unwrap();
            assert!(variable.starts_with(PREFIX), "{variable}");
            assert!(
                variable
                    .chars()
                    .all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit())
            );
        }
    }
    let worker = Role::Worker.command();
    let slots = settings(&worker)
        .find(|arg| arg.get_id() == "slots")
        .unwrap();
    assert_eq!(slots.get_env(), Some(OsStr::new("ESSAIM_SLOTS")));
    let master = settings(&worker)
        .find(|arg| arg.get_id() == "master")
        .unwrap();
    assert_eq!(
        master.get_env(),
        Some(OsStr::new("ESSAIM_MASTER")),
        "it has had one before"
    );
}

#[test]
fn the_command_line_stays_consistent_with_a_file_under_it() {
    let file = file("[master]\nmemory = \"1GiB\"\n[client]\nmaster = \"http://m:1\"\n").unwrap();
    let cli = for_each_role(Cli::command(), with_environment);
    for_each_role(cli, |command, role| file.put_into(command, role)).debug_assert();
}

#[test]
fn keys_are_flags_with_dashes_or_underscores() {
    let file = file(
        "[master]\nstate-dir = \"s3://b/state\"\nmemory = 1073741824\nfile_roots = [\"/tmp\", \"s3://b\"]\n\
         [worker]\nslots = 3\n[client]\nmaster = \"http://m:1\"\n",
    )
    .unwrap();
    let of = |role, id| value(&file, role, id).unwrap();
    assert_eq!(of(Role::Master, "state_dir"), "s3://b/state");
    assert_eq!(of(Role::Master, "memory"), "1073741824");
    assert_eq!(of(Role::Master, "file_roots"), "/tmp,s3://b");
    assert_eq!(of(Role::Worker, "slots"), "3");
    assert_eq!(of(Role::Client, "master"), "http://m:1");
    assert_eq!(file.line(Role::Worker, "slots"), Some(6));
    assert_eq!(file.line(Role::Master, "listen"), None);
}

#[test]
fn what_is_unknown_is_an_error_with_a_suggestion() {
    for (text, expected) in [
        (
            "[master]\n\nlisten_on = 1\n",
            "3: unknown key listen_on in [master]: did you mean listen?",
        ),
        (
            "[master]\nslots = 3\n",
            "2: unknown key slots in [master]: it belongs under [worker]",
        ),
        (
            "[mastr]\nlisten = \"x\"\n",
            "1: unknown table [mastr]: did you mean [master]?",
        ),
        (
            "state-dir = \"x\"\n",
            "1: the key state-dir belongs under [master]",
        ),
        ("colour = 1\n", "1: the key colour stands before any table"),
        (
            "[cluster]\n",
            "1: unknown table [cluster]: there are [master], [worker] and [client]",
        ),
        ("worker = 4\n", "1: worker is a table: write [worker]"),
        ("[master]\nhelp = true\n", "2: unknown key help in [master]"),
    ] {
        let message = refused(text);
        assert!(
            message.starts_with(expected),
            "{message}\ninstead of\n{expected}"
        );
    }
}

#[test]
fn a_wrong_value_names_its_key_and_line() {
    for (text, expected) in [
        (
            "[worker]\nslots = \"many\"\n",
            "2: worker.slots: invalid value 'many' for '--slots <N>'",
        ),
        (
            "[worker]\nslots = true\n",
            "2: worker.slots: it is a boolean, and should be a text in quotes or a number",
        ),
        (
            "[master]\nstate-dir = 7\n",
            "2: master.state-dir: it is a number, and should be a text in quotes",
        ),
        (
            "[master]\nlog-format = \"xml\"\n",
            "2: master.log-format: invalid value 'xml'",
        ),
        (
            "[master]\nlisten = [\"a\"]\n",
            "2: master.listen: it is a list",
        ),
        (
            "[master.listen]\nx = 1\n",
            "1: master.listen: it is a table",
        ),
        (
            "[master]\nlisten = 1979-05-27\n",
            "2: master.listen: it is a time",
        ),
        (
            "[master]\nstate-dir = \"a\"\nstate_dir = \"b\"\n",
            "3: master.state_dir is given twice",
        ),
        ("[master]\nlisten = \n", "2: "),
    ] {
        let message = refused(text);
        assert!(
            message.starts_with(expected),
            "{message}\ninstead of\n{expected}"
        );
    }
    let missing = File::read(std::path::Path::new("/no/such.toml")).unwrap_err();
    assert!(missing.to_string().contains("/no/such.toml"), "{missing}");
}

#[test]
fn variables_that_are_mistyped_are_warned_of() {
    let of = |names: &[&str]| warnings(names.iter().map(OsString::from));
    assert_eq!(
        of(&["ESSAIM_LISTN", "ESSAIM_LISTEN", "ESSAIM_VAR_LISTN", "PATH"]),
        ["the variable ESSAIM_LISTN is no setting: did you mean ESSAIM_LISTEN?"]
    );
    assert!(
        of(&[
            "ESSAIM_SOMETHING_ELSE_ENTIRELY",
            "ESSAIM_LOG",
            "ESSAIM_TEST_KAFKA"
        ])
        .is_empty()
    );
}
