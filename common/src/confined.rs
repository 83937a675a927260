//! A store that refuses every path outside of what jobs may use, on whichever side of the cluster it is asked.

use crate::access::Access;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryFutureExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// What the refusal of a path is called in errors.
const NAME: &str = "confined";

/// A store for jobs. Links are resolved at each access, so that one that a list of files leads through is refused too.
#[derive(Debug, Clone)]
pub struct Confined {
    inner: Arc<dyn ObjectStore>,
    /// `file://` or `s3://bucket`.
    base: Arc<str>,
    access: &'static Access,
}

impl Confined {
    /// The part of a store that `access` allows.
    pub fn new(inner: Arc<dyn ObjectStore>, base: &str, access: &'static Access) -> Self {
        Self {
            inner,
            base: base.into(),
            access,
        }
    }

    /// Looks at the file system away from the threads that must not wait.
    async fn check(&self, path: &Path) -> Result<()> {
        let (this, looked_at) = (self.clone(), path.clone());
        let checked =
            tokio::task::spawn_blocking(move || this.access.check_stored(&this.base, &looked_at));
        match checked.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(refused)) => Err(Error::PermissionDenied {
                path: path.to_string(),
                source: Box::new(refused),
            }),
            Err(error) => Err(Error::Generic {
                store: NAME,
                source: Box::new(error),
            }),
        }
    }

    /// What a list brings, each file looked at.
    fn listed(
        &self,
        prefix: Option<&Path>,
        files: impl FnOnce(&dyn ObjectStore) -> BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned().unwrap_or_default());
        let files = files(self.inner.as_ref());
        let allowed = async move {
            this.check(&prefix).await?;
            Ok(files.and_then(move |file| {
                let this = this.clone();
                async move { this.check(&file.location).await.map(|()| file) }
            }))
        };
        allowed.try_flatten_stream().boxed()
    }
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAME} {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Confined {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.check(location).await?;
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.check(location).await?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.check(location).await?;
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.check(location).await?;
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let checked = locations.and_then(move |location| {
            let this = this.clone();
            async move { this.check(&location).await.map(|()| location) }
        });
        self.inner.delete_stream(checked.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix, |inner| inner.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix, |inner| inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.check(prefix.unwrap_or(&Path::default())).await?;
        let found = self.inner.list_with_delimiter(prefix).await?;
        let files = found.objects.iter().map(|file| &file.location);
        let paths: Vec<Path> = files.chain(&found.common_prefixes).cloned().collect();
        stream::iter(paths)
            .map(Ok)
            .try_for_each(|path| async move { self.check(&path).await })
            .await?;
        Ok(found)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.check(from).await?;
        self.check(to).await?;
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.check(from).await?;
        self.check(to).await?;
        self.inner.rename_opts(from, to, options).await
    }
}
