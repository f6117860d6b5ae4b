//! Why a command ends without success, and with which exit code.

use holdfast_api::{ClientError, ProblemKind};
use thiserror::Error;

/// Why a command failed; each kind has an exit code of its own.
#[derive(Debug, Error)]
pub enum Failure {
    /// The command was carried out and failed. Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// The reader of the output left before the command had ended. Ends quietly. Exit code 1.
    #[error("nobody reads any more")]
    Unheard,
    /// The command line makes no sense; nothing was done. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// No node could be asked. Exit code 3.
    #[error("{0}")]
    Unreachable(String),
    /// Something of that name does not exist. Exit code 4.
    #[error("{0}")]
    Unknown(String),
    /// It is not known whether a change was made. Exit code 5.
    #[error("{0}")]
    Undecided(String),
}

/// What `--help` says of exit codes.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; nothing was changed unless the message says so
  2  the command line is wrong; nothing was done
  3  no node could be reached
  4  there is no such node or volume
  5  no answer in time: the change may have been made, or may yet be
A reader that closes the pipe early (`| head`) changes nothing of this; that nobody could read a
secret is a failure. Of `node start`, 0 says that a signal ended it in good order.";

impl Failure {
    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Unheard => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::Unknown(_) => 4,
            Self::Undecided(_) => 5,
        }
    }

    /// A failure with the words of an error.
    pub fn of(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Address(_) => Self::Usage(error.to_string()),
            ClientError::Unreachable { .. } => Self::Unreachable(format!(
                "{error}.\nIs a node running there? Name another with --api or HOLDFAST_API"
            )),
            ClientError::Broken { .. } => Self::Undecided(format!(
                "{error}.\nLook whether the change was made before you ask again"
            )),
            ClientError::Problem(problem) => {
                let text = if problem.hint.is_empty() {
                    problem.detail
                } else {
                    format!("{}.\n{}", problem.detail, problem.hint)
                };
                match problem.kind {
                    ProblemKind::Invalid => Self::Usage(text),
                    ProblemKind::Unknown => Self::Unknown(text),
                    ProblemKind::Undecided => Self::Undecided(text),
                    ProblemKind::Conflict
                    | ProblemKind::NoCluster
                    | ProblemKind::Forbidden
                    | ProblemKind::Unavailable
                    | ProblemKind::Internal => Self::Failed(text),
                }
            }
        }
    }
}
