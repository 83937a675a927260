//! How a server is asked: one client for the process, a table's headers and deadline, and what its refusals mean.

use super::shown::{Hidden, Veiled};
use crate::check::Endpoint;
use crate::error::{Error, Result};
use crate::options::Options;
use chrono::{DateTime, Utc};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;
use std::time::Duration;
use url::Url;

/// How long a connection may take to be made, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// Redirections that are followed one after the other.
const MAX_REDIRECTS: usize = 5;
/// What an error shows of an answer's body, in bytes.
const EXCERPT: usize = 200;
/// The first pause before another attempt, each twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The connections of the process, to whatever server. `Err` if there are no certificates to trust.
static CLIENT: LazyLock<Result<Client, String>> = LazyLock::new(|| {
    Client::builder()
        .user_agent(concat!("essaim/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .redirect(same_origin())
        .build()
        .map_err(|e| reason(&e))
});

/// Follows redirections within a server only: elsewhere nobody has said that the table's headers may go.
fn same_origin() -> Policy {
    Policy::custom(|attempt| {
        let from = attempt.previous().last();
        if from.is_some_and(|from| from.origin() != attempt.url().origin()) {
            let to = attempt.url().origin().ascii_serialization();
            attempt.error(format!(
                "it redirects to {to}: write that server in LOCATION if it is to be asked"
            ))
        } else if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error(format!("it redirects more than {MAX_REDIRECTS} times"))
        } else {
            attempt.follow()
        }
    })
}

/// What every request of a table has. Travels to workers, secrets included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    headers: Veiled<Vec<(String, String)>>,
    /// The longest wait for an answer, ms.
    pub timeout_ms: u64,
    /// What must not be shown of URLs and answers.
    pub hidden: Hidden,
}

/// Why there is no answer, and what follows from it.
#[derive(Debug)]
pub enum Failure {
    /// The server may answer later; after so long, if it says.
    Passing(Error, Option<Duration>),
    /// The same request will fail the same way.
    Lasting(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Passing(error, _) | Failure::Lasting(error) => error,
        }
    }
}

/// Checks a LOCATION.
///
/// # Errors
/// It is no URL with `http` or `https`.
pub fn location(options: &Options, location: &str) -> Result<Url> {
    let url = Url::parse(location).ok();
    url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| options.error("LOCATION is no URL: write 'https://host/path'"))
}

impl Access {
    /// Takes `header.…` and `request_timeout`.
    ///
    /// # Errors
    /// A name or a value that no header can have; the value is not shown.
    pub fn take(options: &mut Options) -> Result<Self> {
        let timeout_ms = options.timeout_ms("request_timeout", 30_000)?;
        let headers = options.with_prefix("header.");
        for (name, value) in &headers {
            let wrong = |what: &str| {
                options.error(format!(
                    "option header.{name}: the {what} is none that a header can have"
                ))
            };
            HeaderName::try_from(name.as_str()).map_err(|_| wrong("name"))?;
            HeaderValue::try_from(value.expose()).map_err(|_| wrong("value"))?;
        }
        let headers = headers.into_iter();
        let headers = headers.map(|(name, value)| (name, value.expose().to_owned()));
        Ok(Self {
            headers: Veiled(headers.collect()),
            timeout_ms,
            hidden: Hidden::new(options),
        })
    }

    /// Whether a header of this name is given, in lower case.
    pub fn has_header(&self, name: &str) -> bool {
        self.headers.0.iter().any(|(given, _)| given == name)
    }

    /// The longest wait for an answer.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// A request with the table's headers, without a deadline yet.
    ///
    /// # Errors
    /// This process trusts no certificates.
    pub fn request(&self, method: Method, url: &Url) -> Result<RequestBuilder> {
        let client = CLIENT.as_ref().map_err(|why| {
            Error::invalid(format!(
                "no HTTP client can be made: {why}; install ca-certificates, or name a bundle in the variable SSL_CERT_FILE"
            ))
        })?;
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers.0 {
            let checked = (HeaderName::try_from(name), HeaderValue::try_from(value));
            if let (Ok(name), Ok(mut value)) = checked {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
        Ok(client.request(method, url.clone()).headers(headers))
    }

    /// Why a request came to nothing.
    pub fn failed(&self, url: &Url, error: &reqwest::Error) -> Failure {
        let place = self.hidden.url(url);
        let why = self.hidden.hide(&reason(error));
        if error.is_timeout() && !error.is_connect() {
            let error = Error::unavailable(format!(
                "{place}: no whole answer within {} ms (option request_timeout)",
                self.timeout_ms
            ));
            return Failure::Passing(error, None);
        }
        if error.is_redirect() || error.is_builder() {
            return Failure::Lasting(Error::invalid(format!("{place}: {why}")));
        }
        if why.contains("invalid peer certificate") {
            return Failure::Lasting(Error::invalid(format!(
                "{place}: the server's certificate is not trusted ({why}): install its authority's on master and workers, or name a bundle in their variable SSL_CERT_FILE"
            )));
        }
        Failure::Passing(Error::unavailable(format!("{place}: {why}")), None)
    }

    /// What an answer with another status than a success means; reads a little of its body.
    pub async fn refused(&self, url: &Url, response: Response) -> Failure {
        let place = self.hidden.url(url);
        let (status, after) = (
            response.status(),
            retry_after(response.headers(), Utc::now()),
        );
        let said = match tokio::time::timeout(self.timeout(), excerpt(response)).await {
            Ok(text) if !text.is_empty() => format!(": {}", self.hidden.hide(&text)),
            _ => String::new(),
        };
        let passing = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
            || matches!(status.as_u16(), 408 | 425 | 429);
        if passing {
            let wait = after.map_or_else(String::new, |after| {
                format!(", and asks to wait for {} s", after.as_secs())
            });
            let error = format!("{place} answers {status}{wait}{said}");
            return Failure::Passing(Error::unavailable(error), after);
        }
        let advice = match status.as_u16() {
            401 | 403 | 407 => {
                "; check the token or the key, in a header ('header.Authorization' 'Bearer …') or in LOCATION"
            }
            404 | 410 => "; check the path in LOCATION",
            _ => "",
        };
        Failure::Lasting(Error::invalid(format!(
            "{place} answers {status}{said}{advice}"
        )))
    }
}

/// How long a server asks to wait (RFC 9110, section 10.2.3): seconds, or until a time.
pub fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = DateTime::parse_from_rfc2822(text).ok()?;
    Some((until.to_utc() - now).to_std().unwrap_or_default())
}

/// The pause after so many failures in a row: twice as long after each, and up to a quarter shorter, so that those who
/// failed together do not come back together.
pub fn pause(failures: u32) -> Duration {
    let pause = FIRST_PAUSE * 2_u32.saturating_pow(failures.saturating_sub(1).min(10));
    pause
        .min(LONGEST_PAUSE)
        .mul_f64(rand::random_range(0.75..=1.0))
}

/// The beginning of an answer, on one line.
async fn excerpt(mut response: Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < EXCERPT
        && let Ok(Some(chunk)) = response.chunk().await
    {
        bytes.extend_from_slice(&chunk);
    }
    shortened(&bytes)
}

/// The beginning of a text, on one line.
pub fn shortened(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(EXCERPT)]).into_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ")
}

/// The causes of an error, without the URL, which may hold keys.
fn reason(error: &reqwest::Error) -> String {
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    let mut causes: Vec<String> = Vec::new();
    while let Some(current) = cause {
        let text = current.to_string();
        // Some say what their cause says.
        if causes.last().is_none_or(|last| !last.contains(&text)) {
            causes.push(text);
        }
        cause = current.source();
    }
    if causes.is_empty() {
        return if error.is_body() || error.is_decode() {
            "the answer broke off".to_owned()
        } else {
            "the request failed".to_owned()
        };
    }
    causes.join(": ")
}

/// Whether a token or a password would go over the network for all to read.
pub fn in_clear(url: &Url, access: &Access) -> bool {
    let host = url.host_str().unwrap_or_default();
    let near = host == "localhost" || host.starts_with("127.") || host == "[::1]";
    let secret = access.has_header("authorization") || url.password().is_some();
    url.scheme() == "http" && !near && secret
}

/// The server of a table, for [`reach`].
///
/// # Errors
/// None: the payload holds texts.
pub fn endpoint(connector: &str, access: &Access, url: &Url) -> Result<Endpoint> {
    Ok(Endpoint {
        connector: connector.to_owned(),
        name: format!("{connector} at {}", url.origin().ascii_serialization()),
        payload: serde_json::to_vec(&(access, url.as_str()))
            .map_err(|e| Error::internal(e.to_string()))?,
    })
}

/// Looks whether the server of an [`endpoint`] answers, by a HEAD request.
///
/// # Errors
/// It does not, or refuses the credentials.
pub async fn reach(payload: &[u8], deadline: Duration) -> Result<String> {
    let (access, url): (Access, String) = serde_json::from_slice(payload)
        .map_err(|e| Error::internal(format!("an endpoint of another version: {e}")))?;
    let url = Url::parse(&url).map_err(|e| Error::internal(e.to_string()))?;
    let request = access.request(Method::HEAD, &url)?.timeout(deadline);
    let response = request.send().await.map_err(|e| access.failed(&url, &e))?;
    match response.status().as_u16() {
        401 | 403 | 407 => Err(access.refused(&url, response).await.into()),
        status => Ok(format!("answers a HEAD request with {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_server_says_how_long_to_wait_in_seconds_or_until_when() {
        let now = DateTime::parse_from_rfc3339("2026-01-31T12:00:00Z")
            .unwrap()
            .to_utc();
        let after = |text| retry_after(&headers(text), now);
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(
            after("Sat, 31 Jan 2026 12:00:30 GMT"),
            Some(Duration::from_secs(30))
        );
        assert_eq!(after("Sat, 31 Jan 2026 11:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
    }

    #[test]
    fn pauses_grow_to_a_minute() {
        assert!(pause(1) <= Duration::from_millis(500));
        assert!(pause(3) >= Duration::from_millis(1500));
        assert!(pause(1000) <= Duration::from_secs(60));
        assert!(pause(1000) >= Duration::from_secs(45));
    }

    #[test]
    fn headers_are_checked_and_never_shown() {
        let given = [(
            "header.Authorization".to_owned(),
            "Bearer s3cr3t".to_owned(),
        )];
        let mut options = Options::new("t", given.iter().map(|(k, v)| (k, v))).unwrap();
        let access = Access::take(&mut options).unwrap();
        assert!(access.has_header("authorization"));
        assert!(!format!("{access:?}").contains("s3cr3t"));
        let given = [("header.X-Key".to_owned(), "s3cr3t\n".to_owned())];
        let mut options = Options::new("t", given.iter().map(|(k, v)| (k, v))).unwrap();
        let error = Access::take(&mut options).unwrap_err().to_string();
        assert!(
            error.contains("header.x-key") && !error.contains("s3cr3t"),
            "{error}"
        );
    }
}
