//! The addresses and ports of one node.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use holdfast_api::Access;
use tokio::net::TcpListener;

use crate::cli::StartArgs;
use crate::failure::Failure;

/// Refuses addresses that cannot work or are not safe; nothing is bound.
pub(super) fn check(args: &StartArgs) -> Result<(), Failure> {
    if args.listen.is_unspecified() || args.listen.is_multicast() {
        return Err(Failure::Usage(format!(
            "--listen {}: other nodes and initiators connect to this address, so it has to be \
             one of this machine's own",
            args.listen
        )));
    }
    let api = api_ip(args);
    if !api.is_loopback() && !args.api_insecure {
        return Err(Failure::Usage(format!(
            "--api-listen {api}: the REST API has no log-in yet, so whoever reaches it could \
             delete volumes and read new secrets. Leave it on 127.0.0.1, or say --api-insecure \
             if the network is closed to everybody else"
        )));
    }
    Ok(())
}

/// The ports of a node. The API's is held from the beginning; the other two are only probed,
/// because a port that listens says that the node serves.
pub(super) struct Ports {
    pub(super) api: TcpListener,
    pub(super) access: Access,
    /// For other nodes.
    pub(super) link: SocketAddr,
    /// For initiators.
    pub(super) portal: SocketAddr,
    /// What other nodes are told of the API; empty if they cannot reach it.
    pub(super) api_address: String,
}

impl Ports {
    /// Binds or probes every port, so that one that is taken is met before anything changes.
    pub(super) async fn take(args: &StartArgs) -> Result<Self, Failure> {
        let api_ip = api_ip(args);
        let address = SocketAddr::new(api_ip, args.api_port);
        let api = bind("the REST API", "--api-port", address).await?;
        let api_port = api.local_addr().map_err(Failure::of)?.port();
        let link = SocketAddr::new(args.listen, args.link_port);
        let portal = SocketAddr::new(args.listen, args.portal_port);
        // Held together, so that port 0 does not give the same one twice.
        let probes = [
            bind("other nodes", "--link-port", link).await?,
            bind("the iSCSI portal", "--portal-port", portal).await?,
        ];
        let [link, portal] = probes.map(|probe| probe.local_addr());
        let api_address = if api_ip.is_unspecified() {
            SocketAddr::new(args.listen, api_port).to_string()
        } else if api_ip.is_loopback() && !args.listen.is_loopback() {
            String::new()
        } else {
            SocketAddr::new(api_ip, api_port).to_string()
        };
        Ok(Self {
            api,
            access: if api_ip.is_loopback() {
                Access::Loopback
            } else {
                Access::Everywhere
            },
            link: link.map_err(Failure::of)?,
            portal: portal.map_err(Failure::of)?,
            api_address,
        })
    }
}

/// Listens on the portal's address.
pub(super) async fn portal(address: SocketAddr) -> Result<TcpListener, Failure> {
    bind("the iSCSI portal", "--portal-port", address).await
}

fn api_ip(args: &StartArgs) -> IpAddr {
    let loopback = if args.listen.is_loopback() {
        args.listen
    } else {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    };
    args.api_listen.unwrap_or(loopback)
}

async fn bind(purpose: &str, option: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("another process uses the port: choose one with {option}")
            }
            io::ErrorKind::AddrNotAvailable => {
                "the address is not one of this machine's own".into()
            }
            io::ErrorKind::PermissionDenied => {
                format!("ports below 1024 need privileges: choose another with {option}")
            }
            _ => format!("choose another port with {option}"),
        };
        Failure::Failed(format!(
            "cannot listen on {address} for {purpose} ({error}); {advice}"
        ))
    })
}
