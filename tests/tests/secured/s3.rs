//! S3 with credentials that no variable holds: a pod's identity and the machine's role, given out by a server that is
//! the bucket too.

use anyhow::{Context, Result};
use essaim_tests::cluster::Cluster;
use essaim_tests::sql::integers;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

const FILE: &str = "n\n1\n2\n39\n";
const DATE: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

/// Gives out credentials and a bucket with one file.
struct Server {
    address: SocketAddr,
    /// The keys with which the bucket was asked.
    keys: Arc<Mutex<BTreeSet<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl Server {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let keys: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let seen = Arc::clone(&keys);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&seen)));
            }
        });
        Ok(Self {
            address,
            keys,
            _task: AbortOnDropHandle::new(task),
        })
    }

    fn keys(&self) -> Result<Vec<String>> {
        let keys = self.keys.lock().ok().context("a request broke down")?;
        Ok(keys.iter().cloned().collect())
    }
}

/// The head of a request, in lower case but for its values.
struct Request(String);

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn target(&self) -> (&str, &str) {
        let mut words = self.0.split(' ');
        (words.next().unwrap_or(""), words.next().unwrap_or(""))
    }
}

async fn answer(mut stream: TcpStream, keys: Arc<Mutex<BTreeSet<String>>>) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let request = Request(String::from_utf8(head)?);
    let (status, headers, body) = respond(&request, &keys);
    let mut response = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}");
    write!(response, "Content-Length: {}\r\n\r\n", body.len())?;
    if request.target().0 != "HEAD" {
        response.push_str(&body);
    }
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

fn credentials(key: &str) -> String {
    format!(
        r#"{{"AccessKeyId": "{key}", "SecretAccessKey": "s", "Token": "t", "Expiration": "2099-01-01T00:00:00Z"}}"#
    )
}

fn respond(request: &Request, keys: &Mutex<BTreeSet<String>>) -> (&'static str, String, String) {
    let ok = |body: String| ("200 OK", String::new(), body);
    let refused = || ("403 Forbidden", String::new(), String::new());
    match request.target() {
        ("GET", "/pod") => match request.header("authorization") {
            Some("the pod's token") => ok(credentials("KEYOFPOD")),
            _ => refused(),
        },
        ("PUT", "/latest/api/token") => ok("session".to_owned()),
        ("GET", "/latest/meta-data/iam/security-credentials/") => ok("role".to_owned()),
        ("GET", "/latest/meta-data/iam/security-credentials/role") => {
            match request.header("x-aws-ec2-metadata-token") {
                Some("session") => ok(credentials("KEYOFMACHINE")),
                _ => refused(),
            }
        }
        (_, target) if target.starts_with("/toots") => {
            let signed = request.header("authorization").unwrap_or_default();
            let key = signed
                .split_once("Credential=")
                .and_then(|(_, rest)| rest.split_once('/'))
                .map(|(key, _)| key.to_owned());
            let (Some(key), Ok(mut keys)) = (key, keys.lock()) else {
                return refused();
            };
            keys.insert(key);
            bucket(request, target)
        }
        _ => ("404 Not Found", String::new(), String::new()),
    }
}

fn bucket(request: &Request, target: &str) -> (&'static str, String, String) {
    if target.starts_with("/toots/in/1.csv") {
        let mut headers = format!("Last-Modified: {DATE}\r\nETag: \"1\"\r\n");
        let range = request
            .header("range")
            .and_then(|range| range.strip_prefix("bytes="))
            .and_then(|range| range.split_once('-'));
        let Some((start, end)) = range else {
            return ("200 OK", headers, FILE.to_owned());
        };
        let start = start.parse().unwrap_or(0);
        let end = end
            .parse()
            .map_or(FILE.len(), |end: usize| (end + 1).min(FILE.len()));
        headers.push_str(&format!(
            "Content-Range: bytes {start}-{}/{}\r\n",
            end - 1,
            FILE.len()
        ));
        return ("206 Partial Content", headers, FILE[start..end].to_owned());
    }
    let list = format!(
        "<ListBucketResult><Name>toots</Name><IsTruncated>false</IsTruncated><Contents><Key>in/1.csv</Key>\
         <LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"1\"</ETag><Size>{}</Size></Contents></ListBucketResult>",
        FILE.len()
    );
    (
        "200 OK",
        "Content-Type: application/xml\r\n".to_owned(),
        list,
    )
}

#[tokio::test]
async fn a_bucket_is_read_with_the_credentials_of_the_pod_or_the_machine() -> Result<()> {
    let server = Server::start().await?;
    let at = format!("http://{}", server.address);
    let token = tempfile::NamedTempFile::new()?;
    std::fs::write(token.path(), "the pod's token")?;
    let token = token.path().display().to_string();
    let pod = format!("{at}/pod");
    let base = [
        ("AWS_ENDPOINT_URL", at.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "eu-west-3"),
        ("ESSAIM_FILE_ROOTS", "s3://toots/in"),
    ];
    let of_pod = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", pod.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.as_str()),
    ];
    let of_machine = [("AWS_METADATA_ENDPOINT", at.as_str())];
    for (variables, keys) in [
        (of_pod.as_slice(), vec!["KEYOFPOD"]),
        (of_machine.as_slice(), vec!["KEYOFMACHINE", "KEYOFPOD"]),
    ] {
        let cluster = Cluster::start_under(1, 1, &[base.as_slice(), variables].concat()).await?;
        let client = cluster.client().await?;
        let sql = "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 's3://toots/in/' OPTIONS (has_header 'true');
                   SELECT sum(n) FROM t";
        assert_eq!(integers(&client.query(sql).await?, 0)?, [42]);
        assert_eq!(server.keys()?, keys);
        let outside = sql.replace("toots/in/", "toots/other/");
        crate::refused(&client, &outside, "39", &["--file-roots"]).await?;
    }
    Ok(())
}
