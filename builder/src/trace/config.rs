//! Where traces go, as OpenTelemetry's variables say.

use std::time::Duration;

/// A collector, and how spans are given to it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) url: String,
    /// Tokens may be among them.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) timeout: Duration,
    pub(crate) gzip: bool,
    pub(crate) service: String,
    /// Of the resource.
    pub(crate) attributes: Vec<(String, String)>,
    /// What the build is a part of.
    pub(crate) parent: Option<Parent>,
    /// `TRACESTATE`
    pub(crate) state: String,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("url", &self.url).finish_non_exhaustive()
    }
}

/// A span of whoever started rbuild.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) trace: [u8; 16],
    pub(crate) span: [u8; 8],
}

impl Config {
    /// `None`: nothing is to be sent. `Err`: something is, and this is why it cannot.
    pub(crate) fn new(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        // What is said for traces wins over what is said for all signals.
        let either = |name: &str| {
            get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
                .or_else(|| get(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let url = match (get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), get("OTEL_EXPORTER_OTLP_ENDPOINT")) {
            (Some(url), _) => url,
            (None, Some(base)) => format!("{}/v1/traces", base.trim_end_matches('/')),
            (None, None) => return Ok(None),
        };
        let is_off = get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || get("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none")
            || get("OTEL_TRACES_SAMPLER").is_some_and(|value| value == "always_off");
        let parent = get("TRACEPARENT").and_then(|text| parent(&text));
        let is_sampled = parent.is_none_or(|(_, is_sampled)| is_sampled);
        if is_off || !is_sampled {
            return Ok(None);
        }
        match either("PROTOCOL").as_deref() {
            // A collector takes both on one address.
            None | Some("http/json" | "http/protobuf") => {}
            Some(other) => {
                return Err(format!("the OTLP protocol {other:?} is not supported, only http/json"));
            }
        }
        let attributes: Vec<(String, String)> =
            get("OTEL_RESOURCE_ATTRIBUTES").map(|text| pairs(&text)).unwrap_or_default();
        let named =
            attributes.iter().find(|(name, _)| name == "service.name").map(|(_, value)| value.clone());
        let timeout = either("TIMEOUT").and_then(|text| text.parse().ok()).unwrap_or(10_000);
        Ok(Some(Self {
            url,
            headers: either("HEADERS").map(|text| pairs(&text)).unwrap_or_default(),
            timeout: Duration::from_millis(timeout),
            gzip: either("COMPRESSION").is_some_and(|value| value == "gzip"),
            service: get("OTEL_SERVICE_NAME").or(named).unwrap_or_else(|| "rbuild".to_owned()),
            attributes: attributes.into_iter().filter(|(name, _)| name != "service.name").collect(),
            parent: parent.map(|(parent, _)| parent),
            state: get("TRACESTATE").unwrap_or_default(),
        }))
    }
}

/// `00-<trace>-<span>-<flags>` (W3C Trace Context), and whether it is recorded. What is not well formed is no parent.
fn parent(text: &str) -> Option<(Parent, bool)> {
    let mut parts = text.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_known = version.len() == 2 && version != "ff" && (version != "00" || parts.next().is_none());
    let parent = Parent { trace: bytes(trace)?, span: bytes(span)? };
    let [flags] = bytes::<1>(flags)?;
    (is_known && parent.trace != [0; 16] && parent.span != [0; 8]).then_some((parent, flags & 1 == 1))
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

/// `name=value,name=value`, values percent-encoded.
fn pairs(text: &str) -> Vec<(String, String)> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_owned(), decoded(value.trim()))).collect()
}

fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                out.push(byte);
                rest = &tail[2..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Config>, String> {
        Config::new(&|name| {
            pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_variables_of_opentelemetry_say_where_to() {
        let on = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/");
        let config = |more: (&str, &str)| read(&[on, more]).unwrap();
        let plain = config(("", "")).unwrap();
        assert_eq!((plain.url.as_str(), plain.service.as_str()), ("http://c:4318/v1/traces", "rbuild"));
        let own = config(("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://d/x")).unwrap();
        assert_eq!(own.url, "http://d/x");
        let headers = config(("OTEL_EXPORTER_OTLP_HEADERS", "a=Bearer%20x, b=1")).unwrap().headers;
        assert_eq!(headers, [("a".to_owned(), "Bearer x".to_owned()), ("b".to_owned(), "1".to_owned())]);
        assert_eq!(config(("OTEL_SERVICE_NAME", "ci")).unwrap().service, "ci");
        assert_eq!(config(("OTEL_RESOURCE_ATTRIBUTES", "service.name=ci")).unwrap().service, "ci");
        assert!(config(("OTEL_SDK_DISABLED", "true")).is_none());
        assert!(config(("OTEL_TRACES_EXPORTER", "none")).is_none());
        assert!(read(&[]).unwrap().is_none());
        assert!(read(&[on, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).is_err());
    }

    #[test]
    fn the_callers_trace_goes_on() {
        let with = |value: &str| {
            read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"), ("TRACEPARENT", value)]).unwrap()
        };
        let parent = with(&format!("{TRACE}-01")).unwrap().parent.unwrap();
        assert_eq!((parent.trace[0], parent.span[7]), (0x0a, 0x31));
        assert!(with(&format!("{TRACE}-00")).is_none(), "it is not recorded");
        for bad in ["x", "00-00-00-01", &format!("{TRACE}-01-more"), &format!("ff{}-01", &TRACE[2..])] {
            assert_eq!(with(bad).unwrap().parent, None, "{bad}");
        }
    }
}
