//! Downloads against a server that breaks off, moves and forgets.

use std::time::Duration;

use store::registry::web::{Chunk, Fetched, Validators, WebError, WebRequest};
use store::registry::{Client, Config, Timing};
use tests::{Page, Web};

const MS: Duration = Duration::from_millis(1);

fn client() -> Client {
    let timing = Timing { first_wait: 5 * MS, longest_wait: 20 * MS, budget: 500 * MS, ..Timing::default() };
    Client::new(Config { timing, ..Config::default() })
}

fn request(url: &str) -> WebRequest {
    WebRequest { url: url.to_owned(), authorization: None, validators: Validators::default(), limit: 1 << 20 }
}

/// The bytes and their validators; `None` if the file is unchanged.
fn fetch(request: WebRequest) -> Result<Option<(Vec<u8>, Validators)>, WebError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut stream = match client().fetch(request).await? {
            Fetched::NotModified => return Ok(None),
            Fetched::Body(stream) => stream,
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await? {
            match chunk {
                Chunk::Data(data) => bytes.extend_from_slice(&data),
                Chunk::Restart => bytes.clear(),
            }
        }
        Ok(Some((bytes, stream.validators().clone())))
    })
}

#[test]
fn a_download_goes_on_where_it_broke_or_starts_over() {
    let web = Web::start();
    let body: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    let page = Page { breaks_after: Some(100_000), ranges: true, ..Page::new(body.clone()) };
    web.put("resumed", page.clone().with("ETag", "\"1\""));
    web.put("weak", page.clone().with("ETag", "W/\"1\""));
    web.put("plain", page);
    for (path, resumed) in [("resumed", true), ("weak", false), ("plain", false)] {
        let (bytes, _) = fetch(request(&web.url(path))).unwrap().unwrap();
        assert!(bytes == body, "{path}");
        let requests = web.requests(path);
        assert_eq!(requests.len(), 2, "{path}");
        assert_eq!(requests[1].header("range").is_some(), resumed, "{path}");
    }
}

#[test]
fn an_unchanged_file_is_not_sent_again() {
    let web = Web::start();
    for (path, header) in
        [("tagged", ("ETag", "\"a\"")), ("dated", ("Last-Modified", "Thu, 01 Jan 1970 00:01:00 GMT"))]
    {
        web.put(path, Page::new("x").with(header.0, header.1));
        let (_, validators) = fetch(request(&web.url(path))).unwrap().unwrap();
        let again = || WebRequest { validators: validators.clone(), ..request(&web.url(path)) };
        assert!(fetch(again()).unwrap().is_none());
        web.put(path, Page::new("y").with("ETag", "\"b\""));
        assert_eq!(fetch(again()).unwrap().unwrap().0, b"y");
    }
}

#[test]
fn credentials_stay_with_their_host() {
    let (here, there) = (Web::start(), Web::start());
    here.put("a", Page::redirect("/b"));
    here.put("b", Page { authorization: Some("Bearer t".to_owned()), ..Page::redirect(&there.url("c")) });
    there.put("c", Page::new("x"));
    let authorization = Some("Bearer t".to_owned());
    let (bytes, _) = fetch(WebRequest { authorization, ..request(&here.url("a")) }).unwrap().unwrap();
    assert_eq!(bytes, b"x");
    assert_eq!(there.requests("/c")[0].header("authorization"), None);
    assert_eq!(
        fetch(request(&here.url("a"))).unwrap_err().to_string().split("server").nth(1),
        Some(" answered 401 Unauthorized")
    );
}

#[test]
fn what_cannot_be_had_is_refused_in_words() {
    let web = Web::start();
    web.put("circle", Page::redirect("/circle"));
    web.put("out", Page::redirect("file:///etc/passwd"));
    web.put("long", Page::new(vec![0; 2 << 20]));
    web.put("busy", Page { status: Some(503), ..Page::default() });
    let error = |path: &str| fetch(request(&web.url(path))).unwrap_err();
    assert!(matches!(error("missing"), WebError::Status { status, .. } if status == 404));
    assert!(error("circle").to_string().contains("more than 10 redirects"));
    assert_eq!(web.requests("circle").len(), 11);
    assert!(matches!(error("out"), WebError::Redirect { .. }));
    assert!(matches!(error("long"), WebError::TooLong { .. }));
    assert!(matches!(error("busy"), WebError::Unavailable { attempts: 2.., .. }));
    assert!(matches!(fetch(request("ftp://h/x")), Err(WebError::Url { .. })));
}
