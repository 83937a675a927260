//! stub
use crate::{Error, Result};
use object_store::{ObjectStore, local::LocalFileSystem, path::Path};
use std::sync::Arc;
pub fn open(url: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
    std::fs::create_dir_all(url).map_err(|e| Error::invalid(e.to_string()))?;
    let s = LocalFileSystem::new_with_prefix(url).map_err(|e| Error::invalid(e.to_string()))?;
    Ok((Arc::new(s), Path::default()))
}
