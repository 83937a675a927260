//! Which software this is, and which workers and masters understand each other.

use std::fmt;
use std::ops::Deref;

/// What a master and its workers speak. Both must have the same number; the versions of their software may differ.
///
/// It stands for the messages of `essaim.v1`, for Essaim's nodes in a plan, and for the engine, whose plans travel in an
/// encoding that is only good for the same engine. Raise it when a worker could misunderstand what a master with the
/// same number sends. What is only added, and what the other side may leave out, needs no new number.
pub const PROTOCOL: u32 = 2;

/// The version of this software.
pub static VERSION: Version = Version::new(env!("CARGO_PKG_VERSION"));

/// What stands before the version in the binary.
const MARK: &[u8; 16] = b"essaim-version: ";
/// How many bytes a version has at most, the rest being zeros.
const WIDTH: usize = 32;

/// A version as text.
///
/// It stands in the binary once, in a place of fixed width behind a mark. So a test has a binary of another version
/// without a second build: it copies this one and writes another version there.
pub struct Version([u8; MARK.len() + WIDTH]);

impl Version {
    const fn new(version: &str) -> Self {
        let version = version.as_bytes();
        assert!(version.len() <= WIDTH, "the version is too long");
        let mut bytes = [0; MARK.len() + WIDTH];
        let mut at = 0;
        while at < MARK.len() {
            bytes[at] = MARK[at];
            at += 1;
        }
        let mut at = 0;
        while at < version.len() {
            bytes[MARK.len() + at] = version[at];
            at += 1;
        }
        Self(bytes)
    }

    /// The text, e.g. `1.2.3`.
    pub fn as_str(&self) -> &str {
        // What the binary holds when it runs, not what the compiler knows of it.
        let version = &std::hint::black_box(&self.0)[MARK.len()..];
        let end = version.iter().position(|byte| *byte == 0);
        std::str::from_utf8(&version[..end.unwrap_or(WIDTH)]).unwrap_or("unknown")
    }
}

impl Deref for Version {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl serde::Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`PROTOCOL`] stands for beside our own messages: versions of the engine's crates in `Cargo.lock`.
    const ENGINE: [(&str, &str); 4] = [
        ("datafusion", "55.2.0"),
        ("datafusion-proto", "55.2.0"),
        ("datafusion-distributed", "4.0.0"),
        ("arrow", "59.3.2"),
    ];
    /// A checksum of `plan.proto` without its comments.
    const PLAN_NODES: u32 = 0x94da_fb1a;

    #[test]
    fn the_version_is_that_of_the_package() {
        assert_eq!(VERSION.as_str(), env!("CARGO_PKG_VERSION"));
        assert_eq!(Version::new("10.0.0-beta.2").to_string(), "10.0.0-beta.2");
    }

    #[test]
    fn another_engine_needs_another_protocol() {
        let lock = include_str!("../../Cargo.lock");
        for (name, version) in ENGINE {
            let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
            assert!(
                lock.contains(&entry),
                "{name} is no longer {version} in Cargo.lock. A plan of one engine may mean something else to another: \
                 raise PROTOCOL unless you know that theirs agree, then write the new version here"
            );
        }
    }

    #[test]
    fn other_plan_nodes_need_another_protocol() {
        let text = include_str!("../proto/essaim/v1/plan.proto");
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        // FNV-1a.
        let sum = code
            .flat_map(str::bytes)
            .fold(0x811c_9dc5_u32, |sum, byte| {
                (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            });
        assert_eq!(
            sum, PLAN_NODES,
            "plan.proto has changed. Raise PROTOCOL if a worker of before could misunderstand a plan of now, then write the new sum here"
        );
    }
}
