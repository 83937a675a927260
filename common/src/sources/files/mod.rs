//! `STORED AS PARQUET | CSV | JSON`: DataFusion reads the files, Essaim's own sink writes them.
//!
//! What DataFusion does not read, we do: a folder that is watched ([`watch`]), files that are played ([`replay`]), JSON
//! documents of several lines, compressed texts and patterns in buckets ([`documents`]). Their way: [`place`] lists files, [`known`] tells which are new, [`reader`]
//! opens a [`file`] and cuts it into [`records`] or reads [`parquet`].

mod clean;
mod csv;
mod declared;
mod documents;
mod file;
mod infer;
mod known;
mod parquet;
mod place;
mod plan;
mod reader;
mod records;
mod replay;
mod source;
mod text;
mod watch;

use crate::check::Endpoint;
use crate::connector::{Connector, ConnectorTable, Sink, SinkWriter, SplitReader, TableSpec};
use crate::error::{Error, Result as EssaimResult};
use crate::object_stores;
use crate::options::Options;
use crate::secret::Secret;
use crate::sinks::files::{FileSink, FileWriter, Format, Layout};
use crate::table::{Table, insert, of_table, spec};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{ScanArgs, ScanResult, Session, TableProvider, TableProviderFactory};
use datafusion::common::{Constraints, Result, Statistics};
use datafusion::datasource::listing_table_factory::ListingTableFactory;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{CreateExternalTable, Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use std::sync::Arc;
use std::time::Duration;

/// The name under which the writers of all three formats travel.
pub const NAME: &str = "FILES";

/// Reads the writers back. Its tables come from [`FileTableFactory`], which needs DataFusion's session.
#[derive(Debug)]
pub struct Files;

#[async_trait]
impl Connector for Files {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn table(&self, spec: TableSpec) -> EssaimResult<ConnectorTable> {
        Err(spec
            .options
            .error("write STORED AS PARQUET, CSV or JSON instead of FILES"))
    }

    fn reader(&self, encoded: &[u8], schema: SchemaRef) -> EssaimResult<Arc<dyn SplitReader>> {
        Ok(Arc::new(reader::FileReader::decode(encoded, schema)?))
    }

    fn writer(&self, encoded: &[u8]) -> EssaimResult<Arc<dyn SinkWriter>> {
        Ok(Arc::new(FileWriter::decode(encoded)?))
    }

    fn endpoints(&self, mut spec: TableSpec) -> EssaimResult<Vec<Endpoint>> {
        let archive = spec.options.secret("source_archive_dir");
        let places = std::iter::once(spec.location).chain(archive);
        let endpoint = |place: Secret| {
            object_stores::parse(place.expose())?;
            Ok(Endpoint {
                connector: NAME.to_owned(),
                name: format!("files at {place}"),
                payload: place.expose().as_bytes().to_vec(),
            })
        };
        places.map(endpoint).collect()
    }

    async fn reach(&self, payload: &[u8], _deadline: Duration) -> EssaimResult<String> {
        reach(&String::from_utf8_lossy(payload)).await
    }
}

/// Makes the tables of one format: DataFusion's where there are files or declared columns, else one that takes its
/// columns from the first INSERT.
#[derive(Debug)]
pub struct FileTableFactory(pub Format);

#[async_trait]
impl TableProviderFactory for FileTableFactory {
    async fn create(
        &self,
        state: &dyn Session,
        command: &CreateExternalTable,
    ) -> Result<Arc<dyn TableProvider>> {
        let name = command.name.table().to_owned();
        let asked = Options::new(&name, &command.options)?;
        if command.unbounded || declared::is_multi_line(self.0, &asked)? {
            return self.own(&name, command, None).await;
        }
        let declared = command;
        let mut command = command.clone();
        for location in &mut command.locations {
            let filled =
                Secret::expand(location).map_err(|e| e.context(format!("table {name}")))?;
            *location = filled.expose().to_owned();
            object_stores::check(location).map_err(|e| e.context(format!("table {name}")))?;
        }
        let mut ours = asked;
        let is_json = self.0 == Format::Json;
        if is_json {
            ours.text("multi_line");
        }
        for (option, value) in &mut command.options {
            let filled = Secret::expand(value)
                .map_err(|e| e.context(format!("table {name}, option {option}")))?;
            *value = filled.expose().to_owned();
        }
        let overwrite = ours.one_of("mode", &[("append", false), ("overwrite", true)])?;
        let single_file: Option<bool> = ours.parsed("single_file")?;
        command.options.retain(|option, _| {
            let option = option.strip_prefix("format.").unwrap_or(option);
            let is = |name: &str| option.eq_ignore_ascii_case(name);
            // A Parquet file says itself how its pages are compressed; only its writer is told.
            let written_only = self.0 == Format::Parquet && is("parquet.compression");
            !(written_only || is("mode") || is("single_file") || (is_json && is("multi_line")))
        });
        let layout = Layout::new(self.0, &mut ours)?;
        let is_compressed = layout.is_compressed_text();

        // A list of files, or a pattern, is only read.
        let location = match command.locations.as_mut_slice() {
            [location] if !location.contains(['*', '?', '[']) => location,
            // DataFusion knows patterns of plain paths only, and takes those of a URL for the name of a file.
            [location] if is_compressed || location.contains("://") => {
                return self.own(&name, declared, None).await;
            }
            _ => return self.listing(state, &command, name, None).await,
        };
        let place = Place::find(location).await?;
        let single_file = single_file.unwrap_or(!place.is_folder && layout.names_file(location));
        if !single_file && !location.ends_with('/') && !place.is_file {
            location.push('/');
        }
        let sink = Arc::new(FileSink {
            name: name.clone(),
            location: location.clone(),
            layout,
            overwrite,
            single_file: single_file || place.is_file,
        });
        if place.is_file || place.is_folder || !command.schema.fields().is_empty() {
            if is_compressed {
                return self.own(&name, declared, Some(sink)).await;
            }
            return self.listing(state, &command, name, Some(sink)).await;
        }
        // There is nothing for DataFusion to check the options against.
        ours.finish()?;
        let table = ConnectorTable {
            schema: None,
            source: None,
            sink: Some(sink),
        };
        Ok(Arc::new(Table::new(name, NAME, false, table)))
    }
}

impl FileTableFactory {
    /// A table that DataFusion does not read. Compressed texts are among them: the codec of its plans leaves out how they
    /// are compressed, and workers would take them for text.
    async fn own(
        &self,
        name: &str,
        command: &CreateExternalTable,
        sink: Option<Arc<FileSink>>,
    ) -> Result<Arc<dyn TableProvider>> {
        let [location] = command.locations.as_slice() else {
            return Err(of_table(name, Error::invalid("LOCATION takes one text")).into());
        };
        let spec = spec(command, location).map_err(|e| of_table(name, e))?;
        let table = declared::table(self.0, spec, sink).await;
        let table = table.map_err(|e| of_table(name, e))?;
        let table = Table::new(name.to_owned(), NAME, command.unbounded, table);
        Ok(Arc::new(table.declared_by(command)))
    }

    async fn listing(
        &self,
        state: &dyn Session,
        command: &CreateExternalTable,
        name: String,
        sink: Option<Arc<FileSink>>,
    ) -> Result<Arc<dyn TableProvider>> {
        let listing = ListingTableFactory::new()
            .create(state, command)
            .await
            .map_err(|e| Error::from(e).context(format!("table {name}")))?;
        Ok(Arc::new(FileTable {
            name,
            listing,
            sink,
        }))
    }
}

/// What is at a location.
struct Place {
    is_file: bool,
    /// There are files below it.
    is_folder: bool,
}

impl Place {
    async fn find(location: &str) -> EssaimResult<Self> {
        let (store, path) = object_stores::open(location)?;
        let is_file = !location.ends_with('/')
            && match store.head(&path).await {
                Ok(_) => true,
                Err(object_store::Error::NotFound { .. }) => false,
                Err(error) => return Err(object_stores::failed(location, &error)),
            };
        let is_folder = !is_file && has_files(store.as_ref(), &path, location).await?;
        Ok(Self { is_file, is_folder })
    }
}

async fn has_files(store: &dyn ObjectStore, path: &Path, location: &str) -> EssaimResult<bool> {
    let mut files = store.list(Some(path));
    while let Some(file) = files
        .try_next()
        .await
        .map_err(|e| object_stores::failed(location, &e))?
    {
        if crate::sinks::files::is_visible(path, &file.location) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Looks for the files of a location, which may be a pattern; or for where they could be made.
async fn reach(location: &str) -> EssaimResult<String> {
    let pattern = location.find(['*', '?', '[']);
    let location = match pattern {
        // Down to the folder above the first name with a wildcard.
        Some(at) => &location[..location[..at].rfind('/').map_or(0, |slash| slash + 1)],
        None => location,
    };
    let place = Place::find(location).await?;
    if place.is_file || place.is_folder {
        return Ok(if place.is_file {
            "a file"
        } else {
            "files are there"
        }
        .to_owned());
    }
    match object_stores::local_folder(location)? {
        Some(folder) if folder.exists() => Ok("an empty folder".to_owned()),
        Some(folder) => {
            let above = object_stores::writable(&folder)?;
            Ok(format!("not there yet, can be made in {}", above.display()))
        }
        None => Ok("nothing there yet".to_owned()),
    }
}

/// The sink behind a table of files, if it is one and can be written.
pub fn sink_of(provider: &dyn TableProvider) -> Option<&FileSink> {
    provider.downcast_ref::<FileTable>()?.sink.as_deref()
}

/// DataFusion's table of files, but written by a sink that commits.
#[derive(Debug)]
struct FileTable {
    name: String,
    listing: Arc<dyn TableProvider>,
    /// `None` for a pattern or a list of files.
    sink: Option<Arc<FileSink>>,
}

#[async_trait]
impl TableProvider for FileTable {
    fn schema(&self) -> SchemaRef {
        self.listing.schema()
    }

    fn constraints(&self) -> Option<&Constraints> {
        self.listing.constraints()
    }

    fn table_type(&self) -> TableType {
        self.listing.table_type()
    }

    fn get_table_definition(&self) -> Option<&str> {
        self.listing.get_table_definition()
    }

    fn get_column_default(&self, column: &str) -> Option<&Expr> {
        self.listing.get_column_default(column)
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.listing.scan(state, projection, filters, limit).await
    }

    async fn scan_with_args<'a>(
        &self,
        state: &dyn Session,
        args: ScanArgs<'a>,
    ) -> Result<ScanResult> {
        self.listing.scan_with_args(state, args).await
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        self.listing.supports_filters_pushdown(filters)
    }

    fn statistics(&self) -> Option<Statistics> {
        self.listing.statistics()
    }

    async fn insert_into(
        &self,
        state: &dyn Session,
        input: Arc<dyn ExecutionPlan>,
        insert_op: InsertOp,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(sink) = &self.sink else {
            return Err(Error::invalid(format!(
                "table {} cannot be written: its LOCATION is a pattern or a list; name one folder or file",
                self.name
            ))
            .into());
        };
        let sink = Arc::clone(sink) as Arc<dyn Sink>;
        insert(&self.name, NAME, &sink, state, input, insert_op).await
    }
}
