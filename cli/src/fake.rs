//! A master for the tests of this crate: answers from a script and notes what it was asked.

use crate::client::{self, MasterAddress};
use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use essaim_common::ipc::Encoder;
use essaim_common::net::Link;
use essaim_proto::v1::jobs_client::JobsClient;
use essaim_proto::v1::jobs_server::{Jobs, JobsServer};
use essaim_proto::v1::query_response::Part;
use essaim_proto::v1::{
    CancelRequest, CancelResponse, EpochProgress, EpochsRequest, EpochsResponse, GetRequest, Job,
    JobState, ListRequest, ListResponse, QueryRequest, QueryResponse, StopRequest, StopResponse,
    SubmitRequest, SubmitResponse, WatchRequest,
};
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use std::sync::{Arc, Mutex};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// How many watchers are cut off before one is told the end.
const CUT_WATCHES: usize = 1;

#[derive(Debug, Default)]
struct Seen {
    queries: Vec<QueryRequest>,
    watches: usize,
    dropped: usize,
}

/// A running fake.
#[derive(Debug, Clone, Default)]
pub struct Fake {
    seen: Arc<Mutex<Seen>>,
    end: Arc<Mutex<Job>>,
    pub address: String,
}

/// Notes that a stream was dropped.
struct Dropped(Arc<Mutex<Seen>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.lock().unwrap().dropped += 1;
    }
}

impl Fake {
    /// Starts one; its jobs end as `end` says.
    pub async fn start(end: Job) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            end: Arc::new(Mutex::new(end)),
            ..Self::default()
        };
        let server = Server::builder().add_service(JobsServer::new(fake.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        fake
    }

    pub async fn client(&self) -> JobsClient<Link> {
        client::connect(&MasterAddress::plain(&self.address))
            .await
            .unwrap()
    }

    /// Setup and SQL of each query so far.
    pub fn queries(&self) -> Vec<(Vec<String>, String)> {
        let seen = self.seen.lock().unwrap();
        let pair = |query: &QueryRequest| (query.setup.clone(), query.sql.clone());
        seen.queries.iter().map(pair).collect()
    }

    pub fn watches(&self) -> usize {
        self.seen.lock().unwrap().watches
    }

    /// How many endless queries have been given up by their clients.
    pub fn dropped(&self) -> usize {
        self.seen.lock().unwrap().dropped
    }
}

fn part(part: Part) -> Result<QueryResponse, Status> {
    Ok(QueryResponse { part: Some(part) })
}

#[tonic::async_trait]
impl Jobs for Fake {
    type WatchStream = BoxStream<'static, Result<Job, Status>>;
    type QueryStream = BoxStream<'static, Result<QueryResponse, Status>>;

    async fn submit(
        &self,
        request: Request<SubmitRequest>,
    ) -> Result<Response<SubmitResponse>, Status> {
        if request.into_inner().sql.contains("nonsense") {
            return Err(Status::invalid_argument("line 1, column 1: nonsense"));
        }
        Ok(Response::new(SubmitResponse {
            queue_position: 0,
            job_id: "0190".into(),
        }))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let jobs = vec![self.end.lock().unwrap().clone()];
        Ok(Response::new(ListResponse { jobs }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Job>, Status> {
        match request.into_inner().job_id.as_str() {
            "unknown" => Err(Status::not_found("there is no job unknown")),
            _ => Ok(Response::new(self.end.lock().unwrap().clone())),
        }
    }

    async fn cancel(&self, _: Request<CancelRequest>) -> Result<Response<CancelResponse>, Status> {
        let state = JobState::Running.into();
        Ok(Response::new(CancelResponse { state }))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        let state = match request.into_inner().job_id.as_str() {
            "batch" => return Err(Status::invalid_argument("job batch is a batch job")),
            "ended" => JobState::Stopped.into(),
            _ => JobState::Running.into(),
        };
        Ok(Response::new(StopResponse { state }))
    }

    /// There are twelve epochs.
    async fn epochs(
        &self,
        request: Request<EpochsRequest>,
    ) -> Result<Response<EpochsResponse>, Status> {
        let first = request
            .into_inner()
            .after_epoch
            .map_or(0, |epoch| epoch + 1);
        let epochs = (first..=12).map(|epoch| EpochProgress {
            epoch,
            ..EpochProgress::default()
        });
        Ok(Response::new(EpochsResponse {
            epochs: epochs.collect(),
        }))
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let mut seen = self.seen.lock().unwrap();
        seen.watches += 1;
        let running = Job {
            id: "0190".into(),
            state: JobState::Running.into(),
            ..Job::default()
        };
        let mut reports = vec![Ok(running)];
        if seen.watches > CUT_WATCHES {
            reports.push(Ok(self.end.lock().unwrap().clone()));
        }
        Ok(Response::new(stream::iter(reports).boxed()))
    }

    async fn query(
        &self,
        request: Request<QueryRequest>,
    ) -> Result<Response<Self::QueryStream>, Status> {
        let query = request.into_inner();
        let sql = query.sql.clone();
        let setup = query.setup.clone();
        self.seen.lock().unwrap().queries.push(query);
        if sql.contains("nonsense") {
            return Err(Status::invalid_argument("there is no nonsense"));
        }
        // A view that reads a view which is no longer there.
        let reads_v = |sql: &String| sql.ends_with("FROM v");
        let makes_v = |sql: &String| sql.starts_with("CREATE VIEW v ");
        if setup.iter().any(reads_v) && !setup.iter().any(makes_v) {
            return Err(Status::invalid_argument("there is no table v"));
        }
        if !sql.contains("SELECT") || sql.starts_with("CREATE") {
            return Ok(Response::new(stream::empty().boxed()));
        }
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let batch = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
        let mut encoder = Encoder::new(&batch.schema()).unwrap();
        let mut chunks = encoder.encode(&batch).unwrap();
        let mut parts = vec![part(Part::Progress(Job::default()))];
        if sql.contains("broken") {
            parts.extend(chunks.into_iter().map(|chunk| part(Part::ArrowIpc(chunk))));
            parts.push(Err(Status::data_loss("toots[3] offset 7: no JSON")));
            return Ok(Response::new(stream::iter(parts).boxed()));
        }
        chunks.extend(encoder.finish().unwrap());
        // A chunk may end anywhere.
        for chunk in chunks {
            let half = chunk.len() / 2;
            parts.push(part(Part::ArrowIpc(chunk.slice(..half))));
            parts.push(part(Part::ArrowIpc(chunk.slice(half..))));
        }
        let parts = stream::iter(parts);
        if sql.contains("endless") {
            let dropped = Dropped(Arc::clone(&self.seen));
            let endless = stream::pending().inspect(move |_| {
                let _held = &dropped;
            });
            return Ok(Response::new(parts.chain(endless).boxed()));
        }
        Ok(Response::new(parts.boxed()))
    }
}
