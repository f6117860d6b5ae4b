//! Errors of the API: problem details (RFC 9457) with a hint at what to do next.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use holdfast_config::group::ProposeError;
use holdfast_config::state::{Refusal, VOLUME_BYTES_MAX};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

/// Why a request was not fulfilled. Unless the kind is [`ProblemKind::Undecided`], nothing was
/// changed.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize, ToSchema)]
#[error("{detail}")]
pub struct Problem {
    /// Which kind, as a URN that programs can compare.
    #[serde(rename = "type")]
    pub kind: ProblemKind,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong with this request.
    pub detail: String,
    /// What to do next; may be empty.
    pub hint: String,
}

/// Kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ProblemKind {
    /// The request makes no sense.
    #[serde(rename = "urn:holdfast:problem:invalid")]
    Invalid,
    /// Something of that name does not exist.
    #[serde(rename = "urn:holdfast:problem:unknown")]
    Unknown,
    /// It contradicts what there is.
    #[serde(rename = "urn:holdfast:problem:conflict")]
    Conflict,
    /// The node belongs to no cluster yet.
    #[serde(rename = "urn:holdfast:problem:no-cluster")]
    NoCluster,
    /// The caller may not do this.
    #[serde(rename = "urn:holdfast:problem:forbidden")]
    Forbidden,
    /// It cannot be done now, and may be later.
    #[serde(rename = "urn:holdfast:problem:unavailable")]
    Unavailable,
    /// No outcome in time: the change may have been made, or may yet be.
    #[serde(rename = "urn:holdfast:problem:undecided")]
    Undecided,
    /// The node failed.
    #[serde(rename = "urn:holdfast:problem:internal")]
    Internal,
}

impl ProblemKind {
    fn title(self) -> &'static str {
        match self {
            Self::Invalid => "the request is invalid",
            Self::Unknown => "there is no such thing",
            Self::Conflict => "the request contradicts the cluster's state",
            Self::NoCluster => "the node belongs to no cluster yet",
            Self::Forbidden => "the request is not allowed",
            Self::Unavailable => "not possible at the moment",
            Self::Undecided => "the outcome is not known",
            Self::Internal => "the node failed",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Unknown => StatusCode::NOT_FOUND,
            Self::Conflict | Self::NoCluster => StatusCode::CONFLICT,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Undecided => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Problem {
    /// A problem with the usual title and status of its kind.
    pub fn new(kind: ProblemKind, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            kind,
            title: kind.title().into(),
            status: kind.status().as_u16(),
            detail: detail.into(),
            hint: hint.into(),
        }
    }

    /// The same, answered with another status of the protocol's own.
    pub(crate) fn with_status(self, status: StatusCode) -> Self {
        Self {
            status: status.as_u16(),
            ..self
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self)).into_response();
        let content_type = HeaderValue::from_static("application/problem+json");
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let (kind, hint) = match &refusal {
            Refusal::NameInvalid(_) | Refusal::BlockSizeInvalid(_) | Refusal::CopiesInvalid(_) => {
                (ProblemKind::Invalid, String::new())
            }
            Refusal::SizeInvalid(bytes) => (ProblemKind::Invalid, size_hint(*bytes)),
            Refusal::SliceSizeInvalid(_) => (ProblemKind::Internal, String::new()),
            Refusal::NodeUnknown(_) => (
                ProblemKind::Unknown,
                "`holdfast node list` shows the nodes".into(),
            ),
            Refusal::VolumeUnknown(_) => (
                ProblemKind::Unknown,
                "`holdfast volume list` shows the volumes".into(),
            ),
            Refusal::NameTaken(_) => (
                ProblemKind::Conflict,
                "choose another name, or delete the volume of that name first".into(),
            ),
            Refusal::TooFewNodes { .. } => (
                ProblemKind::Unavailable,
                "`holdfast node list` shows which nodes are up".into(),
            ),
            Refusal::AlreadyFounded => (
                ProblemKind::Conflict,
                "a node can be taken into a cluster only with an empty data directory".into(),
            ),
            Refusal::TokenUnknown
            | Refusal::TokenExpired
            | Refusal::IdentityReused(_)
            | Refusal::IncarnationStale(_)
            | Refusal::LastCopy => (ProblemKind::Conflict, String::new()),
            Refusal::Reservation(_) => (ProblemKind::Conflict, String::new()),
            Refusal::InitiatorInvalid(_) | Refusal::TooManyInitiators => (
                ProblemKind::Invalid,
                "Linux shows its name in /etc/iscsi/initiatorname.iscsi".into(),
            ),
            Refusal::NoAccessList => (
                ProblemKind::Conflict,
                "allow those who may log in; then nobody else may".into(),
            ),
            Refusal::NoSecret => (ProblemKind::Conflict, String::new()),
            Refusal::TooManySecrets => (
                ProblemKind::Conflict,
                "wait until one has expired, or revoke them all".into(),
            ),
            Refusal::CannotShrink { .. } => (
                ProblemKind::Invalid,
                "a smaller volume has to be made anew, and the data copied by a host".into(),
            ),
            Refusal::SizeChanged { .. } => (
                ProblemKind::Conflict,
                "`holdfast volume show` shows the size now; ask again if it is still too small"
                    .into(),
            ),
            Refusal::GrowsAlready(_) => (
                ProblemKind::Unavailable,
                "`holdfast volume show` shows what the volume waits for; resize it again then"
                    .into(),
            ),
            Refusal::NodeRuns(_) => (
                ProblemKind::Conflict,
                "an eviction is for nodes that will not come back".into(),
            ),
            Refusal::Evicted(_) => (
                ProblemKind::Conflict,
                "`holdfast cluster token` makes a token for it".into(),
            ),
            Refusal::HoldsLastCopy { .. } => (
                ProblemKind::Conflict,
                "`holdfast volume show` shows where the volume's copies are".into(),
            ),
            Refusal::TooManySlices { .. } => (
                ProblemKind::Unavailable,
                "`holdfast volume list` shows the sizes of the volumes: thin ones count in full"
                    .into(),
            ),
            Refusal::PlacementInvalid(_) | Refusal::TooManyAtOnce { .. } => {
                (ProblemKind::Invalid, String::new())
            }
            Refusal::DrainLeavesTooFew { .. } => (
                ProblemKind::Conflict,
                "`holdfast cluster token` makes a token for another node".into(),
            ),
            Refusal::NotDrained { node, .. } => (
                ProblemKind::Conflict,
                format!(
                    "`holdfast node drain {node} --wait` moves them off; if the node is lost, \
                     `holdfast node evict {node}` gives its copies up"
                ),
            ),
            Refusal::LastNode(_) => (
                ProblemKind::Conflict,
                "`holdfast cluster token` makes a token for another node".into(),
            ),
            Refusal::StateFull { .. } => (
                ProblemKind::Unavailable,
                "`holdfast volume list` shows how much each volume has written".into(),
            ),
            Refusal::NodeDrains(_) => (
                ProblemKind::Unavailable,
                "`holdfast node list` shows which nodes take volumes".into(),
            ),
            Refusal::ViewStale => (ProblemKind::Unavailable, "try again".into()),
            Refusal::SuccessorNotUp(_) => (
                ProblemKind::Unavailable,
                "`holdfast node list` shows which nodes are up".into(),
            ),
            Refusal::SuccessorWithoutCopy(_) => (
                ProblemKind::Conflict,
                "`holdfast volume show` shows which nodes hold it".into(),
            ),
        };
        Self::new(kind, refusal.to_string(), hint)
    }
}

impl From<ProposeError> for Problem {
    fn from(error: ProposeError) -> Self {
        let (kind, hint) = match error {
            ProposeError::TimedOut { .. } => (
                ProblemKind::Undecided,
                "a majority of the nodes has to run: `holdfast cluster status` shows what is \
                 missing. The change may still take effect: look before you ask again",
            ),
            ProposeError::TooLarge { .. } => (ProblemKind::Invalid, ""),
            ProposeError::Superseded | ProposeError::Stopped => (
                ProblemKind::Undecided,
                "this node is stopping; look at another one whether the change was made",
            ),
        };
        Self::new(kind, error.to_string(), hint)
    }
}

fn size_hint(bytes: u64) -> String {
    const PAGE: u64 = 4096;
    const MIB: u64 = 1 << 20;
    if bytes > VOLUME_BYTES_MAX {
        let tebibytes = VOLUME_BYTES_MAX >> 40;
        return format!("the largest volume has {VOLUME_BYTES_MAX} bytes ({tebibytes} TiB)");
    }
    let fitting = bytes.next_multiple_of(PAGE).clamp(MIB, VOLUME_BYTES_MAX);
    format!("{fitting} bytes would do")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_the_members_of_rfc_9457_and_a_hint() {
        let problem = Problem::from(Refusal::SizeInvalid(5000));
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["type"], "urn:holdfast:problem:invalid");
        assert_eq!(json["status"], 400);
        assert_eq!(json["title"], "the request is invalid");
        assert!(json["detail"].as_str().unwrap().contains("5000"));
        assert_eq!(json["hint"], "1048576 bytes would do");
    }

    #[test]
    fn sizes_out_of_range_are_answered_with_the_nearest_that_fits() {
        assert_eq!(size_hint((1 << 30) + 1), "1073745920 bytes would do");
        assert!(size_hint(u64::MAX).contains(&VOLUME_BYTES_MAX.to_string()));
    }
}
