//! From page to page: by a header `Link`, by number, or by a cursor that each answer names.

use super::body::{self, Document};
use super::fetch::{Answer, Fetcher, Validators};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::sources::feed::entry::{Entry, Meta};
use bytes::Bytes;
use chrono::Utc;
use serde::{Deserialize, Serialize};
use serde_json_path::JsonPath;
use std::sync::Arc;
use url::Url;

/// Pages that are asked for where `max_pages` is not given: more are an error, not an end.
const MANY_PAGES: u32 = 1_000;

/// How one comes from a page to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Paging {
    /// There is one page.
    None,
    /// By the `Link` with `rel="next"` (RFC 8288).
    Link,
    /// By a number in a parameter, until a page has no records.
    Page { param: String, first: i64 },
    /// By a text of the answer in a parameter, until there is none.
    Cursor { param: String, path: String },
}

/// What is read of which pages. Travels to workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagePlan {
    paging: Paging,
    /// Where the records are in a document.
    json_path: Option<String>,
    max_pages: Option<u32>,
}

impl PagePlan {
    /// Takes `json_path`, `paging` and its options, and `max_pages`.
    ///
    /// # Errors
    /// A value that is wrong or missing, or that goes with another paging.
    pub fn take(options: &mut Options) -> Result<Self> {
        let json_path = options.text("json_path");
        let kind = options.one_of(
            "paging",
            &[("none", 0), ("link", 1), ("page", 2), ("cursor", 3)],
        )?;
        let page_param = options.text("page_param");
        let first_page = options.parsed("first_page")?;
        let cursor_param = options.text("cursor_param");
        let cursor_path = options.text("cursor_path");
        let max_pages = options.parsed("max_pages")?;
        if kind != 2 && (page_param.is_some() || first_page.is_some()) {
            return Err(options.error("page_param and first_page go with paging 'page'"));
        }
        if kind != 3 && (cursor_param.is_some() || cursor_path.is_some()) {
            return Err(options.error("cursor_param and cursor_path go with paging 'cursor'"));
        }
        if kind == 0 && max_pages.is_some() {
            return Err(options.error("max_pages goes with paging 'link', 'page' or 'cursor'"));
        }
        if max_pages == Some(0) {
            return Err(options.error("option max_pages '0': write at least 1"));
        }
        let paging = match kind {
            1 => Paging::Link,
            2 => Paging::Page {
                param: page_param.unwrap_or_else(|| "page".to_owned()),
                first: first_page.unwrap_or(1),
            },
            3 => match (cursor_param, cursor_path) {
                (Some(param), Some(path)) => Paging::Cursor { param, path },
                _ => {
                    return Err(options.error(
                        "paging 'cursor' needs cursor_path, where an answer has the cursor ('$.next_page_cursor'), and cursor_param, the parameter that it goes into",
                    ));
                }
            },
            _ => Paging::None,
        };
        let plan = Self {
            paging,
            json_path,
            max_pages,
        };
        plan.compile().map_err(|e| options.error(e))?;
        Ok(plan)
    }

    /// The paths, ready to be followed.
    ///
    /// # Errors
    /// One that is none.
    pub fn compile(&self) -> Result<Paths> {
        Ok(Paths {
            records: self.json_path.as_deref().map(body::path).transpose()?,
            cursor: match &self.paging {
                Paging::Cursor { path, .. } => Some(body::path(path)?),
                _ => None,
            },
        })
    }
}

/// The compiled paths of a [`PagePlan`].
#[derive(Debug)]
pub struct Paths {
    records: Option<JsonPath>,
    cursor: Option<JsonPath>,
}

/// What the paths find in one document.
struct Found {
    records: Vec<Bytes>,
    cursor: Option<String>,
}

impl Paths {
    fn find(&self, body: &[u8]) -> Result<Found> {
        let document = Document::new(body, self.records.is_some() || self.cursor.is_some())?;
        Ok(Found {
            records: document.records(self.records.as_ref())?,
            cursor: self.cursor.as_ref().and_then(|path| document.text(path)),
        })
    }
}

/// Where the reading of one URL stands between two polls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    #[serde(flatten)]
    validators: Validators,
    /// The cursor of the page to begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

/// What all pages of a table have in common, in this process.
#[derive(Debug)]
pub struct Pages {
    pub fetcher: Fetcher,
    plan: PagePlan,
    paths: Paths,
}

/// The records of one answer.
#[derive(Debug)]
pub struct Page {
    pub records: Vec<Entry>,
    /// Where the next poll goes on.
    pub standing: Standing,
}

/// The reading of one URL, page after page.
pub struct Walk {
    pages: Arc<Pages>,
    url: Url,
    /// The page to ask for; `None` at the end.
    next: Option<Url>,
    standing: Standing,
    /// Whether it is one of many polls: then documents that have not changed are left out.
    polls: bool,
    number: i64,
    asked: u32,
}

impl Pages {
    /// What a plan says, with its own rate.
    ///
    /// # Errors
    /// A path that is none.
    pub fn new(fetcher: Fetcher, plan: PagePlan) -> Result<Self> {
        let paths = plan.compile()?;
        Ok(Self {
            fetcher,
            plan,
            paths,
        })
    }
}

impl Walk {
    /// Begins with the first page of `url`, or where the poll before stood.
    pub fn new(pages: Arc<Pages>, url: Url, before: Option<Standing>) -> Self {
        let polls = before.is_some();
        let standing = before.unwrap_or_default();
        let number = match pages.plan.paging {
            Paging::Page { first, .. } => first,
            _ => 0,
        };
        let mut walk = Self {
            pages,
            url,
            next: None,
            standing,
            polls,
            number,
            asked: 0,
        };
        walk.next = Some(walk.first());
        walk
    }

    fn first(&self) -> Url {
        match (&self.pages.plan.paging, &self.standing.cursor) {
            (Paging::Page { param, first }, _) => with_param(&self.url, param, &first.to_string()),
            (Paging::Cursor { param, .. }, Some(cursor)) => with_param(&self.url, param, cursor),
            _ => self.url.clone(),
        }
    }

    /// The URL that is read, as people may see it.
    pub fn shown(&self) -> String {
        self.pages.fetcher.shown(&self.url)
    }

    /// The next page; `None` after the last.
    ///
    /// # Errors
    /// As [`Fetcher::ask`]; an answer that is no JSON; pages without end.
    pub async fn next(&mut self) -> Result<Option<Page>> {
        let Some(url) = self.next.take() else {
            return Ok(None);
        };
        let pages = Arc::clone(&self.pages);
        // A first page that has not changed says nothing of those behind it.
        let fetcher = &pages.fetcher;
        let conditional =
            self.polls && pages.plan.paging == Paging::None && !fetcher.requests.are_posts();
        let known = conditional.then_some(&self.standing.validators);
        let answer = fetcher.ask(&url, known).await?;
        let Some(body) = &answer.body else {
            return Ok(None);
        };
        let shown = fetcher.shown(&url);
        self.asked += 1;
        // A large document takes a while: not for an async thread.
        let (parsed, unread) = (Arc::clone(&pages), body.clone());
        let found = tokio::task::spawn_blocking(move || parsed.paths.find(&unread))
            .await
            .map_err(|e| Error::internal(format!("an answer was not read: {e}")))?;
        found
            .and_then(|found| self.page(&url, &shown, &answer, found))
            .map(Some)
            .map_err(|e| {
                let text = pages.fetcher.requests.access.hidden.hide(&e.to_string());
                Error::new(e.kind(), format!("{shown}: {text}"))
            })
    }

    fn page(&mut self, url: &Url, shown: &str, answer: &Answer, found: Found) -> Result<Page> {
        let Found { records, cursor } = found;
        let meta = Meta {
            origin: shown.to_owned(),
            id: None,
            status: Some(answer.status),
            at_ms: Utc::now().timestamp_millis(),
        };
        self.next = self.follow(url, answer, records.is_empty(), cursor.as_deref())?;
        self.standing = Standing {
            validators: answer.validators.clone(),
            // A page without records that names no other is asked for again by the next poll.
            cursor: cursor.or_else(|| {
                let before = self.standing.cursor.take();
                before.filter(|_| records.is_empty())
            }),
        };
        self.within_limit()?;
        let records = records.into_iter().map(|payload| Entry {
            meta: meta.clone(),
            mark: None,
            payload,
        });
        Ok(Page {
            records: records.collect(),
            standing: self.standing.clone(),
        })
    }

    /// The page after this one, if there is any.
    fn follow(
        &mut self,
        url: &Url,
        answer: &Answer,
        empty: bool,
        cursor: Option<&str>,
    ) -> Result<Option<Url>> {
        Ok(match &self.pages.plan.paging {
            Paging::None => None,
            Paging::Link => match next_link(&answer.links) {
                Some(link) => Some(self.linked(url, link)?),
                None => None,
            },
            Paging::Page { .. } | Paging::Cursor { .. } if empty => None,
            Paging::Page { param, .. } => {
                self.number += 1;
                Some(with_param(&self.url, param, &self.number.to_string()))
            }
            Paging::Cursor { param, .. } => cursor
                .filter(|cursor| self.standing.cursor.as_deref() != Some(cursor))
                .map(|cursor| with_param(&self.url, param, cursor)),
        })
    }

    /// A link of an answer. The table's headers go with the request, so it stays with the server.
    fn linked(&self, url: &Url, link: &str) -> Result<Url> {
        let next = url
            .join(link)
            .map_err(|e| Error::data(format!("its Link to the next page is no URL: {e}")))?;
        if next.origin() != url.origin() {
            return Err(Error::invalid(format!(
                "its Link to the next page leads to another server, {}: write that in LOCATION if it is to be asked",
                next.origin().ascii_serialization()
            )));
        }
        Ok(next)
    }

    fn within_limit(&mut self) -> Result<()> {
        if self.next.is_none() || self.asked < self.pages.plan.max_pages.unwrap_or(MANY_PAGES) {
            return Ok(());
        }
        // A cursor says where the next poll goes on, so nothing is left out.
        let goes_on = self.polls && self.standing.cursor.is_some();
        if self.pages.plan.max_pages.is_none() && !goes_on {
            return Err(Error::exhausted(format!(
                "there are more than {MANY_PAGES} pages: set max_pages to how many are to be read"
            )));
        }
        self.next = None;
        Ok(())
    }
}

/// The URL with this value of a parameter in place of those that it has.
fn with_param(url: &Url, param: &str, value: &str) -> Url {
    let others: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| name != param)
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    let mut with = url.clone();
    with.query_pairs_mut()
        .clear()
        .extend_pairs(others)
        .append_pair(param, value);
    with
}

/// The target of the link with the relation `next` among headers `Link` (RFC 8288, section 3).
fn next_link(headers: &[String]) -> Option<&str> {
    headers.iter().find_map(|header| {
        let mut rest = header.as_str();
        while let Some(start) = rest.find('<') {
            let (target, params) = rest[start + 1..].split_once('>')?;
            // The parameters end where the next link begins.
            let end = params.find('<').unwrap_or(params.len());
            if params[..end].split([';', ',']).any(is_next) {
                return Some(target);
            }
            rest = &params[end..];
        }
        None
    })
}

fn is_next(param: &str) -> bool {
    let Some((name, value)) = param.split_once('=') else {
        return false;
    };
    let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
    name.trim().eq_ignore_ascii_case("rel") && relations.any(|r| r.eq_ignore_ascii_case("next"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_links() {
        let find = |header: &str| next_link(&[header.to_owned()]).map(str::to_owned);
        let github =
            r#"<https://h/a?page=1>; rel="prev", <https://h/a?page=3>; title="a, b"; rel="next""#;
        assert_eq!(find(github).as_deref(), Some("https://h/a?page=3"));
        assert_eq!(find("</b?x=1>;REL=next").as_deref(), Some("/b?x=1"));
        assert_eq!(find(r#"<x>; rel="last next""#).as_deref(), Some("x"));
        assert_eq!(find(r#"<x>; rel="nextish", <y>"#), None);
        assert_eq!(find("nonsense"), None);
    }

    #[test]
    fn a_parameter_takes_the_place_of_its_like() {
        let url = Url::parse("https://h/a?page=9&q=a%20b").unwrap();
        let with = with_param(&url, "page", "2&3");
        assert_eq!(with.as_str(), "https://h/a?q=a+b&page=2%263");
    }

    fn taken(given: &[(&str, &str)]) -> Result<PagePlan> {
        let given: Vec<(String, String)> = given
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        PagePlan::take(&mut Options::new("t", given.iter().map(|(k, v)| (k, v)))?)
    }

    #[test]
    fn options_of_another_paging_are_refused() {
        let error = |given| taken(given).unwrap_err().to_string();
        assert!(error(&[("max_pages", "3")]).contains("goes with paging"));
        assert!(error(&[("paging", "link"), ("page_param", "p")]).contains("paging 'page'"));
        assert!(error(&[("paging", "cursor")]).contains("needs cursor_path"));
        assert!(error(&[("json_path", "list")]).contains("is no JSON path"));
        assert!(taken(&[("paging", "page"), ("first_page", "0")]).is_ok());
    }
}
