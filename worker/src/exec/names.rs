//! `/etc/hosts` and `/etc/resolv.conf` of a sandbox: text in, text out.

/// Text of `/etc/hosts`: the loopback names, then `extra` (name and address).
pub fn hosts(hostname: &str, extra: &[(String, String)]) -> String {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in extra {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text
}

/// Text of `/etc/resolv.conf` for a sandbox, from the host's. A sandbox that shares the host's network gets it as it
/// is; in any other one the host's loopback addresses lead nowhere, so they are dropped, and Google's public servers
/// are named if none is left, as Docker does.
pub fn resolv_conf(host: &str, shares_host_network: bool) -> String {
    let usable = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        words.next() != Some("nameserver")
            || words.next().is_some_and(|server| shares_host_network || !is_loopback(server))
    };
    let mut text: String = host.lines().filter(|line| usable(line)).flat_map(|line| [line, "\n"]).collect();
    if nameservers(&text).next().is_none() {
        text.push_str("nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
    }
    text
}

fn nameservers(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    })
}

fn is_loopback(server: &str) -> bool {
    let address = server.split('%').next().unwrap_or(server);
    address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_has_loopback_first_and_then_the_extra_names() {
        let text = hosts("box", &[("db".into(), "10.0.0.2".into())]);
        assert_eq!(
            text,
            "127.0.0.1\tlocalhost box\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.2\tdb\n"
        );
    }

    #[test]
    fn loopback_servers_are_dropped_outside_the_hosts_network() {
        let public = "nameserver 8.8.8.8\nnameserver 8.8.4.4\n";
        for (host, shared, want) in [
            ("", false, public.to_owned()),
            ("", true, public.to_owned()),
            ("search x\nnameserver 127.0.0.1\n", false, format!("search x\n{public}")),
            ("search x\nnameserver 127.0.0.1\n", true, "search x\nnameserver 127.0.0.1\n".to_owned()),
            ("nameserver ::1\nnameserver 10.0.0.1", false, "nameserver 10.0.0.1\n".to_owned()),
            ("# nameserver 1.1.1.1\nnameserver\n", false, format!("# nameserver 1.1.1.1\n{public}")),
        ] {
            assert_eq!(resolv_conf(host, shared), want, "{host:?}");
        }
    }
}
