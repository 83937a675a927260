//! Embeds the status pages: the sources in `web/src`, and in place of those of the same name what `web/dist` has.

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let web = manifest.parent().ok_or("no workspace")?.join("web");
    let (sources, bundle) = (web.join("src"), web.join("dist"));
    // A bundle that is not there yet would count as changed each time: its folder shows when it comes.
    let watched = if bundle.is_dir() { &bundle } else { &web };
    for folder in [&sources, watched] {
        println!("cargo::rerun-if-changed={}", folder.display());
    }

    let mut files = BTreeMap::new();
    for folder in [&sources, &bundle] {
        if folder.is_dir() {
            collect(folder, folder, &mut files)?;
        }
    }
    let mut table = String::from("static FILES: &[File] = &[\n");
    for (name, path) in &files {
        let mut hash = DefaultHasher::new();
        hash.write(&fs::read(path)?);
        writeln!(
            table,
            "    File {{ name: {name:?}, content_type: {:?}, etag: \"\\\"{:016x}\\\"\", body: include_bytes!({:?}) }},",
            content_type(name)?,
            hash.finish(),
            path.canonicalize()?,
        )?;
    }
    table.push_str("];\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("pages.rs"), table)?;
    Ok(())
}

/// Adds the files below `folder` by their path from `root`.
fn collect(
    root: &Path,
    folder: &Path,
    files: &mut BTreeMap<String, PathBuf>,
) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
        } else {
            let name = path.strip_prefix(root)?.to_str().ok_or("not UTF-8")?;
            files.insert(name.to_owned(), path);
        }
    }
    Ok(())
}

fn content_type(name: &str) -> Result<&'static str, String> {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("css") => Ok("text/css; charset=utf-8"),
        Some("html") => Ok("text/html; charset=utf-8"),
        Some("js") => Ok("text/javascript; charset=utf-8"),
        Some("svg") => Ok("image/svg+xml"),
        _ => Err(format!("web/: {name} has no content type")),
    }
}
