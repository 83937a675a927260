//! One request and its answer: within the table's rate, tried again while the server may yet answer.

use crate::error::{Error, Result};
use crate::options::Options;
use crate::sources::feed::client::{Access, Failure, pause};
use crate::sources::feed::shown::Veiled;
use bytes::Bytes;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use reqwest::header::{
    ACCEPT, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    LAST_MODIFIED, LINK,
};
use reqwest::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use url::Url;

/// The longest wait that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(15 * 60);
/// The largest `max_response_bytes`: an answer is held in memory whole.
const MOST_BYTES: u64 = 256 << 20;

/// How a table's requests are made. Travels to workers, secrets included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    pub access: Access,
    /// The body of a POST; `None` for a GET.
    post: Option<Veiled<String>>,
    retries: u32,
    max_response_bytes: u64,
    pub requests_per_second: Option<f64>,
}

impl Requests {
    /// Takes `method`, `body`, `retries`, `max_response_bytes` and `requests_per_second`, and what every request has.
    ///
    /// # Errors
    /// A value that is wrong.
    pub fn take(options: &mut Options) -> Result<Self> {
        let is_post = options.one_of("method", &[("get", false), ("post", true)])?;
        let body = options.secret("body");
        if body.is_some() && !is_post {
            return Err(
                options.error("a body goes with method 'POST': add it, or leave the body out")
            );
        }
        let retries = options.parsed("retries")?.unwrap_or(3);
        if retries > 20 {
            return Err(options.error("option retries: write at most 20"));
        }
        let max_response_bytes = options.parsed("max_response_bytes")?.unwrap_or(16 << 20);
        if !(1..=MOST_BYTES).contains(&max_response_bytes) {
            return Err(options.error(format!(
                "option max_response_bytes: write a number of bytes from 1 to {MOST_BYTES}"
            )));
        }
        let requests_per_second: Option<f64> = options.parsed("requests_per_second")?;
        if requests_per_second.is_some_and(|rate| !(0.0001..=10_000.0).contains(&rate)) {
            return Err(
                options.error("option requests_per_second: write a number from 0.0001 to 10000")
            );
        }
        let text = || body.map_or_else(String::new, |body| body.expose().to_owned());
        Ok(Self {
            post: is_post.then(|| Veiled(text())),
            retries,
            max_response_bytes,
            requests_per_second,
            access: Access::take(options)?,
        })
    }

    /// Whether the requests may change something on the server.
    pub fn are_posts(&self) -> bool {
        self.post.is_some()
    }
}

/// What a server said of the state of a document, to be shown to it again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validators {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_modified: Option<String>,
}

/// A successful answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// `None` if the document is as the validators say (304).
    pub body: Option<Bytes>,
    pub validators: Validators,
    /// The headers `Link`.
    pub links: Vec<String>,
}

/// Makes the requests of one table in this process.
#[derive(Debug)]
pub struct Fetcher {
    pub requests: Requests,
    rate: Option<DefaultDirectRateLimiter>,
    /// Before this time the server wants to be left alone.
    quiet_until: Mutex<Option<Instant>>,
}

impl Fetcher {
    /// A fetcher that has made no request yet.
    pub fn new(requests: Requests) -> Self {
        let every = requests
            .requests_per_second
            .map(|rate| Duration::from_secs_f64(1.0 / rate));
        // One at a time: what was not used before is not made up for.
        let quota = every.and_then(Quota::with_period);
        Self {
            requests,
            rate: quota.map(RateLimiter::direct),
            quiet_until: Mutex::default(),
        }
    }

    /// A URL as people may see it.
    pub fn shown(&self, url: &Url) -> String {
        self.requests.access.hidden.url(url)
    }

    /// Asks for a document; with validators only if it is another than they say.
    ///
    /// # Errors
    /// No success after all attempts (`Unavailable`); a refusal that lasts, or an answer that is too large.
    pub async fn ask(&self, url: &Url, known: Option<&Validators>) -> Result<Answer> {
        let mut failures = 0;
        loop {
            self.wait_for_turn().await;
            let (error, after) = match self.once(url, known).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing(error, after)) => (error, after),
            };
            failures += 1;
            let wait = after.unwrap_or_else(|| pause(failures));
            // Whoever asks too often is to be quiet altogether, whatever else there is to ask.
            if after.is_some() {
                let until = Instant::now() + wait.min(MAX_RETRY_AFTER);
                let mut quiet = self.quiet_until.lock();
                *quiet = Some(quiet.map_or(until, |known| known.max(until)));
            }
            if wait > MAX_RETRY_AFTER {
                return Err(error.with_hint(format!(
                    "that is longer than the {} s that are waited at most",
                    MAX_RETRY_AFTER.as_secs()
                )));
            }
            if failures > self.requests.retries {
                return Err(error);
            }
            tracing::debug!(%error, ?wait, failures, "asked again");
            if after.is_none() {
                tokio::time::sleep(wait).await;
            }
        }
    }

    async fn wait_for_turn(&self) {
        loop {
            let quiet = *self.quiet_until.lock();
            match quiet.filter(|until| *until > Instant::now()) {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => break,
            }
        }
        if let Some(rate) = &self.rate {
            rate.until_ready().await;
        }
    }

    async fn once(&self, url: &Url, known: Option<&Validators>) -> Result<Answer, Failure> {
        let access = &self.requests.access;
        let method = match self.requests.post {
            Some(_) => Method::POST,
            None => Method::GET,
        };
        let mut request = access
            .request(method, url)
            .map_err(Failure::Lasting)?
            .timeout(access.timeout());
        if !access.has_header(ACCEPT.as_str()) {
            request = request.header(ACCEPT, "application/json");
        }
        if let Some(Veiled(body)) = &self.requests.post {
            if !access.has_header(CONTENT_TYPE.as_str()) {
                request = request.header(CONTENT_TYPE, "application/json");
            }
            request = request.body(body.clone());
        }
        if let Some(known) = known {
            let conditions = [
                (IF_NONE_MATCH, &known.etag),
                (IF_MODIFIED_SINCE, &known.last_modified),
            ];
            for (name, value) in conditions {
                if let Some(value) = value {
                    request = request.header(name, value);
                }
            }
        }
        let response = request.send().await.map_err(|e| access.failed(url, &e))?;
        let status = response.status();
        let conditional = known.is_some() && status == StatusCode::NOT_MODIFIED;
        if !status.is_success() && !conditional {
            return Err(access.refused(url, response).await);
        }
        let text = |name: HeaderName| header(response.headers(), &name);
        let validators = Validators {
            etag: text(ETAG),
            last_modified: text(LAST_MODIFIED),
        };
        let links = response.headers().get_all(LINK).iter();
        let links = links.filter_map(|link| link.to_str().ok().map(str::to_owned));
        let links = links.collect();
        let body = match conditional {
            true => None,
            false => Some(self.body(url, response).await?),
        };
        Ok(Answer {
            status: status.as_u16(),
            body,
            validators,
            links,
        })
    }

    /// The body, unpacked.
    async fn body(&self, url: &Url, mut response: Response) -> Result<Bytes, Failure> {
        let access = &self.requests.access;
        let most = self.requests.max_response_bytes;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| access.failed(url, &e))? {
            if (body.len() + chunk.len()) as u64 > most {
                return Err(Failure::Lasting(Error::exhausted(format!(
                    "{}: the answer is larger than {most} bytes (option max_response_bytes): raise it, or ask for less by parameters in LOCATION and the option paging",
                    self.shown(url)
                ))));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Bytes::from(body))
    }
}

fn header(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.to_owned())
}
