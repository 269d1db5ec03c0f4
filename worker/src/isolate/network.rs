//! Published ports: connections to the host's port are passed on into the sandbox, in user space, TCP only.
//!
//! A sandbox that shares the host's network needs nothing if the numbers are the same; one with a network of its own is
//! reached by a thread that lives in that network.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream as StdStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::exec::Network;
use crate::sys::setns::enter_network_of;

/// `-p [ip:]host:container`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Address on the host; port 0 takes any.
    pub host: SocketAddr,
    /// Port in the sandbox.
    pub port: u16,
}

/// A port that could not be published.
#[derive(Debug, thiserror::Error)]
#[error("could not publish port {port} at {host}: {source}")]
pub struct PublishError {
    host: SocketAddr,
    port: u16,
    source: io::Error,
}

/// Open ports. They close when this is dropped.
#[derive(Debug)]
pub struct Published {
    /// Where each port really is on the host, in the order in which they were asked for.
    pub addresses: Vec<SocketAddr>,
    _forwarders: JoinSet<()>,
}

/// Opens the ports for a process that runs. `pidfd` is any process in its network.
pub async fn publish(ports: &[Publish], network: Network, pidfd: OwnedFd) -> Result<Published, PublishError> {
    let mut published = Published { addresses: Vec::new(), _forwarders: JoinSet::new() };
    let connector = match network {
        Network::Host => None,
        Network::None if ports.is_empty() => None,
        Network::None => Some(connector(pidfd)),
    };
    for &Publish { host, port } in ports {
        if network == Network::Host && host.port() == port {
            // The process itself listens there.
            published.addresses.push(host);
            continue;
        }
        let error = |source| PublishError { host, port, source };
        let listener = TcpListener::bind(host).await.map_err(error)?;
        published.addresses.push(listener.local_addr().map_err(error)?);
        published._forwarders.spawn(forward(listener, port, connector.clone()));
    }
    Ok(published)
}

async fn forward(listener: TcpListener, port: u16, connector: Option<mpsc::Sender<Request>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((mut outside, _)) => {
                    let connector = connector.clone();
                    connections.spawn(async move {
                        // Nobody listens yet, or the other side went away: this connection ends, as it would without us.
                        if let Ok(mut inside) = connect(port, connector).await {
                            let _closed = copy_bidirectional(&mut outside, &mut inside).await;
                        }
                    });
                }
                // Out of descriptors, mostly: connections that end free some.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(port: u16, connector: Option<mpsc::Sender<Request>>) -> io::Result<TcpStream> {
    let Some(connector) = connector else { return TcpStream::connect(local(port)).await };
    let (answer, connected) = oneshot::channel();
    connector.send(Request { port, answer }).map_err(io::Error::other)?;
    let stream = connected.await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Connect to a port, please.
struct Request {
    port: u16,
    answer: oneshot::Sender<io::Result<StdStream>>,
}

/// A thread in the network of a process; it ends when nobody can ask it any more. A socket stays in the network in which
/// it was made, so that only making it happens there.
fn connector(pidfd: OwnedFd) -> mpsc::Sender<Request> {
    let (sender, requests) = mpsc::channel::<Request>();
    std::thread::spawn(move || {
        let entered = enter_network_of(pidfd.as_fd());
        for Request { port, answer } in requests {
            let stream = match entered {
                Ok(()) => StdStream::connect_timeout(&local(port), Duration::from_secs(5)),
                Err(errno) => Err(errno.into()),
            };
            // The connection was given up meanwhile.
            let _unwanted = answer.send(stream);
        }
    });
    sender
}
