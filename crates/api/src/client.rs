//! The client of the API, for the command line.

use std::time::Duration;

use reqwest::{Method, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::DEFAULT_PORT;
use crate::balance::{Balance, BalanceChange, CopyBalance, CopyMoves, CopyMovesBegun, WhichMoves};
use crate::listing::{NodePage, SlicePage, VolumePage, WhichNodes, WhichSlices, WhichVolumes};
use crate::problem::Problem;
use crate::types::{
    ClusterStatus, CreatedVolume, DrainPlan, JoinTokenText, NewCluster, NewOwner, NewSecret,
    NewToken, NewVolume, NodeStatus, RotatedSecret, ScrubOrder, SelfReport, VolumeChange,
    VolumeStatus,
};

/// Why a request has no good answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The address makes no sense. Nothing was sent.
    #[error("{0:?} is no address of an API, such as http://127.0.0.1:7401 or 127.0.0.1:7401")]
    Address(String),
    /// Nobody answers there. Nothing was changed.
    #[error("no node answers at {url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// The operating system's words.
        reason: String,
    },
    /// The connection broke on the way; a change may or may not have been made.
    #[error("{url} gave no whole answer: {reason}")]
    Broken {
        /// Where.
        url: String,
        /// What was seen.
        reason: String,
    },
    /// The node answered with a problem.
    #[error(transparent)]
    Problem(#[from] Problem),
}

/// A client of one node's API.
#[derive(Clone, Debug)]
pub struct Client {
    base: Url,
    http: reqwest::Client,
}

impl Client {
    /// A client of the API at `url`, or at a host with or without a port, with a limit for each
    /// request.
    pub fn new(url: &str, limit: Duration) -> Result<Self, ClientError> {
        let address = || ClientError::Address(url.to_owned());
        let base = parse(url.trim()).ok_or_else(address)?;
        if base.scheme() != "http" || base.host().is_none() {
            return Err(address());
        }
        let http = reqwest::Client::builder()
            // A proxy for the outside world cannot reach a cluster's own network.
            .no_proxy()
            .timeout(limit)
            .build()
            .map_err(|error| unreachable(&base, &error))?;
        Ok(Self { base, http })
    }

    /// How the cluster is.
    pub async fn cluster(&self) -> Result<ClusterStatus, ClientError> {
        self.get(&["v1", "cluster"]).await
    }

    /// Makes a new cluster with the node as its first.
    pub async fn found(&self, wanted: &NewCluster) -> Result<ClusterStatus, ClientError> {
        self.post(&["v1", "cluster"], wanted).await
    }

    /// Makes a token with which one node can join.
    pub async fn add_token(&self, wanted: &NewToken) -> Result<JoinTokenText, ClientError> {
        self.post(&["v1", "cluster", "tokens"], wanted).await
    }

    /// What the node knows of itself alone.
    pub async fn own_report(&self) -> Result<SelfReport, ClientError> {
        self.get(&["v1", "self"]).await
    }

    /// How the load is spread.
    pub async fn balance(&self, which: WhichMoves) -> Result<Balance, ClientError> {
        let mut url = self.url(&["v1", "cluster", "balance"]);
        if which.all {
            url.set_query(Some("all=true"));
        }
        let request = self.http.request(Method::GET, url);
        self.decode(self.send(request).await?).await
    }

    /// Says whether volumes move by themselves.
    pub async fn change_balance(&self, wanted: &BalanceChange) -> Result<Balance, ClientError> {
        let url = self.url(&["v1", "cluster", "balance"]);
        let request = self.http.request(Method::PATCH, url).json(wanted);
        self.decode(self.send(request).await?).await
    }

    /// How copies are spread.
    pub async fn copy_balance(&self) -> Result<CopyBalance, ClientError> {
        self.get(&["v1", "cluster", "balance", "copies"]).await
    }

    /// Moves copies.
    pub async fn move_copies(&self, wanted: &CopyMoves) -> Result<CopyMovesBegun, ClientError> {
        self.post(&["v1", "cluster", "balance", "copies"], wanted)
            .await
    }

    /// One page of nodes.
    pub async fn node_page(&self, which: &WhichNodes) -> Result<NodePage, ClientError> {
        self.get_with(&["v1", "nodes"], which).await
    }

    /// All nodes, page by page.
    pub async fn nodes(&self, mut which: WhichNodes) -> Result<Vec<NodeStatus>, ClientError> {
        let mut nodes = Vec::new();
        loop {
            let page = self.node_page(&which).await?;
            nodes.extend(page.nodes);
            match page.next_cursor {
                None => return Ok(nodes),
                cursor => which.cursor = cursor,
            }
        }
    }

    /// One node.
    pub async fn node(&self, id: u64) -> Result<NodeStatus, ClientError> {
        self.get(&["v1", "nodes", &id.to_string()]).await
    }

    /// Tells a node's scrub what to do.
    pub async fn order_scrub(
        &self,
        id: u64,
        order: &ScrubOrder,
    ) -> Result<NodeStatus, ClientError> {
        self.post(&["v1", "nodes", &id.to_string(), "scrub"], order)
            .await
    }

    /// Takes a node out for good.
    pub async fn evict(&self, id: u64) -> Result<NodeStatus, ClientError> {
        self.bare(Method::DELETE, &["v1", "nodes", &id.to_string()])
            .await
    }

    /// What draining a node would move.
    pub async fn drain_plan(&self, id: u64) -> Result<DrainPlan, ClientError> {
        self.get(&["v1", "nodes", &id.to_string(), "drain"]).await
    }

    /// Has a node drained.
    pub async fn drain(&self, id: u64) -> Result<NodeStatus, ClientError> {
        self.bare(Method::POST, &["v1", "nodes", &id.to_string(), "drain"])
            .await
    }

    /// Lets a node that is drained stay.
    pub async fn cancel_drain(&self, id: u64) -> Result<NodeStatus, ClientError> {
        self.bare(Method::DELETE, &["v1", "nodes", &id.to_string(), "drain"])
            .await
    }

    /// Takes a node out for good that was drained.
    pub async fn remove_node(&self, id: u64) -> Result<NodeStatus, ClientError> {
        self.bare(Method::POST, &["v1", "nodes", &id.to_string(), "removal"])
            .await
    }

    /// Lets a node begin anew with its longest stalls.
    pub async fn forget_stalls(&self, id: u64) -> Result<NodeStatus, ClientError> {
        self.bare(Method::DELETE, &["v1", "nodes", &id.to_string(), "stalls"])
            .await
    }

    /// One page of volumes.
    pub async fn volume_page(&self, which: &WhichVolumes) -> Result<VolumePage, ClientError> {
        self.get_with(&["v1", "volumes"], which).await
    }

    /// All volumes, page by page.
    pub async fn volumes(&self) -> Result<Vec<VolumeStatus>, ClientError> {
        let mut which = WhichVolumes::default();
        let mut volumes = Vec::new();
        loop {
            let page = self.volume_page(&which).await?;
            volumes.extend(page.volumes);
            match page.next_cursor {
                None => return Ok(volumes),
                cursor => which.cursor = cursor,
            }
        }
    }

    /// One page of a volume's slices.
    pub async fn slice_page(
        &self,
        name: &str,
        which: &WhichSlices,
    ) -> Result<SlicePage, ClientError> {
        self.get_with(&["v1", "volumes", name, "slices"], which)
            .await
    }

    /// One volume.
    pub async fn volume(&self, name: &str) -> Result<VolumeStatus, ClientError> {
        self.get(&["v1", "volumes", name]).await
    }

    /// Makes a volume.
    pub async fn create_volume(&self, wanted: &NewVolume) -> Result<CreatedVolume, ClientError> {
        self.post(&["v1", "volumes"], wanted).await
    }

    /// Changes a volume.
    pub async fn change_volume(
        &self,
        name: &str,
        wanted: &VolumeChange,
    ) -> Result<VolumeStatus, ClientError> {
        let url = self.url(&["v1", "volumes", name]);
        let request = self.http.request(Method::PATCH, url).json(wanted);
        self.decode(self.send(request).await?).await
    }

    /// Gives a volume a new CHAP secret.
    pub async fn rotate_secret(
        &self,
        name: &str,
        wanted: &NewSecret,
    ) -> Result<RotatedSecret, ClientError> {
        self.post(&["v1", "volumes", name, "secret"], wanted).await
    }

    /// Gives a volume another owner; answers when it serves, or after some seconds if it does
    /// not yet.
    pub async fn move_volume(
        &self,
        name: &str,
        wanted: &NewOwner,
    ) -> Result<VolumeStatus, ClientError> {
        self.post(&["v1", "volumes", name, "owner"], wanted).await
    }

    /// Deletes a volume and all its data.
    pub async fn delete_volume(&self, name: &str) -> Result<(), ClientError> {
        let request = self
            .http
            .request(Method::DELETE, self.url(&["v1", "volumes", name]));
        self.send(request).await.map(drop)
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("an http URL with a host has a path")
            .clear()
            .extend(path);
        url
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, ClientError> {
        self.bare(Method::GET, path).await
    }

    /// A request without a body.
    async fn bare<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
    ) -> Result<T, ClientError> {
        let request = self.http.request(method, self.url(path));
        self.decode(self.send(request).await?).await
    }

    /// With what is wanted as the query.
    async fn get_with<T: DeserializeOwned>(
        &self,
        path: &[&str],
        which: &impl Serialize,
    ) -> Result<T, ClientError> {
        let mut url = self.url(path);
        append_query(&mut url, which);
        let request = self.http.request(Method::GET, url);
        self.decode(self.send(request).await?).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let request = self.http.request(Method::POST, self.url(path)).json(body);
        self.decode(self.send(request).await?).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|error| {
            if error.is_connect() {
                unreachable(&self.base, &error)
            } else {
                self.broken(&error)
            }
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(ClientError::Problem(self.decode(response).await?))
    }

    async fn decode<T: DeserializeOwned>(&self, response: Response) -> Result<T, ClientError> {
        response.json().await.map_err(|error| self.broken(&error))
    }

    fn broken(&self, error: &reqwest::Error) -> ClientError {
        let reason = if error.is_timeout() {
            "no answer in time".into()
        } else {
            innermost(error)
        };
        ClientError::Broken {
            url: self.base.to_string(),
            reason,
        }
    }
}

/// The fields that are there, as the parts of a query. They are words, numbers and switches.
fn append_query(url: &mut Url, which: &impl Serialize) {
    let fields = serde_json::to_value(which).unwrap_or_default();
    for (name, value) in fields.as_object().into_iter().flatten() {
        let text = match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        url.query_pairs_mut().append_pair(name, &text);
    }
}

/// An address with its scheme is a URL; one without names a host, and perhaps a port.
fn parse(address: &str) -> Option<Url> {
    if address.contains("://") {
        return Url::parse(address).ok();
    }
    let host = match address.parse::<std::net::Ipv6Addr>() {
        Ok(bare) => format!("[{bare}]"),
        Err(_) => address.to_owned(),
    };
    let mut url = Url::parse(&format!("http://{host}")).ok()?;
    let says_port = host
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if !says_port {
        url.set_port(Some(DEFAULT_PORT)).ok()?;
    }
    Some(url)
}

fn unreachable(base: &Url, error: &reqwest::Error) -> ClientError {
    ClientError::Unreachable {
        url: base.to_string(),
        reason: innermost(error),
    }
}

/// The cause that says most: the libraries between add only that something failed.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_lack_its_scheme_and_then_its_port() {
        for (given, meant) in [
            ("127.0.0.1:8000", "http://127.0.0.1:8000/"),
            ("10.0.0.11", "http://10.0.0.11:7401/"),
            ("localhost:80", "http://localhost/"),
            (" node-1.example:7402\n", "http://node-1.example:7402/"),
            ("::1", "http://[::1]:7401/"),
            ("[fd00::2]:7402", "http://[fd00::2]:7402/"),
            ("[fd00::2]", "http://[fd00::2]:7401/"),
            ("http://host/", "http://host/"),
        ] {
            let client = Client::new(given, Duration::from_secs(1)).unwrap();
            assert_eq!(client.base.as_str(), meant, "{given}");
        }
    }

    #[test]
    fn addresses_that_make_no_sense_are_refused() {
        for wrong in [
            "",
            "not a URL",
            ":7401",
            "host:port",
            "ftp://host/",
            "https://host/",
        ] {
            let refused = Client::new(wrong, Duration::from_secs(1));
            assert!(matches!(refused, Err(ClientError::Address(_))), "{wrong}");
        }
    }

    #[test]
    fn a_query_says_what_is_wanted_and_nothing_else() {
        let query = |which: WhichVolumes| {
            let mut url = Url::parse("http://host/v1/volumes").unwrap();
            append_query(&mut url, &which);
            url.query().map(ToOwned::to_owned)
        };
        assert_eq!(query(WhichVolumes::default()), None);
        let which = WhichVolumes {
            limit: Some(7),
            cursor: Some("v.a&b".into()),
            state: Some(crate::VolumeState::TakingOver),
            impaired: true,
            ..WhichVolumes::default()
        };
        let query = query(which).unwrap();
        let mut parts: Vec<&str> = query.split('&').collect();
        parts.sort_unstable();
        assert_eq!(
            parts,
            [
                "cursor=v.a%26b",
                "impaired=true",
                "limit=7",
                "state=taking-over"
            ]
        );
    }

    #[test]
    fn names_cannot_leave_their_place_in_the_path() {
        let client = Client::new("http://127.0.0.1:1/some/path", Duration::from_secs(1)).unwrap();
        let url = client.url(&["v1", "volumes", "../../x?y"]);
        assert_eq!(
            url.as_str(),
            "http://127.0.0.1:1/v1/volumes/..%2F..%2Fx%3Fy"
        );
    }
}
