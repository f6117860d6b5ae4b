//! One node of the cluster, assembled from its parts over any runtime.
#![forbid(unsafe_code)]
