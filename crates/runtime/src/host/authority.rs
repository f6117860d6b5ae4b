//! The cluster's own certificate authority, and what it gives to a node.
//!
//! Every node's certificate names the node and the cluster in one DNS name,
//! `node-3.<cluster>.holdfast`, so that a peer proves in the TLS handshake who it is and which
//! cluster it belongs to. Certificates do not expire: a cluster must not stop because a date has
//! passed or a clock is wrong. A node is shut out by its number, which is never used again.
//!
//! The authority's key decides who is a member. It is kept where the cluster's state is kept and
//! never leaves that circle; neither type prints a key in its debug form.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use thiserror::Error;

use super::identity::ClusterId;
use super::tls;
use crate::links::NodeId;

const DOMAIN: &str = "holdfast";

/// SHA-256 of an authority's certificate (DER): what a join token pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthorityFingerprint(pub [u8; 32]);

/// Why credentials cannot be made or read. Nothing was changed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AuthorityError {
    /// The text lacks a certificate or a key, or one of them cannot be read.
    #[error("the certificate file is damaged. Restore it from a backup or join again")]
    Damaged,
    /// The parts are whole but do not belong together.
    #[error("certificate and key do not belong together. Restore both from the same backup")]
    Mismatch,
    /// The cryptographic library refused to make a key or a signature.
    #[error("cannot make a certificate: {0}")]
    Generation(rcgen::Error),
}

/// A cluster's certificate authority: ECDSA on P-256.
pub struct ClusterAuthority {
    cluster: ClusterId,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl ClusterAuthority {
    /// Makes the authority of a new cluster.
    pub fn generate(cluster: ClusterId) -> Result<Self, AuthorityError> {
        let key = generate_key()?;
        let parameters = authority_parameters(cluster)?;
        let certificate = parameters
            .self_signed(&key)
            .map_err(AuthorityError::Generation)?;
        let certificate = certificate.der().clone();
        Ok(Self {
            cluster,
            certificate,
            issuer: Issuer::new(parameters, key),
        })
    }

    /// The cluster that this authority speaks for.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// What a join token pins.
    pub fn fingerprint(&self) -> AuthorityFingerprint {
        fingerprint(&self.certificate)
    }

    /// A fresh key and its certificate for `node`.
    pub fn issue(&self, node: NodeId) -> Result<NodeCredentials, AuthorityError> {
        let key = generate_key()?;
        let name = node_name(self.cluster, node);
        let mut parameters = CertificateParams::new([name]).map_err(AuthorityError::Generation)?;
        parameters
            .distinguished_name
            .push(DnType::CommonName, format!("Holdfast node {node}"));
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        parameters.use_authority_key_identifier_extension = true;
        let certificate = parameters
            .signed_by(&key, &self.issuer)
            .map_err(AuthorityError::Generation)?;
        Ok(NodeCredentials {
            cluster: self.cluster,
            node,
            certificate: certificate.der().clone(),
            authority: self.certificate.clone(),
            key: key.serialize_der().into(),
        })
    }

    /// Certificate and **private key** as PEM text, for the cluster's protected state.
    pub fn to_pem(&self) -> String {
        let key = self.issuer.key().serialize_der();
        pem("CERTIFICATE", &self.certificate) + &pem("PRIVATE KEY", &key)
    }

    /// Reads what [`ClusterAuthority::to_pem`] wrote and checks that it can still sign.
    pub fn from_pem(text: &str) -> Result<Self, AuthorityError> {
        let (certificates, key) = read_pem(text)?;
        let [certificate] =
            <[_; 1]>::try_from(certificates).map_err(|_| AuthorityError::Damaged)?;
        let cluster = dns_names(&certificate)
            .iter()
            .find_map(|name| cluster_of(name, "authority"))
            .ok_or(AuthorityError::Damaged)?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| AuthorityError::Damaged)?;
        let issuer = Issuer::new(authority_parameters(cluster)?, key);
        let authority = Self {
            cluster,
            certificate,
            issuer,
        };
        let probe = authority.issue(NodeId(1))?;
        tls::verify_issued_by(&probe.certificate, &authority.certificate)
            .map_err(|_| AuthorityError::Mismatch)?;
        Ok(authority)
    }
}

impl fmt::Debug for ClusterAuthority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ClusterAuthority({})", self.cluster)
    }
}

/// A node's certificate, its authority's certificate, and its private key.
pub struct NodeCredentials {
    cluster: ClusterId,
    node: NodeId,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl NodeCredentials {
    /// The node's cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The node's number.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The fingerprint of the cluster's authority.
    pub fn authority_fingerprint(&self) -> AuthorityFingerprint {
        fingerprint(&self.authority)
    }

    /// Certificates and **private key** as PEM text; see [`super::write_atomically`].
    pub fn to_pem(&self) -> String {
        [
            pem("CERTIFICATE", &self.certificate),
            pem("CERTIFICATE", &self.authority),
            pem("PRIVATE KEY", self.key.secret_pkcs8_der()),
        ]
        .concat()
    }

    /// Reads what [`NodeCredentials::to_pem`] wrote and checks that the parts belong together.
    pub fn from_pem(text: &str) -> Result<Self, AuthorityError> {
        let (certificates, key) = read_pem(text)?;
        let [certificate, authority] =
            <[_; 2]>::try_from(certificates).map_err(|_| AuthorityError::Damaged)?;
        let (cluster, node) = node_of(&certificate).ok_or(AuthorityError::Damaged)?;
        tls::verify_issued_by(&certificate, &authority).map_err(|_| AuthorityError::Mismatch)?;
        let credentials = Self {
            cluster,
            node,
            certificate,
            authority,
            key,
        };
        // rustls compares the key with the certificate when it takes them in.
        tls::server_config(&credentials).map_err(|_| AuthorityError::Mismatch)?;
        Ok(credentials)
    }

    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.authority.clone()]
    }

    pub(super) fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    pub(super) fn key(&self) -> PrivatePkcs8KeyDer<'static> {
        self.key.clone_key()
    }
}

impl fmt::Debug for NodeCredentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "NodeCredentials(node {} of {})",
            self.node, self.cluster
        )
    }
}

/// The DNS name in a node's certificate.
pub(super) fn node_name(cluster: ClusterId, node: NodeId) -> String {
    format!("node-{node}.{cluster}.{DOMAIN}")
}

/// Which node of which cluster a certificate names.
pub(super) fn node_of(certificate: &CertificateDer<'_>) -> Option<(ClusterId, NodeId)> {
    dns_names(certificate).iter().find_map(|name| {
        let label = name.split('.').next()?;
        let node = label.strip_prefix("node-")?.parse().ok()?;
        Some((cluster_of(name, label)?, NodeId(node)))
    })
}

pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> AuthorityFingerprint {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    AuthorityFingerprint(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

fn authority_parameters(cluster: ClusterId) -> Result<CertificateParams, AuthorityError> {
    let name = format!("authority.{cluster}.{DOMAIN}");
    let mut parameters = CertificateParams::new([name]).map_err(AuthorityError::Generation)?;
    parameters
        .distinguished_name
        .push(DnType::CommonName, format!("Holdfast cluster {cluster}"));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(parameters)
}

fn generate_key() -> Result<KeyPair, AuthorityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Generation)
}

fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    match webpki::EndEntityCert::try_from(certificate) {
        Ok(certificate) => certificate.valid_dns_names().map(str::to_owned).collect(),
        Err(_) => Vec::new(),
    }
}

fn cluster_of(name: &str, first_label: &str) -> Option<ClusterId> {
    let rest = name.strip_prefix(first_label)?.strip_prefix('.')?;
    rest.strip_suffix(DOMAIN)?.strip_suffix('.')?.parse().ok()
}

fn read_pem(
    text: &str,
) -> Result<(Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>), AuthorityError> {
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| AuthorityError::Damaged)?;
    let key =
        PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| AuthorityError::Damaged)?;
    Ok((certificates, key))
}

/// RFC 7468 text.
fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = &STANDARD.encode(der)[..];
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.extend([line, "\n"]);
        rest = after;
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId([7; 16]);

    #[test]
    fn a_certificate_names_its_node_and_cluster() {
        let authority = ClusterAuthority::generate(CLUSTER).unwrap();
        let credentials = authority.issue(NodeId(3)).unwrap();
        assert_eq!(
            node_of(&credentials.certificate),
            Some((CLUSTER, NodeId(3)))
        );
        assert_eq!(node_of(&authority.certificate), None);
        assert_eq!(credentials.authority_fingerprint(), authority.fingerprint());
    }

    #[test]
    fn a_stored_authority_goes_on_issuing_for_the_same_cluster() {
        let authority = ClusterAuthority::generate(CLUSTER).unwrap();
        let restored = ClusterAuthority::from_pem(&authority.to_pem()).unwrap();
        assert_eq!(restored.cluster(), CLUSTER);
        assert_eq!(restored.fingerprint(), authority.fingerprint());
        let credentials = restored.issue(NodeId(9)).unwrap();
        tls::verify_issued_by(&credentials.certificate, &authority.certificate).unwrap();
    }

    #[test]
    fn stored_credentials_come_back_and_mixed_ones_are_refused() {
        let authority = ClusterAuthority::generate(CLUSTER).unwrap();
        let (one, two) = (
            authority.issue(NodeId(1)).unwrap(),
            authority.issue(NodeId(2)).unwrap(),
        );
        let restored = NodeCredentials::from_pem(&one.to_pem()).unwrap();
        assert_eq!((restored.cluster(), restored.node()), (CLUSTER, NodeId(1)));

        let mixed = NodeCredentials {
            key: two.key(),
            ..one
        };
        assert_eq!(
            NodeCredentials::from_pem(&mixed.to_pem()).err(),
            Some(AuthorityError::Mismatch)
        );
        let other = ClusterAuthority::generate(CLUSTER).unwrap();
        let mixed = NodeCredentials {
            authority: other.certificate.clone(),
            ..two
        };
        assert_eq!(
            NodeCredentials::from_pem(&mixed.to_pem()).err(),
            Some(AuthorityError::Mismatch)
        );
        let mixed = ClusterAuthority {
            certificate: other.certificate,
            ..authority
        };
        assert_eq!(
            ClusterAuthority::from_pem(&mixed.to_pem()).err(),
            Some(AuthorityError::Mismatch)
        );
    }

    #[test]
    fn damaged_text_is_refused_and_keys_are_not_printed() {
        let authority = ClusterAuthority::generate(CLUSTER).unwrap();
        let text = authority.to_pem();
        assert_eq!(
            ClusterAuthority::from_pem(&text[..text.len() / 2]).err(),
            Some(AuthorityError::Damaged)
        );
        assert_eq!(
            NodeCredentials::from_pem("").err(),
            Some(AuthorityError::Damaged)
        );
        assert_eq!(
            format!("{authority:?}"),
            format!("ClusterAuthority({CLUSTER})")
        );
    }
}
