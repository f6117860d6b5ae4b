//! The routes of REST /v1: each turns HTTP into a [`crate::Request`] and its answer into HTTP.

use std::net::IpAddr;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request as HttpRequest, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};

use crate::balance::{Balance, BalanceChange, CopyBalance, CopyMoves, CopyMovesBegun, WhichMoves};
use crate::listing::{NodePage, SlicePage, VolumePage, WhichNodes, WhichSlices, WhichVolumes};
use crate::problem::{Problem, ProblemKind};
use crate::requests::{Request, RequestSender};
use crate::types::{
    ClusterStatus, CreatedVolume, DrainPlan, JoinTokenText, NewCluster, NewOwner, NewSecret,
    NewToken, NewVolume, NodeStatus, RotatedSecret, ScrubOrder, SelfReport, VolumeChange,
    VolumeStatus,
};

/// Largest request body: moves of 512 copies have up to 100 KiB, everything else much less.
const BODY_BYTES_MAX: usize = 256 << 10;

/// From where the API may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// From this machine. Requests that a browser was tricked into sending under another host's
    /// name (DNS rebinding) are refused.
    Loopback,
    /// From everywhere, on the operator's word.
    Everywhere,
}

/// The API's routes; requests go to the other end of `requests`.
pub fn router(requests: RequestSender, access: Access) -> Router {
    let routes = Router::new()
        .route("/v1/cluster", get(cluster).post(found))
        .route("/v1/cluster/tokens", post(add_token))
        .route("/v1/cluster/balance", get(balance).patch(change_balance))
        .route(
            "/v1/cluster/balance/copies",
            get(copy_balance).post(move_copies),
        )
        .route("/v1/self", get(own_report))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{id}", get(node).delete(evict))
        .route(
            "/v1/nodes/{id}/drain",
            get(drain_plan).post(drain).delete(cancel_drain),
        )
        .route("/v1/nodes/{id}/removal", post(remove))
        .route("/v1/nodes/{id}/scrub", post(order_scrub))
        .route("/v1/nodes/{id}/stalls", delete(forget_stalls))
        .route("/v1/volumes", get(volumes).post(create_volume))
        .route(
            "/v1/volumes/{name}",
            get(volume).patch(change_volume).delete(delete_volume),
        )
        .route("/v1/volumes/{name}/slices", get(slices))
        .route("/v1/volumes/{name}/secret", post(rotate_secret))
        .route("/v1/volumes/{name}/owner", post(move_volume))
        .route("/v1/openapi.json", get(openapi))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(requests);
    match access {
        Access::Loopback => routes.layer(middleware::from_fn(refuse_foreign_hosts)),
        Access::Everywhere => routes,
    }
}

/// How the cluster is.
#[utoipa::path(get, path = "/v1/cluster", tag = "cluster", responses(
    (status = 200, description = "The cluster as seen by this node", body = ClusterStatus),
    (status = "default", description = "What went wrong", body = Problem,
        content_type = "application/problem+json"),
))]
pub(crate) async fn cluster(
    State(requests): State<RequestSender>,
) -> Result<Json<ClusterStatus>, Problem> {
    requests.ask(Request::Cluster).await.map(Json)
}

/// Makes a new cluster with this node as its first.
#[utoipa::path(post, path = "/v1/cluster", tag = "cluster", request_body = NewCluster, responses(
    (status = 201, description = "The cluster exists", body = ClusterStatus),
    (status = "default", description = "What went wrong", body = Problem,
        content_type = "application/problem+json"),
))]
pub(crate) async fn found(
    State(requests): State<RequestSender>,
    body: Result<Json<NewCluster>, JsonRejection>,
) -> Result<(StatusCode, Json<ClusterStatus>), Problem> {
    let Json(wanted) = body?;
    let status = requests.ask(|reply| Request::Found(wanted, reply)).await?;
    Ok((StatusCode::CREATED, Json(status)))
}

/// Makes a token with which one node can join.
#[utoipa::path(post, path = "/v1/cluster/tokens", tag = "cluster", request_body = NewToken,
    responses(
        (status = 201, description = "The token, shown this once", body = JoinTokenText),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn add_token(
    State(requests): State<RequestSender>,
    body: Result<Json<NewToken>, JsonRejection>,
) -> Result<(StatusCode, Json<JoinTokenText>), Problem> {
    let Json(wanted) = body?;
    let token = requests
        .ask(|reply| Request::AddToken(wanted, reply))
        .await?;
    Ok((StatusCode::CREATED, Json(token)))
}

/// How the load is spread over the nodes, and what would make it more even.
#[utoipa::path(get, path = "/v1/cluster/balance", tag = "cluster", params(WhichMoves), responses(
    (status = 200, description = "Nodes and moves", body = Balance),
    (status = "default", description = "What went wrong", body = Problem,
        content_type = "application/problem+json"),
))]
pub(crate) async fn balance(
    State(requests): State<RequestSender>,
    which: Result<Query<WhichMoves>, QueryRejection>,
) -> Result<Json<Balance>, Problem> {
    let Query(which) = which?;
    let balance = requests.ask(|reply| Request::Balance(which, reply));
    balance.await.map(Json)
}

/// Says whether volumes move by themselves to spread the load.
#[utoipa::path(patch, path = "/v1/cluster/balance", tag = "cluster",
    request_body = BalanceChange,
    responses(
        (status = 200, description = "Nodes and moves", body = Balance),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn change_balance(
    State(requests): State<RequestSender>,
    body: Result<Json<BalanceChange>, JsonRejection>,
) -> Result<Json<Balance>, Problem> {
    let Json(wanted) = body?;
    let balance = requests.ask(|reply| Request::ChangeBalance(wanted, reply));
    balance.await.map(Json)
}

/// How copies are spread over the nodes, and which to move so that nodes hold alike.
#[utoipa::path(get, path = "/v1/cluster/balance/copies", tag = "cluster", responses(
    (status = 200, description = "Nodes and moves", body = CopyBalance),
    (status = "default", description = "What went wrong", body = Problem,
        content_type = "application/problem+json"),
))]
pub(crate) async fn copy_balance(
    State(requests): State<RequestSender>,
) -> Result<Json<CopyBalance>, Problem> {
    requests.ask(Request::CopyBalance).await.map(Json)
}

/// Moves copies: each is made anew on its new node and then taken out of the old one, so that no
/// slice ever has fewer. Answers when the moves have begun. One that does not fit any more is left
/// out.
#[utoipa::path(post, path = "/v1/cluster/balance/copies", tag = "cluster",
    request_body = CopyMoves,
    responses(
        (status = 200, description = "How many have begun", body = CopyMovesBegun),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn move_copies(
    State(requests): State<RequestSender>,
    body: Result<Json<CopyMoves>, JsonRejection>,
) -> Result<Json<CopyMovesBegun>, Problem> {
    let Json(wanted) = body?;
    let begun = requests.ask(|reply| Request::MoveCopies(wanted, reply));
    begun.await.map(Json)
}

/// What this node knows of itself alone.
#[utoipa::path(get, path = "/v1/self", tag = "nodes", responses(
    (status = 200, description = "The node's own report", body = SelfReport),
    (status = "default", description = "What went wrong", body = Problem,
        content_type = "application/problem+json"),
))]
pub(crate) async fn own_report(
    State(requests): State<RequestSender>,
) -> Result<Json<SelfReport>, Problem> {
    requests.ask(Request::OwnReport).await.map(Json)
}

/// The nodes that belong to the cluster, page by page.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", params(WhichNodes), responses(
    (status = 200, description = "The nodes in the order of their numbers",
        body = NodePage),
    (status = "default", description = "What went wrong", body = Problem,
        content_type = "application/problem+json"),
))]
pub(crate) async fn nodes(
    State(requests): State<RequestSender>,
    which: Result<Query<WhichNodes>, QueryRejection>,
) -> Result<Json<NodePage>, Problem> {
    let Query(which) = which?;
    let nodes = requests.ask(|reply| Request::Nodes(which, reply));
    nodes.await.map(Json)
}

/// One node.
#[utoipa::path(get, path = "/v1/nodes/{id}", tag = "nodes",
    params(("id" = u64, Path, description = "The node's number")),
    responses(
        (status = 200, description = "The node", body = NodeStatus),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn node(
    State(requests): State<RequestSender>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<NodeStatus>, Problem> {
    let Path(id) = id?;
    requests
        .ask(|reply| Request::Node(id, reply))
        .await
        .map(Json)
}

/// Takes a node that does not run out of the cluster for good. Its copies are made anew on other
/// nodes, and its data directory is refused from then on.
#[utoipa::path(delete, path = "/v1/nodes/{id}", tag = "nodes",
    params(("id" = u64, Path, description = "The node's number")),
    responses(
        (status = 200, description = "The node after its eviction", body = NodeStatus),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn evict(
    State(requests): State<RequestSender>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<NodeStatus>, Problem> {
    let Path(id) = id?;
    requests
        .ask(|reply| Request::Evict(id, reply))
        .await
        .map(Json)
}

/// What draining a node would move, or whether it would be refused. Nothing is done.
#[utoipa::path(get, path = "/v1/nodes/{id}/drain", tag = "nodes",
    params(("id" = u64, Path, description = "The node's number")),
    responses(
        (status = 200, description = "What would move", body = DrainPlan),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn drain_plan(
    State(requests): State<RequestSender>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<DrainPlan>, Problem> {
    let Path(id) = id?;
    let answer = requests.ask(|reply| Request::DrainPlan(id, reply));
    answer.await.map(Json)
}

/// Has a node drained: its volumes get other owners at once, its copies are made anew on other
/// nodes and then taken out. I/O goes on, and no slice ever has fewer copies. Asked again, nothing
/// changes.
#[utoipa::path(post, path = "/v1/nodes/{id}/drain", tag = "nodes",
    params(("id" = u64, Path, description = "The node's number")),
    responses(
        (status = 200, description = "The node, with how far it is drained", body = NodeStatus),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn drain(
    State(requests): State<RequestSender>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<NodeStatus>, Problem> {
    let Path(id) = id?;
    let answer = requests.ask(|reply| Request::Drain(id, reply));
    answer.await.map(Json)
}

/// Lets a node that is drained stay. What has moved already stays where it is.
#[utoipa::path(delete, path = "/v1/nodes/{id}/drain", tag = "nodes",
    params(("id" = u64, Path, description = "The node's number")),
    responses(
        (status = 200, description = "The node", body = NodeStatus),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn cancel_drain(
    State(requests): State<RequestSender>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<NodeStatus>, Problem> {
    let Path(id) = id?;
    let answer = requests.ask(|reply| Request::CancelDrain(id, reply));
    answer.await.map(Json)
}

/// Takes a node out of the cluster for good that was drained. Its process notices and ends, and
/// its data directory is refused from then on.
#[utoipa::path(post, path = "/v1/nodes/{id}/removal", tag = "nodes",
    params(("id" = u64, Path, description = "The node's number")),
    responses(
        (status = 200, description = "The node after its removal", body = NodeStatus),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn remove(
    State(requests): State<RequestSender>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<NodeStatus>, Problem> {
    let Path(id) = id?;
    let answer = requests.ask(|reply| Request::Remove(id, reply));
    answer.await.map(Json)
}

/// Tells a node's scrub what to do: it reads back everything that the node's disk holds.
#[utoipa::path(post, path = "/v1/nodes/{id}/scrub", tag = "nodes",
    params(("id" = u64, Path, description = "The node's number")),
    request_body = ScrubOrder,
    responses(
        (status = 200, description = "The node after the order", body = NodeStatus),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn order_scrub(
    State(requests): State<RequestSender>,
    id: Result<Path<u64>, PathRejection>,
    body: Result<Json<ScrubOrder>, JsonRejection>,
) -> Result<Json<NodeStatus>, Problem> {
    let (Path(id), Json(order)) = (id?, body?);
    requests
        .ask(|reply| Request::OrderScrub(id, order, reply))
        .await
        .map(Json)
}

/// Begins anew to measure how long single steps hold a node's thread.
#[utoipa::path(delete, path = "/v1/nodes/{id}/stalls", tag = "nodes",
    params(("id" = u64, Path, description = "The node's number")),
    responses(
        (status = 200, description = "The node after that", body = NodeStatus),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn forget_stalls(
    State(requests): State<RequestSender>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<NodeStatus>, Problem> {
    let Path(id) = id?;
    let node = requests.ask(|reply| Request::ForgetStalls(id, reply));
    node.await.map(Json)
}

/// Volumes, page by page.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes", params(WhichVolumes), responses(
    (status = 200, description = "The volumes in the order of their names", body = VolumePage),
    (status = "default", description = "What went wrong", body = Problem,
        content_type = "application/problem+json"),
))]
pub(crate) async fn volumes(
    State(requests): State<RequestSender>,
    which: Result<Query<WhichVolumes>, QueryRejection>,
) -> Result<Json<VolumePage>, Problem> {
    let Query(which) = which?;
    let volumes = requests.ask(|reply| Request::Volumes(which, reply));
    volumes.await.map(Json)
}

/// The slices of a volume that have a place, and where their copies are, page by page.
#[utoipa::path(get, path = "/v1/volumes/{name}/slices", tag = "volumes",
    params(("name" = String, Path, description = "The volume's name"), WhichSlices),
    responses(
        (status = 200, description = "The slices in their order", body = SlicePage),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn slices(
    State(requests): State<RequestSender>,
    name: Result<Path<String>, PathRejection>,
    which: Result<Query<WhichSlices>, QueryRejection>,
) -> Result<Json<SlicePage>, Problem> {
    let (Path(name), Query(which)) = (name?, which?);
    let slices = requests.ask(|reply| Request::Slices(name, which, reply));
    slices.await.map(Json)
}

/// Makes a volume.
#[utoipa::path(post, path = "/v1/volumes", tag = "volumes", request_body = NewVolume, responses(
    (status = 201, description = "The volume, and its credentials, shown this once",
        body = CreatedVolume),
    (status = "default", description = "What went wrong", body = Problem,
        content_type = "application/problem+json"),
))]
pub(crate) async fn create_volume(
    State(requests): State<RequestSender>,
    body: Result<Json<NewVolume>, JsonRejection>,
) -> Result<(StatusCode, Json<CreatedVolume>), Problem> {
    let Json(wanted) = body?;
    let created = requests
        .ask(|reply| Request::CreateVolume(wanted, reply))
        .await?;
    Ok((StatusCode::CREATED, Json(created)))
}

/// One volume.
#[utoipa::path(get, path = "/v1/volumes/{name}", tag = "volumes",
    params(("name" = String, Path, description = "The volume's name")),
    responses(
        (status = 200, description = "The volume", body = VolumeStatus),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn volume(
    State(requests): State<RequestSender>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<VolumeStatus>, Problem> {
    let Path(name) = name?;
    requests
        .ask(|reply| Request::Volume(name, reply))
        .await
        .map(Json)
}

/// Changes a volume while it serves. Answers when the change is in force, or after some seconds
/// if it is not yet.
#[utoipa::path(patch, path = "/v1/volumes/{name}", tag = "volumes",
    params(("name" = String, Path, description = "The volume's name")),
    request_body = VolumeChange,
    responses(
        (status = 200, description = "The volume after the change", body = VolumeStatus),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn change_volume(
    State(requests): State<RequestSender>,
    name: Result<Path<String>, PathRejection>,
    body: Result<Json<VolumeChange>, JsonRejection>,
) -> Result<Json<VolumeStatus>, Problem> {
    let (Path(name), Json(wanted)) = (name?, body?);
    requests
        .ask(|reply| Request::ChangeVolume(name, wanted, reply))
        .await
        .map(Json)
}

/// Gives a volume a new CHAP secret. Sessions go on, unless the old secret is revoked.
#[utoipa::path(post, path = "/v1/volumes/{name}/secret", tag = "volumes",
    params(("name" = String, Path, description = "The volume's name")),
    request_body = NewSecret,
    responses(
        (status = 201, description = "The new credentials, shown this once",
            body = RotatedSecret),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn rotate_secret(
    State(requests): State<RequestSender>,
    name: Result<Path<String>, PathRejection>,
    body: Result<Json<NewSecret>, JsonRejection>,
) -> Result<(StatusCode, Json<RotatedSecret>), Problem> {
    let (Path(name), Json(wanted)) = (name?, body?);
    let rotated = requests
        .ask(|reply| Request::RotateSecret(name, wanted, reply))
        .await?;
    Ok((StatusCode::CREATED, Json(rotated)))
}

/// Gives a volume another owner while it serves: a node that is up and holds a copy in sync.
/// Answers when the new owner serves, or after some seconds if it does not yet. Asked again, it
/// waits on.
#[utoipa::path(post, path = "/v1/volumes/{name}/owner", tag = "volumes",
    params(("name" = String, Path, description = "The volume's name")),
    request_body = NewOwner,
    responses(
        (status = 200, description = "The volume after the move", body = VolumeStatus),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn move_volume(
    State(requests): State<RequestSender>,
    name: Result<Path<String>, PathRejection>,
    body: Result<Json<NewOwner>, JsonRejection>,
) -> Result<Json<VolumeStatus>, Problem> {
    let (Path(name), Json(wanted)) = (name?, body?);
    requests
        .ask(|reply| Request::MoveVolume(name, wanted, reply))
        .await
        .map(Json)
}

/// Deletes a volume and all its data.
#[utoipa::path(delete, path = "/v1/volumes/{name}", tag = "volumes",
    params(("name" = String, Path, description = "The volume's name")),
    responses(
        (status = 204, description = "The volume is gone"),
        (status = "default", description = "What went wrong", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn delete_volume(
    State(requests): State<RequestSender>,
    name: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    let Path(name) = name?;
    requests
        .ask(|reply| Request::DeleteVolume(name, reply))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn openapi() -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, crate::document()).into_response()
}

async fn no_such_route(request: HttpRequest) -> Problem {
    let detail = format!("there is no {} {}", request.method(), request.uri().path());
    Problem::new(
        ProblemKind::Unknown,
        detail,
        "GET /v1/openapi.json describes the API",
    )
}

async fn no_such_method(request: HttpRequest) -> Problem {
    let detail = format!("{} cannot be {}", request.uri().path(), request.method());
    let hint = "GET /v1/openapi.json describes the API";
    Problem::new(ProblemKind::Invalid, detail, hint).with_status(StatusCode::METHOD_NOT_ALLOWED)
}

async fn refuse_foreign_hosts(request: HttpRequest, next: Next) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if host.is_some_and(is_this_machine) {
        return next.run(request).await;
    }
    Problem::new(
        ProblemKind::Forbidden,
        "this API serves its own machine only, and was addressed by another name",
        "use 127.0.0.1, [::1] or localhost",
    )
    .into_response()
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(
            ProblemKind::Invalid,
            rejection.body_text(),
            "send JSON as GET /v1/openapi.json describes it, as application/json",
        )
        .with_status(rejection.status())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(
            ProblemKind::Invalid,
            rejection.body_text(),
            "nodes are named by their numbers, volumes by their names",
        )
        .with_status(rejection.status())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(
            ProblemKind::Invalid,
            rejection.body_text(),
            "GET /v1/openapi.json describes the API",
        )
        .with_status(rejection.status())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_pass() {
        for ours in [
            "127.0.0.1:7401",
            "127.8.9.1",
            "localhost:1",
            "LOCALHOST",
            "[::1]:7401",
        ] {
            assert!(is_this_machine(ours), "{ours}");
        }
        for foreign in [
            "evil.example:7401",
            "10.0.0.1:7401",
            "[fd00::1]:7401",
            "",
            "localhost.evil:1",
        ] {
            assert!(!is_this_machine(foreign), "{foreign}");
        }
    }
}
