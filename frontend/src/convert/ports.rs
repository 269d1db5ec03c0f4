//! What EXPOSE takes: `80`, `80-90/udp`, and Docker's `ip:host:container` of old.

/// What is wrong with a port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PortError {
    #[error("no port specified: {0}<empty>")]
    Empty(String),
    #[error("invalid proto: {0}")]
    Protocol(String),
    #[error("invalid containerPort: {0}")]
    Container(String),
    #[error("invalid hostPort: {0}")]
    Host(String),
    #[error("invalid IP address: {0}")]
    Address(String),
    #[error("invalid ranges specified for container and host Ports: {container} and {host}")]
    Ranges { container: String, host: String },
}

/// The ports that `text` means, each as `80/tcp`.
pub(super) fn parse(text: &str) -> Result<Vec<String>, PortError> {
    let mut parts = text.rsplitn(3, ':');
    let container = parts.next().unwrap_or("");
    let host = parts.next().unwrap_or("");
    let address = parts.next().unwrap_or("");

    let (port, protocol) = container.split_once('/').unwrap_or((container, ""));
    if port.is_empty() {
        return Err(PortError::Empty(container.to_owned()));
    }
    let protocol = match protocol.to_lowercase() {
        protocol if protocol.is_empty() => "tcp".to_owned(),
        protocol if matches!(protocol.as_str(), "tcp" | "udp" | "sctp") => protocol,
        protocol => return Err(PortError::Protocol(protocol)),
    };
    let bare = address.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(address);
    if !address.is_empty() && bare.parse::<std::net::IpAddr>().is_err() {
        return Err(PortError::Address(address.to_owned()));
    }
    let (first, last) = range(port).ok_or_else(|| PortError::Container(port.to_owned()))?;
    if !host.is_empty() {
        let (host_first, host_last) = range(host).ok_or_else(|| PortError::Host(host.to_owned()))?;
        if last != first && last - first != host_last - host_first {
            return Err(PortError::Ranges { container: port.to_owned(), host: host.to_owned() });
        }
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok())?;
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_ranges_and_protocols() {
        for (text, expected) in [
            ("80", &["80/tcp"][..]),
            ("53/UDP", &["53/udp"]),
            ("1-3/sctp", &["1/sctp", "2/sctp", "3/sctp"]),
            ("8080:80", &["80/tcp"]),
            ("127.0.0.1:8080:80", &["80/tcp"]),
            ("[::1]:8080:80", &["80/tcp"]),
            ("8000-8010:80", &["80/tcp"]),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        for bad in ["", "/tcp", "80/x", "a", "3-1", "70000", "x:80", "1.2.3:1:80", "1-2:3-5", "-1", "+1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
