//! Who this node is: one small file in its data directory.
//!
//! Invariants: the UUID is written before anything else and never changes; the incarnation only
//! rises; the membership is written once. The file holds the node's private key and, while a
//! cluster is being founded, its authority's: mode 0600, replaced as a whole.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use holdfast_runtime::host::{
    AuthorityError, ClusterId, NodeCredentials, NodeUuid, write_atomically,
};
use holdfast_runtime::{DiskError, Incarnation, NodeId, Runtime};
use serde::{Deserialize, Serialize};
use thiserror::Error;

const FILE: &str = "identity.json";
/// The newest format that this version reads. Format 2 knows of a journal that lies elsewhere,
/// format 3 of a home; each is written only where one does: an older version would make a new one.
const FORMAT: u32 = 3;

/// What the file holds.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Version of the file's format.
    format: u32,
    /// The data directory's own number.
    #[serde(with = "text")]
    pub(super) uuid: NodeUuid,
    /// The newest start.
    pub(super) incarnation: Incarnation,
    /// Size of the journal; fixed.
    pub(super) journal_bytes: u64,
    /// Where the journal is, if not in the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) journal: Option<PathBuf>,
    /// Size of the home.
    pub(super) home_bytes: u64,
    /// Where the home is, if not in the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) home: Option<PathBuf>,
    /// The home has all its space. One that was made before this was known takes it as it needs it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) home_preallocated: bool,
    /// Which cluster, once there is one.
    pub(super) membership: Option<Membership>,
}

/// Which cluster this node belongs to.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Membership {
    /// The cluster.
    #[serde(with = "text")]
    pub(super) cluster: ClusterId,
    /// This node's number in it.
    pub(super) node: NodeId,
    /// Certificate, authority's certificate and private key, PEM.
    credentials: String,
    /// Nodes to talk to until the cluster's state names them.
    pub(super) peers: Vec<(NodeId, String)>,
    /// The cluster that this node is still about to found.
    pub(super) founding: Option<Founding>,
    /// Whether the node has ever run: from then on a missing config log is a lost one.
    pub(super) has_run: bool,
}

/// A cluster that is about to exist.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Founding {
    /// Its name.
    pub(super) name: String,
    /// Its authority, certificate and private key, PEM.
    pub(super) authority: String,
}

/// Why the identity cannot be used. Nothing was changed unless said so.
#[derive(Debug, Error)]
pub(super) enum IdentityError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        error: io::Error,
    },
    /// The file makes no sense.
    #[error(
        "{path} is damaged ({reason}). Restore it from a backup of this directory's newest state, \
         or let the node join again with an empty directory"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file is of a newer version.
    #[error("{path} has format {found}, and this version reads up to {FORMAT}. Update this node")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The file is gone and the data is not.
    #[error(
        "{path} is missing, but the directory holds a node's data. Restore the file, or use an \
         empty directory"
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be written; the old content is in place.
    #[error("the node's identity cannot be written: {0}")]
    Write(#[from] DiskError),
    /// The certificate or key cannot be used.
    #[error("{path}: {error}")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why.
        error: AuthorityError,
    },
}

/// The identity and the file that it lives in.
pub(super) struct IdentityFile {
    path: PathBuf,
    pub(super) identity: Identity,
}

/// How a new node's data is laid out.
#[derive(Clone, Debug)]
pub(super) struct NewLayout {
    /// Size of the journal.
    pub(super) journal_bytes: u64,
    /// Where it is, if not in the data directory.
    pub(super) journal: Option<PathBuf>,
    /// Size of the home.
    pub(super) home_bytes: u64,
    /// Where it is, if not in the data directory.
    pub(super) home: Option<PathBuf>,
    /// Whether it gets all its space at once.
    pub(super) home_preallocated: bool,
}

/// Areas whose presence says that a node has lived here.
const DATA: [&str; 4] = ["journal", "home", "facts", "config"];

impl IdentityFile {
    /// Reads the identity in `directory`; `None` if there is none, and no data either.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, IdentityError> {
        let path = directory.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(Self {
                identity: decode(&path, &bytes)?,
                path,
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if DATA.iter().any(|name| directory.join(name).exists()) {
                    return Err(IdentityError::Missing { path });
                }
                Ok(None)
            }
            Err(error) => Err(IdentityError::Read { path, error }),
        }
    }

    /// Makes the identity of a new node.
    pub(super) fn create(
        directory: &Path,
        runtime: &Runtime,
        layout: NewLayout,
    ) -> Result<Self, IdentityError> {
        let file = Self {
            path: directory.join(FILE),
            identity: Identity {
                format: 1,
                uuid: NodeUuid::random(runtime),
                incarnation: Incarnation(0),
                journal_bytes: layout.journal_bytes,
                journal: layout.journal,
                home_bytes: layout.home_bytes,
                home: layout.home,
                home_preallocated: layout.home_preallocated,
                membership: None,
            },
        };
        file.save()?;
        Ok(file)
    }

    /// Changes the identity, durably.
    pub(super) fn update(
        &mut self,
        change: impl FnOnce(&mut Identity),
    ) -> Result<(), IdentityError> {
        let before = self.identity.clone();
        change(&mut self.identity);
        self.save().inspect_err(|_| self.identity = before)
    }

    /// This node's certificate and key, if it belongs to a cluster.
    pub(super) fn credentials(&self) -> Result<Option<NodeCredentials>, IdentityError> {
        let membership = self.identity.membership.as_ref();
        membership
            .map(|membership| {
                let damaged = |error| IdentityError::Credentials {
                    path: self.path.clone(),
                    error,
                };
                let credentials =
                    NodeCredentials::from_pem(&membership.credentials).map_err(damaged)?;
                let same = credentials.node() == membership.node
                    && credentials.cluster() == membership.cluster;
                if same {
                    Ok(credentials)
                } else {
                    Err(damaged(AuthorityError::Mismatch))
                }
            })
            .transpose()
    }

    fn save(&self) -> Result<(), IdentityError> {
        let format = match (&self.identity.journal, &self.identity.home) {
            (_, Some(_)) => 3,
            (Some(_), None) => 2,
            (None, None) => 1,
        };
        let identity = Identity {
            format,
            ..self.identity.clone()
        };
        let bytes =
            serde_json::to_vec_pretty(&identity).expect("an identity of plain types becomes JSON");
        Ok(write_atomically(&self.path, &bytes)?)
    }
}

impl Membership {
    /// Membership by these credentials.
    pub(super) fn new(
        credentials: &NodeCredentials,
        peers: Vec<(NodeId, String)>,
        founding: Option<Founding>,
    ) -> Self {
        Self {
            cluster: credentials.cluster(),
            node: credentials.node(),
            credentials: credentials.to_pem(),
            peers,
            founding,
            has_run: false,
        }
    }
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Identity, IdentityError> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    // The parser's message would quote what it met; a key must not get into a log.
    let damaged = |error: serde_json::Error| IdentityError::Damaged {
        path: path.into(),
        reason: format!("line {}, column {}", error.line(), error.column()),
    };
    let head: Head = serde_json::from_slice(bytes).map_err(damaged)?;
    if head.format > FORMAT {
        return Err(IdentityError::Version {
            path: path.into(),
            found: head.format,
        });
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

/// Ids as text, so that people can compare them.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_runtime::host::ClusterAuthority;

    use super::*;

    fn opened(directory: &Path) -> Result<IdentityFile, IdentityError> {
        if let Some(file) = IdentityFile::read(directory)? {
            return Ok(file);
        }
        let layout = NewLayout {
            journal_bytes: 1 << 20,
            journal: None,
            home_bytes: 1 << 30,
            home: None,
            home_preallocated: true,
        };
        holdfast_runtime::host::run(async |runtime| {
            IdentityFile::create(directory, &runtime, layout)
        })
    }

    #[test]
    fn an_identity_outlives_its_process_with_everything_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = opened(folder.path()).unwrap();
        let authority = ClusterAuthority::generate(ClusterId([7; 16])).unwrap();
        let credentials = authority.issue(NodeId(3)).unwrap();
        let peers = vec![(NodeId(1), "10.0.0.11:7400".to_owned())];
        file.update(|identity| {
            identity.incarnation = Incarnation(8);
            identity.membership = Some(Membership::new(&credentials, peers.clone(), None));
        })
        .unwrap();
        let again = opened(folder.path()).unwrap();
        assert_eq!(again.identity.uuid, file.identity.uuid);
        assert_eq!(again.identity.incarnation, Incarnation(8));
        assert_eq!(again.identity.membership.as_ref().unwrap().peers, peers);
        assert_eq!(again.credentials().unwrap().unwrap().node(), NodeId(3));
    }

    #[test]
    fn areas_elsewhere_are_remembered_in_formats_that_older_versions_refuse() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = opened(folder.path()).unwrap();
        let text = || fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert!(text().contains("\"format\": 1") && !text().contains("journal\""));
        let place = Some(PathBuf::from("/srv/nvram/journal"));
        file.update(|identity| identity.journal.clone_from(&place))
            .unwrap();
        assert!(text().contains("\"format\": 2"));
        assert_eq!(opened(folder.path()).unwrap().identity.journal, place);
        file.update(|identity| identity.home.clone_from(&place))
            .unwrap();
        assert!(text().contains("\"format\": 3"));
        assert_eq!(opened(folder.path()).unwrap().identity.home, place);
        file.update(|identity| (identity.journal, identity.home) = (None, None))
            .unwrap();
        assert!(text().contains("\"format\": 1"));
    }

    #[test]
    fn a_home_of_which_an_older_version_said_nothing_takes_its_space_as_it_needs_it() {
        let folder = tempfile::tempdir().unwrap();
        opened(folder.path()).unwrap();
        let path = folder.path().join(FILE);
        let known = fs::read_to_string(&path).unwrap();
        let older = known.replace("  \"home_preallocated\": true,\n", "");
        assert_ne!(known, older);
        fs::write(&path, older).unwrap();
        assert!(!opened(folder.path()).unwrap().identity.home_preallocated);
    }

    #[test]
    fn credentials_of_another_node_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = opened(folder.path()).unwrap();
        let authority = ClusterAuthority::generate(ClusterId([7; 16])).unwrap();
        let credentials = authority.issue(NodeId(3)).unwrap();
        let mut membership = Membership::new(&credentials, Vec::new(), None);
        membership.node = NodeId(4);
        file.update(|identity| identity.membership = Some(membership))
            .unwrap();
        assert!(matches!(
            file.credentials(),
            Err(IdentityError::Credentials { .. })
        ));
    }

    #[test]
    fn a_damaged_file_is_told_from_a_newer_one_and_is_not_quoted() {
        let folder = tempfile::tempdir().unwrap();
        opened(folder.path()).unwrap();
        let path = folder.path().join(FILE);
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(matches!(
            opened(folder.path()),
            Err(IdentityError::Damaged { .. })
        ));
        fs::write(&path, r#"{"format":1,"uuid":"SECRET"}"#).unwrap();
        let error = opened(folder.path()).err().unwrap().to_string();
        assert!(!error.contains("SECRET"), "{error}");
        fs::write(&path, r#"{"format":4,"unheard-of":true}"#).unwrap();
        assert!(matches!(
            opened(folder.path()),
            Err(IdentityError::Version { found: 4, .. })
        ));
    }

    #[test]
    fn data_without_an_identity_is_not_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("journal"), b"data").unwrap();
        assert!(matches!(
            opened(folder.path()),
            Err(IdentityError::Missing { .. })
        ));
    }
}
