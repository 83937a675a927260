//! One moment for a whole job: the master keeps a transaction open whose snapshot every worker adopts.

use super::client::{Client, Database, STATEMENT, literal};
use crate::error::{Error, Result};
use crate::scope::JobScope;
use sqlx::Row;
use std::sync::Arc;

/// An exported snapshot. It is valid as long as its transaction is open, so as long as this lives.
#[derive(Debug)]
pub struct Snapshot {
    id: String,
    client: tokio::sync::Mutex<Client>,
}

impl Snapshot {
    /// The snapshot of `database` that all scans of the job share.
    ///
    /// # Errors
    /// The server's.
    pub async fn of(scope: &JobScope, database: &Database) -> Result<Arc<Self>> {
        scope.resource(database.key(), Self::export(database)).await
    }

    async fn export(database: &Database) -> Result<Self> {
        // The transaction idles while the workers read: no timeout of the server may end it. Which of them there are
        // depends on the server's version.
        const KEEP_OPEN: &str = "SELECT pg_catalog.set_config(name, '0', true) FROM pg_catalog.pg_settings \
             WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')";
        let mut client = database.connect().await?;
        client
            .run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", STATEMENT)
            .await?;
        client.rows(KEEP_OPEN, &[]).await?;
        let rows = client
            .rows("SELECT pg_catalog.pg_export_snapshot()", &[])
            .await?;
        let id = rows
            .first()
            .and_then(|row| row.try_get::<String, _>(0).ok())
            .ok_or_else(|| Error::internal("pg_export_snapshot() returned nothing"))?;
        Ok(Self {
            id,
            client: tokio::sync::Mutex::new(client),
        })
    }

    /// Its name, for [`adopt`].
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The transaction itself: what it sees is what the workers will see.
    pub async fn client(&self) -> tokio::sync::MutexGuard<'_, Client> {
        self.client.lock().await
    }
}

/// The statements by which a worker's connection comes to see what the snapshot `id` saw.
pub fn adopt(id: &str) -> String {
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        literal(id)
    )
}
